"""The peers' side of `ingest`: one CSV file to one Parquet file, in the way that each names in its own guide.

It runs in an environment of its own, with DuckDB and pandas and without Recast, and prints the seconds. Times become
timestamps; that no cell is wrong, the order, repeated times, gaps and the file's hash are not looked at.
"""

import sys
import time

CHUNK_ROWS = 1_000_000


def by_duckdb(file: str, out: str, time_column: str) -> None:
    """As DuckDB does by itself, with the types that it finds, on all cores."""
    import duckdb

    duckdb.sql(f"COPY (SELECT * FROM read_csv('{file}')) TO '{out}' (FORMAT parquet)")


def by_pandas(file: str, out: str, time_column: str) -> None:
    """The whole file as one frame."""
    import pandas as pd

    frame = pd.read_csv(file)
    frame[time_column] = pd.to_datetime(frame[time_column], format="%Y-%m-%d %H:%M:%S")
    frame.to_parquet(out)


def by_pandas_in_chunks(file: str, out: str, time_column: str) -> None:
    """A million rows at a time, each a row group of the Parquet file."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    for frame in pd.read_csv(file, chunksize=CHUNK_ROWS):
        frame[time_column] = pd.to_datetime(frame[time_column], format="%Y-%m-%d %H:%M:%S")
        rows = pa.Table.from_pandas(frame, preserve_index=False)
        writer = writer or pq.ParquetWriter(out, rows.schema)
        writer.write_table(rows)
    if writer:
        writer.close()


if __name__ == "__main__":
    work = {"duckdb": by_duckdb, "pandas": by_pandas, "pandas in chunks": by_pandas_in_chunks}[sys.argv[1]]
    begun = time.perf_counter()
    work(*sys.argv[2:])
    print(time.perf_counter() - begun)
