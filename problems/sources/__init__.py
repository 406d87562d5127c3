"""The data sources, one module each; `problems` says how to add one."""
