"""The peers' side of `ingest`: one CSV file to one Parquet file, in the way that each peer's own guide recommends.

It runs in an environment of its own, with DuckDB and pandas and without Recast, and prints the seconds. Times become
timestamps. It does not check the cells, the order, repeated times and gaps, and it does not hash the file.
"""

import sys
import time

CHUNK_ROWS = 1_000_000


def convert_with_duckdb(file: str, out: str, time_column: str) -> None:
    """DuckDB's defaults: it infers the types and uses all cores."""
    import duckdb  # noqa: PLC0415 - keeps the other peers' libraries out of the memory that is measured

    duckdb.sql(f"COPY (SELECT * FROM read_csv('{file}')) TO '{out}' (FORMAT parquet)")


def convert_with_pandas(file: str, out: str, time_column: str) -> None:
    """Load the whole file as one frame."""
    import pandas as pd  # noqa: PLC0415, TID251 - a peer that is measured, loaded only where it is used

    frame = pd.read_csv(file)
    frame[time_column] = pd.to_datetime(frame[time_column], format="%Y-%m-%d %H:%M:%S")
    frame.to_parquet(out)


def convert_with_pandas_in_chunks(file: str, out: str, time_column: str) -> None:
    """Read a million rows at a time; each chunk becomes a row group of the Parquet file."""
    import pandas as pd  # noqa: PLC0415, TID251 - a peer that is measured, loaded only where it is used
    import pyarrow as pa  # noqa: PLC0415 - keeps the other peers' libraries out of the memory that is measured
    import pyarrow.parquet as pq  # noqa: PLC0415 - keeps the other peers' libraries out of the memory that is measured

    writer = None
    for frame in pd.read_csv(file, chunksize=CHUNK_ROWS):
        frame[time_column] = pd.to_datetime(frame[time_column], format="%Y-%m-%d %H:%M:%S")
        rows = pa.Table.from_pandas(frame, preserve_index=False)
        writer = writer or pq.ParquetWriter(out, rows.schema)
        writer.write_table(rows)
    if writer:
        writer.close()


if __name__ == "__main__":
    work = {
        "duckdb": convert_with_duckdb,
        "pandas": convert_with_pandas,
        "pandas in chunks": convert_with_pandas_in_chunks,
    }[sys.argv[1]]
    begun = time.perf_counter()
    work(*sys.argv[2:])
    print(time.perf_counter() - begun)
