"""New rows of a source that grows, from their place to the raw store.

- `refresh.py` fetches what is new as one increment. It uses `arrived_file.py` (the rows of one file), `known_rows.py`
  (the rows that are known) and `new_lines.py` (their comparison).
- `contract.py` checks an increment against the rows that are known (`known_table.py`): with rules about values
  (`value_rules.py`) and about times (`time_rules.py`, `clock.py`).
- `quarantine.py` accepts an increment or puts it into quarantine, and takes it out again.
"""
