"""Errors in params.yaml in plain English: the key, its value and what is allowed."""

import inspect
import json
import re
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from problems.problem import SEQUENCES_TAG, TABLE_TAG
from project.paths import PARAMS
from project.settings.sections import Settings
from project.spelling import did_you_mean


def explain_errors(
    error: ValidationError, file: Path = PARAMS, model: type[BaseModel] = Settings, prefix: str = ""
) -> str:
    """The errors of a part of the file, one per line.

    Args:
        model: the model that has checked this part.
        prefix: the key of this part in the file; keys in the errors begin with it.
    """
    errors = error.errors()
    lines = []
    for details in errors:
        # Pydantic also calls a list empty whose values are wrong.
        if details["type"] != "too_short" or not any(len(other["loc"]) > len(details["loc"]) for other in errors):
            key, fault = _explain_error(dict(details), model)
            lines.append(f"{file}: {'.'.join([prefix, *key] if prefix else key)}: {fault}")
    return "\n".join(lines)


_MUST_BE = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_pattern_mismatch": "small letters, digits and _, because it names folders",
    "string_too_long": "at most {max_length} characters long",
    "list_type": "a list, in brackets",
    "tuple_type": "a list, in brackets",
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


def _explain_error(error: dict[str, Any], root: type[BaseModel]) -> tuple[list[str], str]:
    """The key of one error, and a message with its value and what is allowed."""
    holder, inner, key = _model_at(root, error["loc"])
    kind, value = error["type"], error["input"]
    fields = holder.model_fields if holder else {}
    field = fields.get(key[-1]) if key else None
    if kind == "extra_forbidden":
        # The kind of a split follows from its other keys.
        allowed = [name for name, known_field in fields.items() if name != "kind" or known_field.is_required()]
        return key, f"unknown key{did_you_mean(key[-1], allowed)}; allowed keys: {', '.join(allowed)}"
    if kind == "missing":
        return key, f"missing ({field.description})" if field and field.description else "missing"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        kinds = [name for model in inner for name in typing.get_args(model.model_fields["kind"].annotation)]
        must, given = f"must be one of {', '.join(kinds)}", value.get("kind")
        fault = (
            f"missing; it {must}"
            if given is None
            else f"{must}; it is {_format_value(given)}{did_you_mean(str(given), kinds)}"
        )
        return [*key, "kind"], fault
    if kind == "too_short":
        return key, "must not be empty"
    if kind in _MUST_BE:
        context = error.get("ctx", {}).items()
        bounds = {
            name: int(bound) if isinstance(bound, float) and bound.is_integer() else bound for name, bound in context
        }
        must = _MUST_BE[kind].format(**bounds)
        if must == "a section" and len(inner) == 1:
            must += f" with the keys {', '.join(inner[0].model_fields)}"
        if field and type(None) in typing.get_args(field.annotation):
            must += ", or null"
        hint = did_you_mean(str(value), re.findall(r"'(.*?)'", must)) if kind == "literal_error" else ""
        return key, f"must be {must}; it is {_format_value(value)}{hint}"
    message = error["msg"].removeprefix("Value error, ")
    if inner and (path := _find_path(inner[0], message.split()[0])):
        return [*key, *path], message
    return key, message if isinstance(value, dict | BaseModel) else f"{_format_value(value)}: {message}"


def _format_value(value: Any) -> str:
    """A value as it is written in the file; only its beginning if it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _model_at(
    root: type[BaseModel], loc: tuple[int | str, ...]
) -> tuple[type[BaseModel] | None, list[type[BaseModel]], list[str]]:
    """Follow the location of an error through the models.

    Returns:
        The model that declares the last part of `loc`, the models that this part may have as its value, and `loc` as
        the keys that are written in the file.
    """
    candidates: list[type[BaseModel]] = [root]
    holder: type[BaseModel] | None = root
    path: list[str] = []
    for part in loc:
        # The key itself is wrong and not its value; or the part is a tag, which is not written in the file.
        if part in ("[key]", "<block>", "<blocks>"):
            continue
        if part in (TABLE_TAG, SEQUENCES_TAG):
            candidates = candidates[:1] if part == TABLE_TAG else candidates[1:]
            continue
        tagged = [
            model
            for model in candidates
            if "kind" in model.model_fields and part in typing.get_args(model.model_fields["kind"].annotation)
        ]
        if tagged and not any(part in model.model_fields for model in candidates):
            candidates, holder = tagged, tagged[0]
            continue
        path.append(str(part))
        holder = candidates[0] if candidates else None
        declared = [model for model in candidates if part in model.model_fields]
        if declared:
            holder = declared[0]
            candidates = _list_models(declared[0].model_fields[str(part)].annotation)
    return holder, candidates, path


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
