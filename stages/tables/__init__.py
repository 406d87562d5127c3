"""Tables: rows in time, of one series or several.

- writing what a source has as a table: `times`, `cells`, `checks`, `tabulation`; the report on it: `quality`
- names of the files that `ingest` writes: `ingested`
- reading the normalised table and its windows, for training and evaluation: `table`, `windows`
"""
