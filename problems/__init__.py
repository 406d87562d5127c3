"""What is learned: where the data of a problem come from, what is forecast from what, and how the data are split.

`problem.py` has the two kinds of problems: a `Problem` forecasts one column of a table of rows in time, a
`SequenceProblem` answers a question about each whole sequence. Each section of a problem in params.yaml has a module:

- `source`: one module for each data source in `problems/sources/`; the base classes are in `source.py` (rows in
  time), `growing_source.py` (rows in time to which new ones are added) and `sequences.py` (whole sequences)
- `table`: `columns.py`, of a sequence problem `encoding.py`
- `fresh`: `fresh.py`, the places that new rows come from
- `contract`: `contract.py`, the rules for new rows
- `split`: `split.py`
- `window`: `windows.py`

`problems/files/` reads, downloads and links files, for any source.

To add a data source:

1. Write a module in `problems/sources/` with a subclass of `Source`, `GrowingSource` or `SequenceSource`. Its fields
   are the keys of the section `source` in params.yaml; `kind` names it. `nyc.py` is the shortest source of rows,
   `adding.py` the shortest of sequences.
2. Name the class in `AnySource` or `AnySequenceSource` in `problems/problem.py`.

Nothing else asks which kind a source is. What is special about a source is a method or an attribute that it overrides,
such as `find_fault`, `unpack` or `fresh_kinds`.
"""
