"""TODO: what project.settings.explaining is for."""

import inspect
import json
import re
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from problems.problem import SEQUENCES, TABLE
from project.paths import PARAMS
from project.settings.sections import Settings
from project.spelling import did_you_mean


def explain_errors(
    error: ValidationError, file: Path = PARAMS, model: type[BaseModel] = Settings, prefix: str = ""
) -> str:
    """The errors of a part of the file that `model` checks, a line each; their keys begin with `prefix`."""
    errors = error.errors()
    lines = []
    for each in errors:
        # A list whose values are wrong is called empty too.
        if each["type"] != "too_short" or not any(len(other["loc"]) > len(each["loc"]) for other in errors):
            key, what = _explain_error(dict(each), model)
            lines.append(f"{file}: {'.'.join([prefix, *key] if prefix else key)}: {what}")
    return "\n".join(lines)


_MUST_BE = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_pattern_mismatch": "small letters, digits and _, as it names folders",
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
"""What a value must be, by pydantic's name of the error."""


def _explain_error(error: dict[str, Any], root: type[BaseModel]) -> tuple[list[str], str]:
    """The key of one error, and what is wrong with its value and what is allowed."""
    holder, inner, key = _model_at(root, error["loc"])
    kind, value = error["type"], error["input"]
    fields = holder.model_fields if holder else {}
    field = fields.get(key[-1]) if key else None
    if kind == "extra_forbidden":
        # The kind of a split follows from its other keys.
        allowed = [name for name, each in fields.items() if name != "kind" or each.is_required()]
        return key, f"unknown key{did_you_mean(key[-1], allowed)}; allowed here: {', '.join(allowed)}"
    if kind == "missing":
        return key, f"missing ({field.description})" if field and field.description else "missing"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        kinds = [name for model in inner for name in typing.get_args(model.model_fields["kind"].annotation)]
        must, found = f"must be one of {', '.join(kinds)}", value.get("kind")
        what = (
            f"missing; it {must}"
            if found is None
            else f"{must}; it is {_format_value(found)}{did_you_mean(str(found), kinds)}"
        )
        return [*key, "kind"], what
    if kind == "too_short":
        return key, "must not be empty"
    if kind in _MUST_BE:
        context = error.get("ctx", {}).items()
        bounds = {name: int(b) if isinstance(b, float) and b.is_integer() else b for name, b in context}
        must = _MUST_BE[kind].format(**bounds)
        if must == "a section" and len(inner) == 1:
            must += f" with the keys {', '.join(inner[0].model_fields)}"
        if field and type(None) in typing.get_args(field.annotation):
            must += ", or null"
        hint = did_you_mean(str(value), re.findall(r"'(.*?)'", must)) if kind == "literal_error" else ""
        return key, f"must be {must}; it is {_format_value(value)}{hint}"
    message = error["msg"].removeprefix("Value error, ")
    if inner and (place := _path_to(inner[0], message.split()[0])):
        return [*key, *place], message
    return key, message if isinstance(value, dict | BaseModel) else f"{_format_value(value)}: {message}"


def _format_value(value: Any) -> str:
    """A value as it is written in the file, or its beginning."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _model_at(
    root: type[BaseModel], loc: tuple[int | str, ...]
) -> tuple[type[BaseModel] | None, list[type[BaseModel]], list[str]]:
    """The model that holds the last part of `loc`, the models that may stand there, and `loc` as it is written."""
    candidates: list[type[BaseModel]] = [root]
    holder: type[BaseModel] | None = root
    path: list[str] = []
    for part in loc:
        # Not the value of a key is wrong, but the key itself; or a tag that is not written in the file.
        if part in ("[key]", "<block>", "<blocks>"):
            continue
        if part in (TABLE, SEQUENCES):
            candidates = candidates[:1] if part == TABLE else candidates[1:]
            continue
        tagged = [
            c
            for c in candidates
            if "kind" in c.model_fields and part in typing.get_args(c.model_fields["kind"].annotation)
        ]
        if tagged and not any(part in c.model_fields for c in candidates):
            candidates, holder = tagged, tagged[0]
            continue
        path.append(str(part))
        holder = candidates[0] if candidates else None
        declared = [c for c in candidates if part in c.model_fields]
        if declared:
            holder = declared[0]
            candidates = _models_in(declared[0].model_fields[str(part)].annotation)
    return holder, candidates, path


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models named in an annotation such as dict[str, Problem] or A | B."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in typing.get_args(annotation) for model in _models_in(argument)]


def _path_to(model: type[BaseModel], key: str) -> list[str] | None:
    """Where a section declares a key: itself or one of its parts."""
    if key in model.model_fields:
        return [key]
    for name, field in model.model_fields.items():
        if any(key in part.model_fields for part in _models_in(field.annotation)):
            return [name, key]
    return None
