"""params.yaml, parsed once into typed, frozen settings.

    python -m stages.settings > params.schema.json

writes the JSON schema by which an editor checks params.yaml while it is typed.
"""

import difflib
import inspect
import json
import typing
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from problems.errors import RecastError
from problems.problem import Problem
from problems.source import Duration

FILE = Path("params.yaml")


class Section(BaseModel):
    """A part of params.yaml: no key that is not declared, no value that changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Ingest(Section):
    attempts: int = Field(3, ge=1, le=20, description="how often each mirror is tried before it is given up")


class Normalize(Section):
    scale: Literal["standard", "range", "none"] = Field(
        "standard", description="standard: mean 0, deviation 1; range: 0 to 1; both by the training rows"
    )


class Window(Section):
    stride: int = Field(1, ge=1, description="use every n-th window of the training split; 1: all")


class Train(Section):
    """How a trial is trained. All of it decides the result, so all of it is part of a trial's key."""

    epochs: int = Field(20, ge=1)
    steps_per_epoch: int | None = Field(
        500, ge=1, description="batches drawn at random for an epoch; null: every window once, shuffled"
    )
    batch_size: int = Field(128, ge=1)
    loss: Literal["mae", "mse", "huber"] = "mae"
    patience: int | None = Field(None, ge=1, description="stop after so many epochs without a better validation MAE")
    clip: float | None = Field(None, gt=0, description="largest norm of the gradient; null: not clipped")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of the forward pass; bfloat16 and float16 are mixed precision"
    )
    threads: int = Field(1, ge=1, description="CPU threads of one trial; another number gives other last bits")


class Bootstrap(Section):
    resamples: int = Field(2000, ge=100, le=1_000_000)
    block: Duration = Field(description="length of a block; longer than the errors stay correlated")
    level: float = Field(0.95, gt=0.5, lt=1, description="of the confidence interval")


class Evaluate(Section):
    bootstrap: Bootstrap
    forecasts: Duration = Field(description="how much of the test split the report draws, forecast against observed")


class Grid(Section):
    """Every combination of the listed values, by architecture, once a seed."""

    seeds: tuple[int, ...] = Field(min_length=1)
    architectures: dict[str, dict[str, list[Any]]] = Field(min_length=1)

    @model_validator(mode="after")
    def _axes_have_values(self) -> "Grid":
        for architecture, axes in self.architectures.items():
            for axis, values in axes.items():
                if not values:
                    raise ValueError(f"{architecture}.{axis} is empty; list at least one value or leave the axis out")
                if any(value in values[:i] for i, value in enumerate(values)):
                    raise ValueError(f"{architecture}.{axis} lists a value twice: {values}")
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be different whole numbers from 0 on, not {list(self.seeds)}")
        return self


class Runner(Section):
    """Where trials are trained. None of it decides a result."""

    kind: Literal["local", "inline"] = Field("local", description="local: processes; inline: this one, to debug")
    workers: int | None = Field(None, ge=1, description="trials at once on CPU; null: one a core")
    slots_per_gpu: int = Field(1, ge=1, description="trials at once on each GPU")
    devices: Literal["auto", "cpu"] = Field("auto", description="auto: every visible GPU, else the CPU")
    bundle: int = Field(1, ge=1, description="trials of one architecture and shape that one task trains")


class Settings(Section):
    """All that a user changes."""

    run: tuple[str, ...] = Field(min_length=1, description="the problems that the pipeline runs; dvc.yaml's matrix")
    problems: dict[str, Problem] = Field(min_length=1)
    ingest: Ingest
    normalize: Normalize
    window: Window
    train: Train
    evaluate: Evaluate
    grid: Grid
    runner: Runner

    @model_validator(mode="after")
    def _run_what_is_declared(self) -> "Settings":
        if unknown := [name for name in self.run if name not in self.problems]:
            raise ValueError(
                f"run: {', '.join(unknown)} not declared under problems, which has {', '.join(self.problems)}"
            )
        if len(set(self.run)) < len(self.run):
            raise ValueError(f"run: a problem is listed twice: {', '.join(self.run)}")
        for name in self.problems:
            if not name.replace("_", "").isalnum() or name != name.lower():
                raise ValueError(f"problems.{name}: a name is small letters, digits and _, as it names folders")
        return self

    def problem(self, name: str) -> Problem:
        """
        Raises:
            RecastError: params.yaml declares no such problem.
        """
        if name not in self.problems:
            raise RecastError(
                f"{FILE}: no problem {name!r}; declared are {', '.join(self.problems)}{_meant(name, self.problems)}"
            )
        return self.problems[name]


def parse(file: Path = FILE) -> Settings:
    """Read and check all but the grid's architectures, whose code takes seconds to import.

    Raises:
        RecastError: names each wrong key, its value and what would be allowed.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecastError(f"{file.absolute()}: not there; run this in the project's root, where {FILE} is") from None
    except UnicodeDecodeError as error:
        raise RecastError(f"{file}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    try:
        # The parser that DVC uses, so that both read the same value (1e-3 is a number), and no key counts twice.
        document = YAML(typ="safe").load(text)
    except YAMLError as error:
        raise RecastError(f"{file}: no valid YAML: {error}") from None
    if not isinstance(document, dict):
        raise RecastError(f"{file}: must be a mapping with the keys {', '.join(Settings.model_fields)}")
    try:
        # Strict, and as JSON: "5" is no number, while a list may become a tuple.
        return Settings.model_validate_json(json.dumps(document, default=str), strict=True)
    except ValidationError as error:
        raise RecastError("\n".join(f"{file}: {_explained(dict(each))}" for each in error.errors())) from None


def load(file: Path = FILE) -> Settings:
    """`parse`, and check the grid's architectures and their axes too.

    Raises:
        RecastError: names each wrong key, its value and what would be allowed.
    """
    from stages.grid import check

    settings = parse(file)
    check(settings.grid)
    return settings


def explained(error: ValidationError, prefix: str) -> str:
    """The errors of a part of the file, a line each, with keys that begin with `prefix`."""
    return "\n".join(f"{FILE}: {_explained({**each, 'loc': (prefix, *each['loc'])})}" for each in error.errors())


def _explained(error: dict[str, Any]) -> str:
    """One line for one error: key, value, what is allowed."""
    model, path = _model_at(error["loc"])
    key = ".".join(str(part) for part in path)
    if error["type"] == "extra_forbidden":
        allowed = list(model.model_fields) if model else []
        return f"{key}: unknown key{_meant(str(path[-1]), allowed)}; allowed here: {', '.join(allowed)}"
    if error["type"] == "missing":
        return f"{key}: missing"
    message = error["msg"].removeprefix("Value error, ")
    value = error["input"]
    shown = "" if isinstance(value, dict | BaseModel) or value is None else f" {json.dumps(value, default=str)}"
    return f"{key}:{shown}: {message[:1].lower()}{message[1:]}" if key else message


def _model_at(loc: tuple[int | str, ...]) -> tuple[type[BaseModel] | None, list[int | str]]:
    """The model that holds the last part of `loc`, and `loc` without the names of union members."""
    candidates: list[type[BaseModel]] = [Settings]
    holder: type[BaseModel] | None = Settings
    path: list[int | str] = []
    for part in loc:
        tagged = [
            c
            for c in candidates
            if "kind" in c.model_fields and part in typing.get_args(c.model_fields["kind"].annotation)
        ]
        if tagged and not any(part in c.model_fields for c in candidates):
            candidates, holder = tagged, tagged[0]
            continue
        path.append(part)
        holder = candidates[0] if candidates else None
        declared = [c for c in candidates if part in c.model_fields]
        if declared:
            holder = declared[0]
            candidates = _models_in(declared[0].model_fields[str(part)].annotation)
    return holder, path


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models named in an annotation such as dict[str, Problem] or A | B."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in typing.get_args(annotation) for model in _models_in(argument)]


def _meant(name: str, allowed: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(allowed), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def schema() -> dict[str, Any]:
    """The JSON schema of params.yaml, with the axes of every registered architecture."""
    from architectures import REGISTRY

    document = Settings.model_json_schema()
    axes = {}
    for name, architecture in sorted(REGISTRY.items()):
        own = architecture.Hyperparameters.model_json_schema()
        axes[name] = {
            "description": architecture.source,
            "type": "object",
            "additionalProperties": False,
            "properties": {
                axis: {"type": "array", "minItems": 1, "items": rule}
                for axis, rule in own.get("properties", {}).items()
            },
        }
    grid = document["$defs"]["Grid"]["properties"]["architectures"]
    grid.update(properties=axes, additionalProperties=False)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "params.yaml of Recast", **document}


if __name__ == "__main__":
    print(json.dumps(schema(), indent=1, ensure_ascii=False))
