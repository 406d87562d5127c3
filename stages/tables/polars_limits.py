"""Limits on what Polars reads ahead, so that the memory of the stage `ingest` does not grow with a file's size.

Polars takes these limits from the environment only. They have to be set before it reads a file; the modules that read
import this module before they import Polars.
"""

import os

# Of a CSV file, Polars reads this many bytes at a time into each of its threads. Its own limit is up to 16 MiB, more
# the larger the file is, and what it makes of these bytes takes many times as much memory.
os.environ.setdefault("POLARS_CSV_CHUNK_SIZE", str(1 << 20))
# Of a Parquet file, Polars reads this many row groups ahead.
os.environ.setdefault("POLARS_ROW_GROUP_PREFETCH_SIZE", "1")
