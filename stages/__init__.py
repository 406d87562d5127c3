"""What the stages of `dvc.yaml` do, a module for each, and what they share.

Each module has a pure function and a thin command, except `train`: its command is `flows.train`.
"""
