"""What an experiment may choose for its training: optimizers, schedules, losses, measures and kinds of answers.

Each choice is one entry in a table, and the settings that name it are made of that table (`learning.choices`). This
package imports nothing of the project, and importing it does not load PyTorch, which takes seconds: the settings are
read by commands that do not train.
"""
