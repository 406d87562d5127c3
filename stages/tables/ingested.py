"""The files that the stage `ingest` writes for a table, for the stages and flows that read them."""

import json
from datetime import timedelta
from pathlib import Path

TABLE_FILE = "table.parquet"
QUALITY_FILE = "quality.json"


def read_cadence(folder: Path) -> timedelta:
    """The time between rows, as the report on the table's quality has it."""
    quality = json.loads((folder / QUALITY_FILE).read_text(encoding="utf-8"))
    return timedelta(seconds=quality["cadence_seconds"])
