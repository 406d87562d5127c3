"""The parameters of runs: the values in effect, and nothing where a parameter has no meaning.

A parameter whose value is null is not logged: nothing clips the gradients, for example.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from architectures import REGISTRY
from learning.answers import ANSWER_KINDS
from problems.durations import Duration, format_duration
from problems.problem import AnyProblem
from project.settings.sections import TrainSettings
from stages.tables.windows import AnyWindows
from stages.training.objectives import choose_objective

_FORECAST = ("loss", "quantiles")
"""The settings of training that also decide what a baseline forecasts: quantiles around its number."""


@dataclass(frozen=True)
class SharedParams:
    """The parameters that all trials of a grid have in common, as text.

    Attributes:
        data: what is forecast from what.
        training: how the networks are trained.
        has_quantiles: quantiles are forecast.
        reads_codes: the networks read codes, such as words.
    """

    data: dict[str, str]
    training: dict[str, str]
    has_quantiles: bool
    reads_codes: bool

    @property
    def of_grid(self) -> dict[str, str]:
        """The parameters of the run of the whole grid."""
        return {**self.data, **self.training}


def describe_shared(problem: AnyProblem, train: TrainSettings, windows: AnyWindows) -> SharedParams:
    """The parameters that all trials on these windows have in common."""
    has_quantiles = bool(choose_objective(windows, train).quantiles)
    unused = {"quantiles"} if not has_quantiles else set()
    if not ANSWER_KINDS[windows.objective].is_number:
        # Classes and labels always have the cross-entropy.
        unused |= {"loss"}
    data = {"target": problem.target, "split": problem.split.model_dump_json(), **problem.window.model_dump()}
    return SharedParams(
        _format(data), _format(train.model_dump(exclude=unused)), has_quantiles, windows.shape.codes is not None
    )


def describe_trial_params(shared: SharedParams, record: Mapping[str, Any]) -> dict[str, str]:
    """The parameters of the run of a trial.

    Args:
        record: the content of its trial.json.
    """
    own = {**record["hyperparameters"], "architecture": record["architecture"], "seed": record["seed"]}
    if not REGISTRY[record["architecture"]].trainable:
        training = {name: shared.training[name] for name in _FORECAST if shared.has_quantiles}
        return {**shared.data, **training, **_format(own)}
    if not shared.reads_codes:
        own.pop("embedding", None)
    if own.get("lookback") is not None and "step" in shared.data:
        step = TypeAdapter(Duration).validate_python(shared.data["step"])
        own["lookback"] = format_duration(own["lookback"] * step)
    # A null among the hyperparameters stands for the value in the settings.
    return {**shared.data, **shared.training, **_format(own)}


def _format(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items() if value is not None}
