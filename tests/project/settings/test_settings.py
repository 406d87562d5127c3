"""params.yaml: what is right is read, frozen and in the schema; what is wrong is named, with what would be right."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML

from problems.errors import RecastError
from problems.sources.jena import ARCHIVE_VARIABLE
from problems.split import DateSplit, FractionSplit, LectureSplit, RecentSplit
from project.settings.explaining import explain_errors
from project.settings.grid import check_grid, expand_grid
from project.settings.loading import load_settings, overlay_settings
from project.settings.parsing import parse_settings
from project.settings.schema import SCHEMA_FILE, build_schema
from project.settings.sections import Settings

ROOT = Path(__file__).parents[3]
PARAMS = (ROOT / "params.yaml").read_text(encoding="utf-8")
JENA = ("problems", "jena")
REMOVED = "removed"


@pytest.fixture(autouse=True)
def _no_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ARCHIVE_VARIABLE, raising=False)


def document() -> dict[str, Any]:
    """A params.yaml, whatever the project's own looks like today."""
    station = {
        "title": "simulated",
        "source": {"kind": "station", "rows": 1000, "cadence": "1h"},
        "table": {"features": ["T (degC)", "p (mbar)"], "target": "T (degC)", "unit": "°C"},
        "split": "half",
        "window": {"lookback": "5d", "step": "1h", "delay": "24h"},
    }
    return {
        "run": ["jena", "nyc"],
        "problems": {
            "jena": station | {"source": {"kind": "jena", "path": None}},
            "nyc": station | {"source": {"kind": "nyc"}},
            "station": station,
        },
        "ingest": {"attempts": 3},
        "normalize": {"scale": "standard"},
        "window": {"stride": 1},
        "train": {"epochs": 5, "steps_per_epoch": 10, "clip": None},
        "evaluate": {"bootstrap": {"block": "7d"}, "forecasts": "14d"},
        "grid": {"seeds": [0, 1], "architectures": {"persistence": {}, "gru": {"units": [8, 16]}}},
        "runner": {"kind": "local"},
    }


def edited(keys: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The document with another value at one place."""
    changed = json.loads(json.dumps(document()))
    holder = changed
    for key in keys[:-1]:
        holder = holder[key]
    if value is REMOVED:
        del holder[keys[-1]]
    else:
        holder[keys[-1]] = value
    return changed


def yaml(value: Any) -> str:
    """JSON is YAML, but for two numbers."""
    return json.dumps(value).replace("Infinity", ".inf").replace("NaN", ".nan")


@pytest.fixture
def read(tmp_path: Path) -> Callable[[Any], Settings]:
    """Write text, bytes or a document as params.yaml, and load it."""

    def write_and_load(content: Any) -> Settings:
        text = content if isinstance(content, str | bytes) else yaml(content)
        (tmp_path / "params.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_settings(tmp_path / "params.yaml")

    return write_and_load


def test_the_projects_own_file_is_right() -> None:
    settings = load_settings(ROOT / "params.yaml")
    assert expand_grid(settings.grid)
    assert set(settings.run) <= set(settings.problems)


def test_the_committed_schema_is_current() -> None:
    committed = SCHEMA_FILE.read_text(encoding="utf-8")
    assert json.loads(committed) == build_schema(), "python -m project.settings.schema"


@pytest.mark.parametrize("right", [YAML(typ="safe").load(PARAMS), document()], ids=["params.yaml", "another"])
def test_the_schema_accepts_what_is_right(right: Any) -> None:
    jsonschema.Draft202012Validator.check_schema(build_schema())
    jsonschema.Draft202012Validator(build_schema()).validate(right)


SPLITS: list[tuple[Any, Any]] = [
    ("lecture", LectureSplit()),
    ("half", FractionSplit(train=0.5, validation=0.25)),
    ({"train": 0.6, "validation": 0.2}, FractionSplit(train=0.6, validation=0.2)),
    (
        {"validation_from": "2015-01-01", "test_from": "2016-01-01 12:00"},
        DateSplit(validation_from="2015-01-01", test_from="2016-01-01T12:00"),
    ),
    (
        {"validation_from": "2015-01-01T01:00+01:00", "test_from": "2016-01-01T12:00Z"},
        DateSplit(validation_from="2015-01-01", test_from="2016-01-01T12:00"),
    ),
    (
        {
            "train_from": "2012-01-01",
            "validation_from": "2015-01-01",
            "test_from": "2016-01-01",
            "test_until": "2016-07-01",
        },
        DateSplit(
            train_from="2012-01-01", validation_from="2015-01-01", test_from="2016-01-01", test_until="2016-07-01"
        ),
    ),
    ({"kind": "recent", "validation": "180d", "test": "90d"}, RecentSplit(train=None, validation="180d", test="90d")),
    ({"train": "4w", "validation": "2w", "test": "7d"}, RecentSplit(train="28d", validation="14d", test="1w")),
]


@pytest.mark.parametrize(("written", "meant"), SPLITS)
def test_every_way_to_write_a_split(read: Callable[[Any], Settings], written: Any, meant: Any) -> None:
    right = edited((*JENA, "split"), written)
    assert read(right).problems["jena"].split == meant
    jsonschema.Draft202012Validator(build_schema()).validate(right)


def test_a_date_may_be_written_without_quotes(read: Callable[[Any], Settings]) -> None:
    text = yaml(edited((*JENA, "split"), "HERE"))
    split = "{validation_from: 2015-01-01, test_from: 2016-07-01}"
    assert read(text.replace('"HERE"', split)).problems["jena"].split == DateSplit(
        validation_from="2015-01-01", test_from="2016-07-01"
    )


@pytest.mark.parametrize("written", ["1e-3", "1E-3", "0.001", ".001"])
def test_a_number_may_be_written_as_such(read: Callable[[Any], Settings], written: str) -> None:
    settings = read(yaml(edited(("train", "clip"), "HERE")).replace('"HERE"', written))
    assert settings.train.clip == 1e-3


def test_a_byte_order_mark_does_no_harm(read: Callable[[Any], Settings]) -> None:
    assert read("\ufeff" + yaml(document())) == read(document())


def sections(value: Any) -> list[BaseModel]:
    """A section and all sections in it."""
    if isinstance(value, BaseModel):
        return [value, *(section for name in type(value).model_fields for section in sections(getattr(value, name)))]
    if isinstance(value, dict):
        return [section for part in value.values() for section in sections(part)]
    return []


def test_settings_are_frozen(read: Callable[[Any], Settings]) -> None:
    all_sections = sections(read(document()))
    assert len(all_sections) > 20
    for section in all_sections:
        for name in type(section).model_fields:
            with pytest.raises(ValidationError, match="frozen"):
                setattr(section, name, getattr(section, name))


# Each wrong value, and what the user reads of it: the key, the value, what is allowed.
WRONG: list[tuple[tuple[str, ...], Any, str]] = [
    # unknown keys
    (("trian",), {}, "trian: unknown key (did you mean train?); allowed keys: run, problems, ingest, "),
    (("train", "epoch"), 5, "train.epoch: unknown key (did you mean epochs?); allowed keys: epochs, steps_per_epoch,"),
    (("evaluate", "bootstrap", "blok"), "7d", "evaluate.bootstrap.blok: unknown key (did you mean block?); allowed"),
    ((*JENA, "tabel"), {}, "problems.jena.tabel: unknown key (did you mean table?); allowed keys: title, source, "),
    ((*JENA, "source", "pth"), "x", "problems.jena.source.pth: unknown key (did you mean path?); allowed keys: kind, "),
    (("problems", "station", "source", "row"), 3, "problems.station.source.row: unknown key (did you mean rows?)"),
    ((*JENA, "window", "lokback"), "5d", "problems.jena.window.lokback: unknown key (did you mean lookback?)"),
    ((*JENA, "split"), {"train": 0.5, "valdation": 0.2}, "split.valdation: unknown key (did you mean validation?)"),
    ((*JENA, "split"), {"train": 0.5, "validation": 0.2, "x": 1}, "split.x: unknown key; allowed keys: train, valid"),
    # missing keys
    (("train",), REMOVED, "train: missing"),
    (("evaluate", "forecasts"), REMOVED, "evaluate.forecasts: missing (how much of the test split the report shows"),
    ((*JENA, "table", "target"), REMOVED, "problems.jena.table.target: missing (the column that is forecast; one of"),
    (
        (*JENA, "source", "kind"),
        REMOVED,
        "problems.jena.source.kind: missing; it must be one of database, jena, nyc, questions, station",
    ),
    ((*JENA, "split"), {"validation_from": "2015-01-01"}, "problems.jena.split.test_from: missing"),
    # types
    (("train", "epochs"), "5", 'train.epochs: must be a whole number; it is "5"'),
    (("train", "epochs"), True, "train.epochs: must be a whole number; it is true"),
    (("train", "epochs"), 1.5, "train.epochs: must be a whole number; it is 1.5"),
    (("train", "epochs"), None, "train.epochs: must be a whole number; it is null"),
    (("train", "epochs"), [5], "train.epochs: must be a whole number; it is [5]"),
    (("train", "clip"), True, "train.clip: must be a number, or null; it is true"),
    (("train", "clip"), float("inf"), "train.clip: must be a finite number, or null; it is Infinity"),
    (("train", "clip"), float("nan"), "train.clip: must be a finite number, or null; it is NaN"),
    (("train", "steps_per_epoch"), "all", 'train.steps_per_epoch: must be a whole number, or null; it is "all"'),
    (("train",), None, "train: must be a section with the keys epochs, steps_per_epoch, "),
    (("problems",), {}, "problems: must not be empty"),
    (("run",), "jena", 'run: must be a list, in brackets; it is "jena"'),
    ((*JENA, "title"), None, "problems.jena.title: must be text; it is null"),
    ((*JENA, "table", "features"), [], "problems.jena.table.features: must not be empty"),
    ((*JENA, "table", "sentinels"), {"T (degC)": -9999}, "table.sentinels.T (degC): must be a list, in brackets; it"),
    # ranges and choices
    (("train", "epochs"), 0, "train.epochs: must be at least 1; it is 0"),
    (("train", "clip"), -1, "train.clip: must be above 0, or null; it is -1"),
    (("ingest", "attempts"), 99, "ingest.attempts: must be at most 20; it is 99"),
    (("evaluate", "bootstrap", "level"), 95, "evaluate.bootstrap.level: must be below 1; it is 95"),
    (
        ("train", "loss"),
        "hubert",
        "train.loss: must be 'mae', 'mse', 'huber' or 'pinball'; it is \"hubert\" (did you mean huber?)",
    ),
    (("normalize", "scale"), "minmax", "normalize.scale: must be 'standard', 'range' or 'none'; it is \"minmax\""),
    (("runner", "kind"), "rye", "runner.kind: must be 'local', 'inline' or 'ray'; it is \"rye\" (did you mean ray?)"),
    (("runner", "slots_per_gpu"), 0, "runner.slots_per_gpu: 0: write a whole number from 1, or auto"),
    (("runner", "slots_per_gpu"), "all", 'runner.slots_per_gpu: "all": write a whole number from 1, or auto'),
    (("runner", "memory"), "2GB", 'runner.memory: "2GB": write a number and MiB or GiB, such as 2GiB'),
    (
        (*JENA, "source", "kind"),
        "jenna",
        'problems.jena.source.kind: must be one of database, jena, nyc, questions, station, table; it is "jenna" (did',
    ),
    # lengths of time
    (
        (*JENA, "window", "step"),
        "0h",
        'problems.jena.window.step: "0h": write a number above 0 and a unit, from 0.001s',
    ),
    (
        (*JENA, "window", "step"),
        0,
        "problems.jena.window.step: 0: write a number above 0 and a unit, such as 10m, 1h or 5d",
    ),
    ((*JENA, "window", "step"), "-1h", 'problems.jena.window.step: "-1h": write a number above 0 and a unit'),
    ((*JENA, "window", "step"), "1x", 'problems.jena.window.step: "1x": write a number above 0 and a unit'),
    ((*JENA, "window", "step"), "6d", "problems.jena.window.step: step 6d is longer than lookback 5d"),
    (
        (*JENA, "window", "step"),
        "7h",
        "problems.jena.window.lookback: lookback 5d is not a whole number of steps of 7h",
    ),
    (("evaluate", "bootstrap", "block"), 7, "evaluate.bootstrap.block: 7: write a number above 0 and a unit"),
    (
        (*JENA, "window", "delay"),
        "9000d",
        "problems.jena.window.lookback: lookback 5d and delay 9000d reach beyond the data, which cover at most 2922d",
    ),
    (
        ("problems", "nyc", "window", "delay"),
        "400d",
        "lookback 5d and delay 400d reach beyond the data, which cover at",
    ),
    (("problems", "station", "window", "delay"), "40d", "problems.station.window.lookback: lookback 5d and delay 40d"),
    # splits
    ((*JENA, "split"), "halves", 'problems.jena.split: "halves": allowed: lecture, half, {train, validation}, {valid'),
    ((*JENA, "split"), 3, "problems.jena.split: 3: allowed: lecture, half, {train, validation}, {validation_from, t"),
    ((*JENA, "split"), None, "problems.jena.split: null: allowed: lecture, half, "),
    ((*JENA, "split"), {"train": 0.5, "validation": 0.5}, "problems.jena.split.train: train and validation together"),
    ((*JENA, "split"), {"train": 0, "validation": 0.5}, "problems.jena.split.train: must be above 0; it is 0"),
    (
        (*JENA, "split"),
        {"validation_from": "soon", "test_from": "2016-01-01"},
        'problems.jena.split.validation_from: "soon": write a date, 2015-01-01, or in quotes a date and a time',
    ),
    (
        (*JENA, "split"),
        {"validation_from": "2016-01-01", "test_from": "2015-01-01"},
        "problems.jena.split.test_from: test_from must be later than validation_from",
    ),
    (
        (*JENA, "split"),
        {"validation_from": "2015-01-01", "test_from": "2016-01-01", "test_until": "2015-06-01"},
        "problems.jena.split.test_until: test_until must be later than test_from",
    ),
    (
        (*JENA, "split"),
        {"kind": "recent", "train": "4y", "validation": "180d", "test": "90d"},
        'problems.jena.split.train: "4y": write a number above 0 and a unit, such as 10m, 1h or 5d (s, m, h, d, w)',
    ),
    ((*JENA, "split"), {"kind": "recent", "test": "90d"}, "problems.jena.split.validation: missing"),
    # columns
    ((*JENA, "table", "target"), "T", "problems.jena.table.target: target 'T' is not among the features: T (degC), p"),
    (
        (*JENA, "table", "features"),
        ["T (degC)"] * 2,
        "problems.jena.table.features: features must differ, and one is listed twice",
    ),
    (
        (*JENA, "table", "sentinels"),
        {"T": [1]},
        "problems.jena.table.sentinels: sentinels for ['T'], which are not feat",
    ),
    # keys of several types
    (
        (*JENA, "contract"),
        {"stuck": "5 days"},
        "problems.jena.contract.stuck: must be a number or a number above 0 and a unit, such as 10m, 1h or 5d (s, m, "
        'h, d, w) or a mapping, such as {} or {key: value}, or null; it is "5 days"',
    ),
    (
        (*JENA, "contract"),
        {"stuck": {"T (degC)": "5 days"}},
        "problems.jena.contract.stuck.T (degC): must be a number or a number above 0 and a unit, such as 10m, 1h or 5d",
    ),
    (
        (*JENA, "contract"),
        {"ranges": {"T (degC)": [1, 2, 3]}},
        "problems.jena.contract.ranges.T (degC): must be a list of at most 2 values; it is [1, 2, 3]",
    ),
    (
        (*JENA, "fresh"),
        {"kind": "http", "url": "ftp://host"},
        'problems.jena.fresh.url: must be http://... or https://... or a list, in brackets; it is "ftp://host"',
    ),
    (
        (*JENA, "fresh"),
        {"kind": "http", "url": ["ftp://host"]},
        'problems.jena.fresh.url.0: "ftp://host": write http://... or https://...',
    ),
    ((*JENA, "fresh"), {"kind": "query", "query": 3}, "problems.jena.fresh.query: must be text, or null; it is 3"),
    (
        (*JENA, "source"),
        {"kind": "table", "path": "x", "time": ["date"]},
        'problems.jena.source.time: must be text or a list of at least 2 values; it is ["date"]',
    ),
    ((*JENA, "split"), {"train": 0.5, "validation": 0.2, "fractions": 1}, "problems.jena.split.fractions: unknown key"),
    (("problems", "table"), {}, "problems.table.title: missing (one line for the report)"),
    # names of problems
    (
        ("run",),
        ["jenna"],
        "run: run lists 'jenna', which is not declared under problems (did you mean jena?); the declared",
    ),
    (("run",), ["jena", "jena"], 'run: ["jena", "jena"]: "jena" is listed twice'),
    (("run",), [], "run: must not be empty"),
    (
        ("problems", "Jena 2"),
        {},
        "problems.Jena 2: must be small letters, digits and _, because it names folders; it is",
    ),
    # the grid
    (("grid", "architectures"), {}, "grid.architectures: must not be empty"),
    (
        ("grid", "architectures"),
        ["gru"],
        'grid.architectures: must be a mapping, such as {} or {key: value}; it is ["g',
    ),
    (("grid", "architectures", "gru"), None, "grid.architectures.gru: must be a mapping, such as {} or {key: value}; "),
    (("grid", "architectures", "gruu"), {}, "grid.architectures.gruu: no such architecture (did you mean gru?); the "),
    (
        ("grid", "architectures", "gru", "unit"),
        [8],
        "grid.architectures.gru.unit: gru has no such axis (did you mean u",
    ),
    (("grid", "architectures", "persistence", "units"), [8], "persistence has no such axis; it has none"),
    (("grid", "architectures", "gru"), [], "grid.architectures.gru: must not be empty"),
    (
        ("grid", "architectures", "gru"),
        [{}, {"units": 8}],
        "grid.architectures.gru.1.units: must be a list, in brackets; it is 8",
    ),
    (("grid", "architectures", "gru"), [{}, {"units": [0]}], "grid.architectures.gru.1.units: must be at least 1; it"),
    (("grid", "architectures", "gru"), [{"units": [0]}], "grid.architectures.gru.0.units: must be at least 1; it is 0"),
    (("grid", "architectures", "gru"), [{}, {"unit": [8]}], "grid.architectures.gru.1.unit: gru has no such axis (did"),
    (("grid", "architectures", "gru", "units"), [], "grid.architectures.gru.units: must not be empty"),
    (
        ("grid", "architectures", "gru", "units"),
        8,
        "grid.architectures.gru.units: must be a list, in brackets; it is 8",
    ),
    (("grid", "architectures", "gru", "units"), [8, 8], "grid.architectures.gru.units: [8, 8]: 8 is listed twice"),
    (("grid", "architectures", "gru", "units"), [8, 0], "grid.architectures.gru.units: must be at least 1; it is 0"),
    (
        ("grid", "architectures", "gru", "units"),
        ["8"],
        'grid.architectures.gru.units: must be a whole number; it is "8',
    ),
    (
        ("grid", "architectures", "gru", "units"),
        [True],
        "grid.architectures.gru.units: must be a whole number; it is t",
    ),
    (
        ("grid", "architectures", "gru", "optimizer"),
        ["adm"],
        "grid.architectures.gru.optimizer: must be 'rmsprop', 'adam', 'adamw' or 'sgd'; it is \"adm\" (did you mean ad",
    ),
    (("grid", "seeds"), [], "grid.seeds: must not be empty"),
    (("grid", "seeds"), 3, "grid.seeds: must be a list, in brackets; it is 3"),
    (("grid", "seeds"), [1, 1], "grid.seeds: [1, 1]: 1 is listed twice"),
    (("grid", "seeds"), [-1], "grid.seeds.0: must be at least 0; it is -1"),
    (("grid", "seeds"), [2**64], "grid.seeds.0: must be below 4294967296; it is 18446744073709551616"),
    (("grid", "seeds"), ["a"], 'grid.seeds.0: must be a whole number; it is "a"'),
]


@pytest.mark.parametrize(("keys", "value", "message"), WRONG, ids=[f"{'.'.join(k)}={v}"[:60] for k, v, _ in WRONG])
def test_what_is_wrong_is_named(
    read: Callable[[Any], Settings], keys: tuple[str, ...], value: Any, message: str
) -> None:
    with pytest.raises(RecastError) as raised:
        read(edited(keys, value))
    lines = str(raised.value).splitlines()
    assert any(message in line for line in lines), lines
    assert all(re.match(r"\S*params\.yaml: [\w.]+[^:]*: \S", line) for line in lines), lines
    for jargon in ("Input should", "input should", "tag", "tuple", "dictionary", "valid integer", "::", "Value error"):
        assert jargon not in str(raised.value)


BY_THE_SCHEMA = [
    (keys, value)
    for keys, value, _ in WRONG
    if value is REMOVED or (keys[:2] == ("grid", "architectures") and value != [8, 8])
]


@pytest.mark.parametrize(("keys", "value"), BY_THE_SCHEMA, ids=lambda part: str(part)[:40])
def test_the_schema_refuses_it_too(keys: tuple[str, ...], value: Any) -> None:
    """So that an editor warns of it before anything runs."""
    assert list(jsonschema.Draft202012Validator(build_schema()).iter_errors(edited(keys, value)))


def test_every_wrong_key_is_named_at_once(read: Callable[[Any], Settings]) -> None:
    wrong = edited(("train", "epochs"), 0)
    wrong["runner"]["bundle"] = "x"
    wrong["ingest"]["atempts"] = 3
    with pytest.raises(RecastError) as raised:
        read(wrong)
    assert [line.split(": ")[1] for line in str(raised.value).splitlines()] == [
        "ingest.atempts",
        "train.epochs",
        "runner.bundle",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train: [1, 2\nrun: }", r"params\.yaml, line 2, column 4: not valid YAML: did not find expected ',' or ']'"),
        ("train:\n\tepochs: 5", r"params\.yaml, line 2, column 1: not valid YAML: a tab; indent with spaces"),
        ("a: 1\nb: 2\na: 3", r'params\.yaml, line 3, column 1: not valid YAML: found duplicate key "a"'),
        ("train: {epochs: 1, epochs: 2}", r'line 1, column 20: not valid YAML: found duplicate key "epochs"'),
        ("a: !!python/object:os.system ls", r"params\.yaml, line 1, column 4: not valid YAML: could not determine"),
        ("a: \x00", r"params\.yaml: not valid YAML: unacceptable character"),
        ("title: Jena, 20 °C".encode("latin-1"), r"params\.yaml: byte 16 is not UTF-8; save the file as UTF-8"),
        ("", r"params\.yaml: must be a mapping with the keys run, problems, "),
        ("- jena", r"params\.yaml: must be a mapping with the keys run, problems, "),
    ],
)
def test_a_file_that_is_no_settings_says_where(read: Callable[[Any], Settings], content: Any, message: str) -> None:
    with pytest.raises(RecastError, match=message):
        read(content)


def test_a_missing_file_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(RecastError, match=r"params\.yaml: there is no such file; run this in the project's root"):
        parse_settings(tmp_path / "params.yaml")


def keys_in(value: Any) -> Iterator[tuple[str, ...]]:
    """The path of every key and of every item of a list."""
    if isinstance(value, dict | list):
        for part, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield (str(part),)
            yield from ((str(part), *path) for path in keys_in(inner))


def document_with_every_key(source: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    """A document with a problem named as one of its keys, and with all that has several types or kinds."""
    written = edited((*JENA, "source"), source)
    written["problems"]["table"] = written["problems"].pop("jena") | {
        "fresh": fresh,
        "contract": {"stuck": {"T (degC)": "5d", "p (mbar)": 3}, "ranges": {"p (mbar)": [900, None]}, "gap": None},
        "split": {"kind": "recent", "validation": "180d", "test": "90d"},
    }
    sequences = {
        "title": "texts",
        "source": {"kind": "language", "corpus": "file", "path": {"train": "a", "validation": "b", "test": "c"}},
        "table": {"tokens": "words", "vocabulary": 100},
        "split": {"kind": "given", "validation": None},
        "window": {"length": 20},
    }
    written["problems"]["source"] = sequences
    written["grid"]["architectures"]["lstm"] = [{"units": [[8, 16]], "optimizer": ["adam"]}, {}]
    email = {"to": ["a@example.org"], "sender": "a@example.org", "server": "mail"}
    return written | {
        "run": ["table"],
        "alerts": {"log": ["failure"], "email": email, "webhook": {"url": "${HOOK}"}},
        "deploy": {"retrain": {"cron": None}},
        "retrain": {"approval": "1h"},
        "monitor": {"window": "7d"},
    }


TABLE_SOURCE = {"kind": "table", "path": "a.csv", "time": ["date", "clock"], "null_values": ["NA"]}
DATABASE_SOURCE = {"kind": "database", "address": "sqlite:///x", "query": "q", "time": "t"}
EVERYTHING = [
    document_with_every_key(TABLE_SOURCE, {"kind": "http", "url": ["https://host/a.csv", "https://host/b.csv"]}),
    document_with_every_key(TABLE_SOURCE | {"time": "t"}, {"kind": "http", "url": "https://host/a.csv"}),
    document_with_every_key(DATABASE_SOURCE, {"kind": "query", "query": "q"}),
]
PLACES = [(i, path) for i, written in enumerate(EVERYTHING) for path in keys_in(written)]

FIELDS = {field for _, *path in keys_in(build_schema()) for i, field in enumerate(path) if path[i - 1] == "properties"}

# Also names of pydantic's types and of tags, which must not be taken for keys where they are none.
WORDS = st.sampled_from(["x", "5 days", "ftp:", "kind", "table", "query", "http", "fractions", "str", "<table>"])
SCALARS = st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | WORDS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=7) | st.dictionaries(WORDS, inner, max_size=3))


@settings(max_examples=300)
@given(place=st.sampled_from(PLACES), value=VALUES)
def test_a_message_names_only_keys_that_are_written_or_can_be(place: tuple[int, tuple[str, ...]], value: Any) -> None:
    """Every wrong key once, and neither pydantic's name of a type nor the tag of a union in a key."""
    number, path = place
    wrong = json.loads(json.dumps(EVERYTHING[number]))
    holder = wrong
    for part in path[:-1]:
        holder = holder[int(part) if isinstance(holder, list) else part]
    holder[int(path[-1]) if isinstance(holder, list) else path[-1]] = value
    try:
        check_grid(Settings.model_validate_json(json.dumps(wrong), strict=True).grid)
    except ValidationError as error:
        message = explain_errors(error, wrong)
    except RecastError as error:
        message = str(error)
    else:
        return
    written = {".".join(path) for path in keys_in(wrong)}
    lines = [line.removeprefix("params.yaml: ") for line in message.splitlines()]
    keys = [line.partition(": ")[0] for line in lines if "because it names folders" not in line]
    assert len(keys) == len(set(keys)), message
    for key in keys:
        section, _, name = key.rpartition(".")
        assert key in written or (name in FIELDS and section in {*written, ""}), message
    for jargon in ("Input should", "should have", "tuple", "dictionary", "Value error"):
        assert jargon not in message


def test_a_problem_that_is_not_declared_is_named(read: Callable[[Any], Settings]) -> None:
    settings = read(document())
    assert settings.problem("nyc") is settings.problems["nyc"]
    with pytest.raises(
        RecastError, match=r"no problem 'nyk' \(did you mean nyc\?\); the declared problems are jena, nyc, station"
    ):
        settings.problem("nyk")


def test_a_file_of_ones_own_may_reach_further_than_the_archive(
    read: Callable[[Any], Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = edited((*JENA, "window", "delay"), "9000d")
    monkeypatch.setenv(ARCHIVE_VARIABLE, "a file of unknown length")
    assert read(longer).problems["jena"].window.delay.days == 9000


def test_the_grid_is_every_combination_in_order(read: Callable[[Any], Settings]) -> None:
    grid = edited(("grid", "architectures", "gru"), {"units": [8, 16], "learning_rate": [1, 0.01]})["grid"]
    configurations = expand_grid(read(document() | {"grid": grid}).grid)
    assert [configuration.label for configuration in configurations] == [
        "persistence",
        "gru units=8 learning_rate=1",
        "gru units=8 learning_rate=0.01",
        "gru units=16 learning_rate=1",
        "gru units=16 learning_rate=0.01",
    ]
    assert configurations[1].hyperparameters.model_dump() == {
        "learning_rate": 1.0,
        "optimizer": "rmsprop",
        "schedule": "constant",
        "epochs": None,
        "lookback": None,
        "inputs": "all",
        "embedding": 32,
        "residual": "none",
        "members": 1,
        "units": 8,
        "layers": 1,
        "activation": "tanh",
        "dropout": 0.0,
        "recurrent_dropout": 0.0,
        "bidirectional": False,
        "reversed": False,
        "initial": "pytorch",
        "regressor": 0,
    }

    blocks = [{}, {"units": [8, 16], "epochs": [40]}, {"reversed": [True]}]
    grid = edited(("grid", "architectures", "gru"), blocks)["grid"]
    assert [configuration.label for configuration in expand_grid(read(document() | {"grid": grid}).grid)] == [
        "persistence",
        "gru",
        "gru units=8 epochs=40",
        "gru units=16 epochs=40",
        "gru reversed=True",
    ]

    twice = edited(("grid", "architectures", "gru"), [{"units": [8, 16]}, {"units": [16]}])["grid"]
    with pytest.raises(RecastError, match=r"gru\.1: gru units=16 is in two of the blocks; leave it in one"):
        expand_grid(read(document() | {"grid": twice}).grid)

    grid = edited(("grid", "architectures", "gru"), {"units": [[32, 64]], "activation": [["tanh", "relu"]]})["grid"]
    (_, stacked) = expand_grid(read(document() | {"grid": grid}).grid)
    assert stacked.label == "gru units=[32, 64] activation=[tanh, relu]"


PART = """
run: [nyc]
problems: {jena: {split: lecture}}
train: {patience: null, epochs: 7}   # few
grid:
  seeds: [4]
  architectures:
    dense: {}           # D5
"""


def test_a_file_of_some_keys_takes_their_place_and_no_other(tmp_path: Path) -> None:
    whole, part = tmp_path / "params.yaml", tmp_path / "part.yaml"
    shutil.copy(ROOT / "params.yaml", whole)
    part.write_text(PART, encoding="utf-8")
    before, text_before = load_settings(whole), whole.read_text(encoding="utf-8")
    changed = overlay_settings(part, whole)
    after, text_after = load_settings(whole), whole.read_text(encoding="utf-8")
    assert sorted(changed) == sorted(
        ["run", "problems.jena.split", "train.epochs", "train.patience", "grid.seeds", "grid.architectures"]
    )
    assert after.run == ("nyc",)
    assert after.problems["jena"].split.kind == "lecture"
    assert after.grid.architectures == {"dense": {}}, "replaced, not merged"
    assert (after.train.epochs, after.train.patience) == (7, None)
    jena = before.problems["jena"].model_copy(update={"split": after.problems["jena"].split})
    train = before.train.model_copy(update={"epochs": 7, "patience": None})
    expected = {"run": after.run, "problems": before.problems | {"jena": jena}, "train": train, "grid": after.grid}
    assert after == before.model_copy(update=expected)
    # All that is not about the changed keys is there as it was, comments too.
    kept = [line for line in text_before.splitlines() if line in text_after.splitlines()]
    assert len(kept) > 0.85 * len(text_before.splitlines())
    assert {line for line in text_before.splitlines() if line.startswith("#")} <= set(kept)
    assert overlay_settings(part, whole) == []
    assert whole.read_text(encoding="utf-8") == text_after


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epoch: 7}", r"params\.yaml with .*part\.yaml: train\.epoch: unknown key \(did you mean epochs\?\)"),
        (
            "grid: {architectures: {gruu: {}}}",
            r"grid\.architectures\.gruu: no such architecture \(did you mean gru\?\)",
        ),
        ("run: [nowhere]", r"run lists 'nowhere', which is not declared"),
        ("train: [", r"part\.yaml, line 1, column 9: not valid YAML"),
        ("- a", r"part\.yaml: must be a mapping"),
        (None, r"part\.yaml: there is no such file"),
    ],
)
def test_a_file_that_would_spoil_the_settings_changes_nothing(tmp_path: Path, text: str | None, message: str) -> None:
    whole, part = tmp_path / "params.yaml", tmp_path / "part.yaml"
    shutil.copy(ROOT / "params.yaml", whole)
    if text is not None:
        part.write_text(text, encoding="utf-8")
    before = whole.read_bytes()
    with pytest.raises(RecastError, match=message):
        overlay_settings(part, whole)
    assert whole.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == (
        ["params.yaml", "part.yaml"] if text else ["params.yaml"]
    )


@pytest.mark.parametrize("file", sorted((ROOT / "grids").glob("*.yaml")), ids=lambda file: file.name)
def test_every_file_of_grids_fits_the_settings(file: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    assert overlay_settings(file, tmp_path / "params.yaml")


SECRET_PLACES: list[tuple[tuple[str, ...], Any]] = [
    (("problems", "nyc", "title"), "from https://ann:hunter2@host/x"),
    ((*JENA, "source"), {"kind": "database", "address": "mysql://h/d?password=hunter2", "query": "q", "time": "t"}),
    ((*JENA, "source"), {"kind": "database", "address": "mysql://ann:hun/ter2@h/d", "query": "q", "time": "t"}),
    ((*JENA, "source"), {"kind": "database", "address": "sqlite:///x", "query": "dblink('pwd=hunter2')", "time": "t"}),
    ((*JENA, "source"), {"kind": "jena", "mirrors": ["https://host/?token=hunter2"]}),
    ((*JENA, "fresh"), {"kind": "http", "url": "https://host/x.csv?api_key=hunter2"}),
    ((*JENA, "fresh"), {"kind": "http", "url": ["https://host/x.csv", "https://ann:hunter2@host/x.csv"]}),
    (("runner", "address"), "ray://ann:hunter2@host:10001"),
    (("train", "epochs"), "postgresql://ann:hunter2@host"),
    (("problems", "https://ann:hunter2@host"), {}),
    (("https://host?sig=hunter2",), {}),
]


@pytest.mark.parametrize(("keys", "value"), SECRET_PLACES)
def test_a_password_is_refused_wherever_it_is_and_not_shown(
    read: Callable[[Any], Settings], keys: tuple[str, ...], value: Any
) -> None:
    with pytest.raises(RecastError, match="a password must not stand in the file: write") as raised:
        read(edited(keys, value))
    assert "hunter2" not in str(raised.value)
    assert "ter2" not in str(raised.value)


def test_a_password_may_come_from_the_environment(read: Callable[[Any], Settings]) -> None:
    fresh = {"kind": "http", "url": "https://ann:${PASSWORD}@host/x.csv?token=${TOKEN}"}
    source = {"kind": "table", "path": "x.csv", "time": "t"}
    changed = edited((*JENA, "source"), source)
    changed["problems"]["jena"]["fresh"] = fresh
    assert read(changed).problems["jena"].model_dump()["fresh"]["url"] == fresh["url"]


def repeat_aliases(first: str, repeated: str) -> str:
    """Lines each of which stands for nine times the one before it."""
    names = ["a", *(f"b{i}" for i in range(12))]
    lines = [repeated.format(", ".join([f"*{before}"] * 9)) for before in names]
    return "\n".join(
        [f"a: &a {first}", *(f"{name}: &{name} {line}" for name, line in zip(names[1:], lines, strict=False))]
    )


BOMB, MERGE_BOMB = repeat_aliases("[1, 2, 3]", "[{}]"), repeat_aliases("{x: 1}", "{{<<: [{}]}}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: &a {b: *a}", r"params\.yaml, line 1: \*a stands for something that contains it; write it out"),
        ("a: &a\n- 1\n- [*a]", r"params\.yaml, line 3: \*a stands for something that contains it"),
        ("a: " + "[" * 5000, r"params\.yaml, line 1: nested more than 50 levels deep"),
        ("a: " + "{a: " * 100_000, r"params\.yaml, line 1: nested more than 50 levels deep"),
        ("\n".join(f"{'  ' * i}a:" for i in range(2000)), r"params\.yaml, line 50: nested more than 50 levels deep"),
        (BOMB, r"params\.yaml, line \d+: the file has more than 100,000 values, with its aliases written out"),
        (MERGE_BOMB, r"the file has more than 100,000 values"),
        ("a: [" + "1, " * 200_000 + "1]", r"the file has more than 100,000 values"),
        ("a: 2020-13-45", r"params\.yaml: not valid YAML: month must be in 1..12"),
        ("a: " + "9" * 5000, r"params\.yaml: (not valid YAML|a: the number is too large)"),
        ("a: 0x" + "f" * 5000, r"params\.yaml: a: the number is too large"),
        ("2020-01-01: 1", r"params\.yaml: 2020-01-01: a key must be text; put it in quotes"),
        ("{[1, 2]: 3}", r"params\.yaml"),
        ("a: *b", r"params\.yaml, line 1, column 4: not valid YAML: found undefined alias"),
        ("a: 1\n---\nb: 2", r"params\.yaml, line 2, column 1: not valid YAML"),
    ],
    ids=lambda part: str(part)[:30],
)
def test_a_file_that_would_take_for_ever_or_break_the_parser_is_refused(
    read: Callable[[Any], Settings], content: str, message: str
) -> None:
    with pytest.raises(RecastError, match=message):
        read(content)


def test_an_alias_may_save_writing(read: Callable[[Any], Settings]) -> None:
    text = yaml(document()).replace('"problems": {"jena": {', '"problems": {"jena": &jena {')
    station = json.dumps(document()["problems"]["station"])
    assert read(text.replace(station, "*jena")).problems["station"] == read(text).problems["jena"]


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ((*JENA, "source", "kind"), {"a": 1}, "problems.jena.source.kind: must be one of database, jena, nyc, que"),
        ((*JENA, "source", "kind"), ["jena"], "problems.jena.source.kind: must be one of database, jena, nyc, que"),
        ((*JENA, "source", "kind"), None, "problems.jena.source.kind: missing; it must be one of database, jena"),
        ((*JENA, "source"), "jena", "problems.jena.source: must be"),
        ((*JENA,), [1], "problems.jena: must be"),
        ((*JENA, "split"), {"kind": {"a": 1}}, "problems.jena.split"),
        ((*JENA, "fresh"), {"kind": {"a": 1}}, "problems.jena.fresh.kind: must be one of"),
        (("runner", "kind"), {"a": 1}, "runner.kind: must be"),
        (("problems", "n" * 300), {}, "must be at most 100 characters long"),
        (("problems", "station", "source"), {"kind": "station", "rows": 10**15}, "problems.station.source"),
        (("problems", "station", "source"), {"kind": "station", "years": 1e300}, "problems.station.source"),
        ((*JENA, "window", "lookback"), "99999999999999d", "problems.jena.window.lookback"),
        ((*JENA, "window", "lookback"), "1e5d", "problems.jena.window.lookback"),
    ],
)
def test_a_value_of_another_kind_is_named(
    read: Callable[[Any], Settings], keys: tuple[str, ...], value: Any, message: str
) -> None:
    with pytest.raises(RecastError) as raised:
        read(edited(keys, value))
    assert message in str(raised.value)


# How `run` may be written, and what follows it.
RUN_LISTS = {
    "flow": "run: [jena]   # these\n",
    "block": "run:\n- jena\n- nyc   # the second\n",
    "block with a comment": "run:   # these\n  - jena   # the first\n  - nyc\n",
    "block with comments between": "run:   # these\n  # of old\n  - jena\n  # of the package\n  - nyc\n\n# next\n",
    "block below a comment": "run:\n  # these\n  - jena\n  - nyc\n",
    "block below a comment at the margin": "run:\n# these\n- jena   # first\n- nyc\n",
    "flow over lines": "run: [jena,   # the first\n  nyc]\n",
    "one": "run:  # only this\n- jena\n\n\n# next: the problems\n",
}


@pytest.mark.parametrize("name", RUN_LISTS)
@pytest.mark.parametrize("part", ["run: [jena, nyc, station]", "run: [nyc]", "run:\n- station   # new\n"])
def test_a_list_keeps_its_style_and_its_comments(tmp_path: Path, name: str, part: str) -> None:
    """What `recast use` and `recast new` write is YAML however the file is written, and nothing else is changed."""
    sections = "\n".join(f"{json.dumps(key)}: {yaml(value)}" for key, value in document().items() if key != "run")
    whole, other = tmp_path / "params.yaml", tmp_path / "part.yaml"
    whole.write_text(RUN_LISTS[name] + sections, encoding="utf-8")
    other.write_text(part, encoding="utf-8")
    before = load_settings(whole)
    overlay_settings(other, whole)
    after, text = load_settings(whole), whole.read_text(encoding="utf-8")
    assert after == before.model_copy(update={"run": tuple(YAML(typ="safe").load(part)["run"])})
    for comment in ("# these", "# next", "# next: the problems"):
        assert (comment in text) == (comment in RUN_LISTS[name]), text
    # Blank lines, and comments about what follows, are still before it.
    *_, following = RUN_LISTS[name].rpartition("\n\n")
    if "# next" in following:
        assert f'{following}"problems"' in text, text


def test_a_section_with_a_comment_may_become_a_single_value(tmp_path: Path) -> None:
    whole, part = tmp_path / "params.yaml", tmp_path / "part.yaml"
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    block = "\n    split:   # by hand\n      train: 0.6\n      validation: 0.2\n"
    whole.write_text(re.sub(r"\n    split: .*\n", block, text, count=1), encoding="utf-8")
    assert load_settings(whole).problems["jena"].split == FractionSplit(train=0.6, validation=0.2)
    for written, meant in SPLITS[:3]:
        part.write_text(f"problems: {{jena: {{split: {json.dumps(written)}}}}}\n", encoding="utf-8")
        overlay_settings(part, whole)
        assert load_settings(whole).problems["jena"].split == meant
        assert "# by hand" in whole.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("alerts",), "https://chat.example.org/hooks/hunter2"),
        (("alerts",), {"log": ["https://chat.example.org/hooks/hunter2"]}),
        (("alerts",), {"webhook": "https://chat.example.org/hooks/hunter2"}),
        (("alerts",), {"webhook": {"url": "https://chat.example.org/hooks/hunter2"}}),
        (("alerts",), {"webhook": {"url": "${HOOK}/hunter2"}}),
        (("alerts",), {"webhook": {"url": ["https://chat.example.org/hooks/hunter2"]}}),
        (("alerts",), {"webhook": {"https://chat.example.org/hooks/hunter2": None}}),
        (("alerts",), {"email": {"to": ["a@b.c"], "sender": "a@b.c", "server": "ann:hunter2@mail"}}),
        ((*JENA, "source"), {"kind": "database", "address": 'ann:hun"ter2@host/d', "query": "q", "time": "t"}),
        ((*JENA, "source"), {"kind": "database", "address": "mysql://ann:80/hunter2@h/d", "query": "q", "time": "t"}),
    ],
)
def test_an_error_does_not_show_a_value_that_may_be_secret(
    read: Callable[[Any], Settings], keys: tuple[str, ...], value: Any
) -> None:
    with pytest.raises(RecastError, match=r"params\.yaml: (alerts|problems\.jena\.source\.address)") as raised:
        read(edited(keys, value))
    assert "ter2" not in str(raised.value)


def test_what_is_not_a_file_is_named(tmp_path: Path) -> None:
    for file, reason in ((tmp_path, "Is a directory"), (tmp_path / ("n" * 300), "File name too long")):
        with pytest.raises(RecastError, match=f"cannot be read: {reason}"):
            parse_settings(file)
