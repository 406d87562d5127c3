"""Reading a settings file: from YAML to checked settings, except the grid's architectures."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

from problems.addresses import PASSWORD_RULE
from problems.errors import RecastError
from problems.passwords import find_password
from project.paths import PARAMS
from project.settings.explaining import explain_errors
from project.settings.sections import Settings

MAX_DEPTH = 50
"""How deeply settings may be nested. A parser fails at some depth, and settings need less than ten levels."""

MAX_VALUES = 100_000
"""How many values a file may have. Aliases make billions of a few lines."""

MAX_INTEGER_BITS = 1024


def parse_settings(file: Path = PARAMS) -> Settings:
    """Read and check the settings, except the grid's architectures, whose code takes seconds to import.

    Raises:
        RecastError: something is wrong; the message names each wrong key, its value and what is allowed.
    """
    # The parser that DVC uses too: both read the same values (1e-3 is a number), and duplicate keys are refused.
    document = read_document(file, YAML(typ="safe"))
    _check_values(document, file)
    text = json.dumps(document, default=str)
    try:
        # Strict, and as JSON: "5" is not a number, but a list may become a tuple.
        return Settings.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise RecastError(explain_errors(error, json.loads(text), file)) from None


def read_document(file: Path, yaml: YAML) -> dict[str, Any]:
    """The keys and values of a file, without any check of them.

    Raises:
        RecastError: the file cannot be read, or it is not YAML with keys.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        root = f"; run this in the project's root, where {PARAMS} is" if file.name == PARAMS.name else ""
        raise RecastError(f"{file.absolute()}: there is no such file{root}") from None
    except OSError as error:
        raise RecastError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RecastError(f"{file}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    _check_size(text, file)
    try:
        document = yaml.load(text)
    except YAMLError as error:
        raise RecastError(f"{file}{_describe_yaml_error(error, text)}") from None
    # Of values such as 2020-13-45, the parser raises whatever Python raises of them.
    except Exception as error:
        raise RecastError(f"{file}: not valid YAML: {_first_line(error)}") from None
    if not isinstance(document, dict):
        raise RecastError(f"{file}: must be a mapping with the keys {', '.join(Settings.model_fields)}")
    return document


def _check_size(text: str, file: Path) -> None:
    """Check that a YAML file is not too large, once each alias is replaced by what it stands for.

    Raises:
        RecastError: it is, it is nested too deeply, or an alias stands for what it is in.
    """
    sizes: dict[str, int] = {}
    # The collections that have begun, from the outermost on: their anchors, and how many values each has so far.
    anchors: list[str | None] = [None]
    counts = [0]
    # What is not YAML, whoever reads the file reports: so far, the file was small enough for that.
    with suppress(YAMLError):
        for event in YAML(typ="safe").parse(text):
            place = f"{file}, line {event.start_mark.line + 1}"
            if isinstance(event, CollectionStartEvent):
                anchors.append(event.anchor)
                counts.append(1)
                if len(counts) > MAX_DEPTH:
                    raise RecastError(
                        f"{place}: nested more than {MAX_DEPTH} levels deep; settings need fewer than ten"
                    )
                continue
            if isinstance(event, CollectionEndEvent):
                anchor, count = anchors.pop(), counts.pop()
            elif isinstance(event, ScalarEvent):
                anchor, count = event.anchor, 1
            elif isinstance(event, AliasEvent):
                if event.anchor in anchors:
                    raise RecastError(f"{place}: *{event.anchor} stands for something that contains it; write it out")
                anchor, count = None, sizes.get(event.anchor, 1)
            else:
                continue
            if anchor is not None:
                sizes[anchor] = count
            counts[-1] += count
            if counts[-1] > MAX_VALUES:
                raise RecastError(
                    f"{place}: the file has more than {MAX_VALUES:,} values, with its aliases written out"
                )


def _check_values(value: Any, file: Path, path: tuple[str, ...] = ()) -> None:
    """Check what the settings' own rules cannot: no value may be a password, whatever its key is.

    Raises:
        RecastError: one is, or a key or a value cannot be passed on to the rules.
    """
    place = f"{file}: {'.'.join(path)}"
    if isinstance(value, dict):
        for key, inner in value.items():
            # A number that names a problem or a column may be written without quotes.
            if not isinstance(key, str | int | float | None):
                raise RecastError(f"{file}: {'.'.join([*path, str(key)])}: a key must be text; put it in quotes")
            _check_values(str(key), file, (*path, str(key)))
            _check_values(inner, file, (*path, str(key)))
    elif isinstance(value, list | tuple | set):
        for i, inner in enumerate(value):
            _check_values(inner, file, (*path, str(i)))
    elif isinstance(value, str) and find_password(value) is not None:
        raise RecastError(f"{place}: {PASSWORD_RULE}")
    elif isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
        raise RecastError(f"{place}: the number is too large")


def _describe_yaml_error(error: YAMLError, text: str) -> str:
    """What is wrong with a file that is not YAML, to be written after the file's name."""
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return f": not valid YAML: {_first_line(error)}"
    mark = error.problem_mark
    line = "".join(text.splitlines()[mark.line : mark.line + 1])
    is_tab = line[mark.column :].startswith("\t")
    problem = "a tab; indent with spaces" if is_tab else error.problem or error.context
    return f", line {mark.line + 1}, column {mark.column + 1}: not valid YAML: {problem}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
