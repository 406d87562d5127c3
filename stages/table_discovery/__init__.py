"""`recast new`: a problem proposed for a file that nobody has declared.

`layout`, `times`, `text` and `columns` find out what the file holds, `inspection` combines them, and `proposal` makes
a section of params.yaml from it and runs the stages on it.
"""
