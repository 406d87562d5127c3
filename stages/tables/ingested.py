"""The files that the stage `ingest` writes for a table, for the stages and flows that read them."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from project.records import read_record

TABLE_FILE = "table.parquet"
QUALITY_FILE = "quality.json"


def read_quality(folder: Path) -> dict[str, Any]:
    """The report on the quality of the table, or of the sequences."""
    return read_record(folder / QUALITY_FILE, dict[str, Any], fix=f"run `recast run {folder.name}`")


def read_cadence(folder: Path) -> timedelta:
    """The time between rows, as the report on the table's quality has it."""
    return timedelta(seconds=read_quality(folder)["cadence_seconds"])
