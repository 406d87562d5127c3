"""Damaged settings, tables and requests: each is read, or refused in a message for people; none raises or hangs.

    RECAST_FUZZ_CASES=20000 pytest -m long tests/scenarios/test_fuzzing.py

Case N of a test is made of the number N alone.
"""

import copy
import io
import math
import random
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from problems.errors import RecastError
from problems.problem import Problem
from project.settings.loading import load_settings, overlay_settings
from stages.ingest import ingest
from stages.table_discovery.proposal import propose_problem
from tests.support.checkout import ROOT
from tests.support.fuzzing import ODD_VALUES, count_cases, damage_bytes, damage_document, limited_time

PARAMS = (ROOT / "params.yaml").read_bytes()
DOCUMENT = YAML(typ="safe").load(PARAMS)


def check(case: object, action: Callable[[], object]) -> bool:
    """Run a case; whether the input was accepted. The reason of a refusal can be printed."""
    with limited_time(case):
        try:
            action()
        except RecastError as error:
            message = str(error)
            assert message.strip(), case
            assert "Traceback" not in message, case
            assert len(message) < 20_000, case
            return False
        # Not `Exception`: what Rust panics with is none.
        except BaseException as error:
            error.add_note(f"case {case}")
            raise
    return True


def damage_settings(case: int) -> bytes:
    """The project's settings with an accident of the editor, or with values that nobody expects."""
    source = random.Random(case)
    if source.random() < 0.5:
        return damage_bytes(PARAMS, source)
    written = io.BytesIO()
    yaml = YAML()
    yaml.dump(damage_document(copy.deepcopy(DOCUMENT), source), written)
    return written.getvalue()


def fuzz_settings(folder: Path, cases: range) -> None:
    file, whole = folder / "params.yaml", folder / "whole.yaml"
    for case in cases:
        file.write_bytes(damage_settings(case))
        check(case, partial(load_settings, file))
        # This takes ten times as long.
        if case % 10 == 0:
            whole.write_bytes(PARAMS)
            if check(case, partial(overlay_settings, file, whole)):
                load_settings(whole)


def make_csv(rows: int = 120) -> str:
    start = datetime(2020, 1, 1)
    lines = ["when;place;level;flow"]
    lines += [
        f"{start + timedelta(hours=i)};{place};{math.sin(i / 7):.3f};{i % 13 * 1.5:.1f}"
        for place in ("here", "there")
        for i in range(rows)
    ]
    return "\n".join(lines) + "\n"


def damage_source(case: random.Random) -> dict[str, Any]:
    """Settings of a source that reads the file, some of them wrong."""
    settings: dict[str, Any] = {"kind": "table", "time": "when", "separator": ";", "series": "place"}
    if case.random() < 0.5:
        key = case.choice(
            ("time", "time_format", "time_zone", "series", "separator", "decimal", "encoding", "skip_lines", "comment")
        )
        settings[key] = case.choice(
            [
                *ODD_VALUES,
                "epoch s",
                "epoch ms",
                "%d.%m.%Y",
                "%H",
                "Europe/Berlin",
                "utf-16",
                "cp1252",
                "level",
                ";",
                "w",
            ]
        )
    return settings


def fuzz_tables(folder: Path, cases: Iterable[int]) -> None:
    text = make_csv().encode()
    table = io.BytesIO()
    pl.read_csv(text, separator=";", try_parse_dates=True).write_parquet(table, row_group_size=64)
    store = folder / "raw" / "river"
    store.mkdir(parents=True)
    for case in cases:
        source = random.Random(case)
        suffix, content = source.choice((("csv", text), ("parquet", table.getvalue())))
        file = store / f"river.{suffix}"
        file.write_bytes(damage_bytes(content, source))
        check(case, partial(propose_problem, str(file)))
        try:
            problem = Problem.model_validate(
                {
                    "title": "river",
                    "source": damage_source(source) | {"path": str(file)},
                    "table": {"features": ["level", "flow"], "target": "flow", "unit": ""},
                    "split": "half",
                    "window": {"lookback": "6h", "step": "1h", "delay": "1h"},
                }
            )
        except ValidationError:
            pass
        else:
            check(case, partial(ingest, problem, store, folder / "ingest" / "river"))
        file.unlink()


def test_damaged_settings_are_read_or_refused(tmp_path: Path) -> None:
    fuzz_settings(tmp_path, range(120))


def test_damaged_tables_are_read_or_refused(tmp_path: Path) -> None:
    # Polars panics at the last one, a Parquet file.
    fuzz_tables(tmp_path, (*range(8), 1_000_032))


@pytest.mark.long
def test_many_damaged_settings_are_read_or_refused(tmp_path: Path) -> None:
    fuzz_settings(tmp_path, range(1_000_000, 1_000_000 + count_cases(5000)))


@pytest.mark.long
def test_many_damaged_tables_are_read_or_refused(tmp_path: Path) -> None:
    fuzz_tables(tmp_path, range(1_000_000, 1_000_000 + count_cases(500)))
