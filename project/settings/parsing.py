"""Reading a settings file: from YAML to checked settings, except the grid's architectures."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from problems.errors import RecastError
from project.paths import PARAMS
from project.settings.explaining import explain_errors
from project.settings.sections import Settings


def parse_settings(file: Path = PARAMS) -> Settings:
    """Read and check the settings, except the grid's architectures, whose code takes seconds to import.

    Raises:
        RecastError: something is wrong; the message names each wrong key, its value and what is allowed.
    """
    # The parser that DVC uses too: both read the same values (1e-3 is a number), and duplicate keys are refused.
    document = read_document(file, YAML(typ="safe"))
    try:
        # Strict, and as JSON: "5" is not a number, but a list may become a tuple.
        return Settings.model_validate_json(json.dumps(document, default=str), strict=True)
    except ValidationError as error:
        raise RecastError(explain_errors(error, file)) from None


def read_document(file: Path, yaml: YAML) -> dict[str, Any]:
    """The keys and values of a file, without any check.

    Raises:
        RecastError: there is no such file, or it is not YAML with keys.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        root = f"; run this in the project's root, where {PARAMS} is" if file.name == PARAMS.name else ""
        raise RecastError(f"{file.absolute()}: there is no such file{root}") from None
    except UnicodeDecodeError as error:
        raise RecastError(f"{file}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    try:
        document = yaml.load(text)
    except YAMLError as error:
        raise RecastError(f"{file}{_describe_yaml_error(error, text)}") from None
    if not isinstance(document, dict):
        raise RecastError(f"{file}: must be a mapping with the keys {', '.join(Settings.model_fields)}")
    return document


def _describe_yaml_error(error: YAMLError, text: str) -> str:
    """What is wrong with a file that is not YAML, to be written after the file's name."""
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return f": not valid YAML: {str(error).splitlines()[0]}"
    mark = error.problem_mark
    line = "".join(text.splitlines()[mark.line : mark.line + 1])
    problem = "a tab; indent with spaces" if line[mark.column :].startswith("\t") else error.problem
    return f", line {mark.line + 1}, column {mark.column + 1}: not valid YAML: {problem}"
