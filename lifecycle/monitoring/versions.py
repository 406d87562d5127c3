"""The model versions whose forecasts are monitored, and the measure by which each one was selected."""

from ast import literal_eval
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from architectures import REGISTRY
from learning.losses import LOSSES
from learning.measures import MAE, Measure
from learning.objectives import Objective
from lifecycle import forecast_log
from lifecycle.champions import registry
from lifecycle.champions.history import Version
from stages.tracking import store


@dataclass(frozen=True)
class MonitoredVersion:
    """A model version that has made forecasts.

    Attributes:
        label: the name of its trial, for people.
        objective: what it was trained for. Its first measure is the one that selected the trial.
        test_errors: its errors on the test rows by the name of the measure, as far as MLflow has them.
        known_until: the time of the last target that it was trained or selected on.
        validated_from: the time of the last input of the first window that it was selected on; None: that is not known.
    """

    version: int
    label: str
    objective: Objective
    test_errors: Mapping[str, float]
    known_until: np.datetime64
    validated_from: np.datetime64 | None

    @property
    def selection_measure(self) -> Measure:
        return self.objective.selection_measure


def read_monitored_versions(problem: str) -> dict[int, MonitoredVersion]:
    """The versions that have made forecasts, by number. Versions that MLflow no longer has are left out.

    Raises:
        TrackingError: MLflow has failed.
    """
    numbers = forecast_log.read_forecasts(problem)["model_version"].unique().to_list()
    known = registry.list_versions(problem) if numbers else {}
    return {number: _read_version(known[number]) for number in sorted(numbers) if number in known}


def _read_version(version: Version) -> MonitoredVersion:
    with store.translate_errors():
        data = store.get_client().get_run(version.run).data
    validated_from = registry.read_validated_from(version)
    architecture = REGISTRY.get(data.params.get("architecture", ""))
    objective = _objective(data.params)
    if validated_from is None and architecture is not None and not architecture.trainable:
        # Earlier versions of Recast gave a baseline one number for every quantile, and measured it by them on test.
        objective = LOSSES[MAE](())
    tests = {name.removeprefix("test_"): value for name, value in data.metrics.items() if name.startswith("test_")}
    return MonitoredVersion(
        version=version.version,
        label=version.label,
        objective=objective,
        test_errors=tests,
        known_until=registry.read_validated_until(version),
        validated_from=validated_from,
    )


def _objective(parameters: Mapping[str, str]) -> Objective:
    """What a trial was trained for, by the parameters of its MLflow run; those of the oldest runs may lack some."""
    loss = parameters.get("loss", MAE)
    quantiles = literal_eval(parameters.get("quantiles", "(0.5,)"))
    return LOSSES[loss if loss in LOSSES else MAE](quantiles)


@cache
def measure_titles() -> dict[str, str]:
    """The name for people of each measure of forecasts of numbers, by its name in files."""
    objectives = [choose((0.5,)) for choose in LOSSES.values()]
    return {measure.name: measure.title for objective in objectives for measure in objective.measures}
