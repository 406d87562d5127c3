"""Errors in params.yaml in plain English: the key, its value and what is allowed."""

import inspect
import json
import re
import typing
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from problems.problem import SEQUENCES_TAG, TABLE_TAG
from project.paths import PARAMS
from project.settings.sections import Settings
from project.spelling import did_you_mean


def explain_errors(
    error: ValidationError, document: Any, file: Path = PARAMS, model: type[BaseModel] = Settings, prefix: str = ""
) -> str:
    """The errors of a part of the file, one line for each wrong key.

    Args:
        document: this part as it is written, in the types of JSON.
        model: the model that has checked this part.
        prefix: the key of this part in the file; keys in the errors begin with it.
    """
    errors: list[dict[str, Any]] = [dict(details) for details in error.errors()]
    found = [(details, _locate(details, document, model)) for details in errors]
    outer_keys = {location.key[:i] for _, location in found for i in range(len(location.key))}
    by_fault: dict[tuple[_Location, bool], list[dict[str, Any]]] = {}
    for details, location in found:
        is_name = details["loc"][-1:] == ("[key]",)
        # Where a part of a value is wrong, pydantic also says that the value is not of the key's other types, and calls
        # a list empty.
        if is_name or location.key not in outer_keys:
            by_fault.setdefault((location, is_name), []).append(details)
    lines = []
    for (location, _), faults in by_fault.items():
        key, fault = _explain_key(faults, location)
        # An address in place of a key may be a secret too.
        shown = ["***" if "://" in part else part for part in key]
        lines.append(f"{file}: {'.'.join([prefix, *shown] if prefix else shown)}: {fault}")
    return "\n".join(lines)


_MUST_BE = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_pattern_mismatch": "small letters, digits and _, because it names folders",
    "string_too_short": "at least {min_length} characters long",
    "string_too_long": "at most {max_length} characters long",
    "list_type": "a list, in brackets",
    "tuple_type": "a list, in brackets",
    "too_short": "a list of at least {min_length} values",
    "too_long": "a list of at most {max_length} values",
    "missing": "a longer list",
    "dict_type": "a mapping, such as {{}} or {{key: value}}",
    "model_type": "a section",
    "model_attributes_type": "a section",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
}
"""What a value must be, by pydantic's type of the error."""


class _Location(NamedTuple):
    """Where an error is.

    Attributes:
        key: the parts of the key, as they are written in the file.
        holder: the model that declares the last part; None: no model does.
        inner: the models that may be the value.
    """

    key: tuple[str, ...]
    holder: type[BaseModel] | None
    inner: tuple[type[BaseModel], ...]


def _explain_key(errors: list[dict[str, Any]], location: _Location) -> tuple[tuple[str, ...], str]:
    """The wrong key, and a message with its value and what is allowed.

    Args:
        errors: the errors of one key; there are several where it allows several types, and the value is of none.
    """
    key, holder, inner = location
    error = errors[0]
    kind, value = error["type"], error["input"]
    fields = holder.model_fields if holder else {}
    field = fields.get(key[-1]) if key else None
    if kind == "extra_forbidden":
        # The kind of a split follows from its other keys.
        allowed = [name for name, known_field in fields.items() if name != "kind" or known_field.is_required()]
        return key, f"unknown key{did_you_mean(key[-1], allowed)}; allowed keys: {', '.join(allowed)}"
    if kind == "missing" and not isinstance(error["loc"][-1], int):
        return key, f"missing ({field.description})" if field and field.description else "missing"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        kinds = [name for model in inner for name in typing.get_args(model.model_fields["kind"].annotation)]
        must, given = f"must be one of {', '.join(kinds)}", value.get("kind")
        fault = (
            f"missing; it {must}"
            if given is None
            else f"{must}; it is {_format_value(given)}{did_you_mean(str(given), kinds)}"
        )
        return (*key, "kind"), fault
    # The address of a webhook is a secret, also where it is written in another place of the section.
    shown = None if key[:1] == ("alerts",) else _format_value(value)
    alternatives: list[str] = []
    for error in errors:
        message = error["msg"].removeprefix("Value error, ")
        if error["type"] in ("too_short", "string_too_short") and error["ctx"]["min_length"] == 1:
            return key, "must not be empty"
        if error["type"] in _MUST_BE:
            alternatives.append(_describe_allowed(error, inner))
        elif len(errors) > 1 and message.startswith("write "):
            alternatives.append(message.removeprefix("write "))
        else:
            if inner and (path := _find_path(inner[0], message.split()[0])):
                return (*key, *path), message
            return key, message if shown is None or isinstance(value, dict | BaseModel) else f"{shown}: {message}"
    must = " or ".join(dict.fromkeys(alternatives))
    hint = did_you_mean(str(value), re.findall(r"'(.*?)'", must))
    if field and type(None) in typing.get_args(field.annotation):
        must += ", or null"
    return key, f"must be {must}{'' if shown is None else f'; it is {shown}'}{hint}"


def _describe_allowed(error: dict[str, Any], inner: tuple[type[BaseModel], ...]) -> str:
    """What a value must be by an error of a type in `_MUST_BE`."""
    bounds = {
        name: int(bound) if isinstance(bound, float) and bound.is_integer() else bound
        for name, bound in error.get("ctx", {}).items()
    }
    allowed = _MUST_BE[error["type"]].format(**bounds)
    if allowed == "a section" and len(inner) == 1:
        allowed += f" with the keys {', '.join(inner[0].model_fields)}"
    return allowed


def _format_value(value: Any) -> str:
    """A value as it is written in the file; only its beginning if it is long, and without what may be a password."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    _, at, rest = text.rpartition("@")
    text = f'"***@{rest}' if at else text
    return text if len(text) <= 60 else f"{text[:57]}..."


def _locate(error: dict[str, Any], document: Any, root: type[BaseModel]) -> _Location:
    """Follow the location of an error through the document and the models.

    Pydantic puts the tags and the types of unions into it, which are not in the document.
    """
    candidates: list[type[BaseModel]] = [root]
    holder: type[BaseModel] | None = root
    key: list[str] = []
    value, names_are_free = document, False
    for i, part in enumerate(error["loc"], start=1):
        if part in (TABLE_TAG, SEQUENCES_TAG):
            candidates = candidates[:1] if part == TABLE_TAG else candidates[1:]
            continue
        tagged = [
            model
            for model in candidates
            if "kind" in model.model_fields and part in typing.get_args(model.model_fields["kind"].annotation)
        ]
        if tagged and len(candidates) > 1:
            candidates, holder = tagged, tagged[0]
            continue
        is_index = isinstance(value, list | tuple) and isinstance(part, int) and part < len(value)
        if is_index or (isinstance(value, dict) and part in value):
            value = value[part]
        elif not (error["type"] == "missing" and i == len(error["loc"]) and isinstance(part, str)):
            continue
        key.append(str(part))
        holder = candidates[0] if candidates else None
        declared = [model for model in candidates if part in model.model_fields and not names_are_free]
        names_are_free = False
        if declared:
            holder = declared[0]
            annotation = declared[0].model_fields[str(part)].annotation
            candidates, names_are_free = _list_models(annotation), typing.get_origin(annotation) is dict
    return _Location(tuple(key), holder, tuple(candidates))


def _list_models(annotation: Any) -> list[type[BaseModel]]:
    """The models in an annotation such as dict[str, Problem] or A | B."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in typing.get_args(annotation) for model in _list_models(argument)]


def _find_path(model: type[BaseModel], key: str) -> list[str] | None:
    """The path of a key that a section declares itself or in one of its parts."""
    if key in model.model_fields:
        return [key]
    for name, field in model.model_fields.items():
        if any(key in part.model_fields for part in _list_models(field.annotation)):
            return [name, key]
    return None
