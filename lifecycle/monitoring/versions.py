"""The model versions whose forecasts are monitored, and the measure by which each one was selected."""

from ast import literal_eval
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from architectures import REGISTRY
from learning.losses import LOSSES
from learning.measures import Measure
from learning.objectives import Objective
from lifecycle import forecast_log
from lifecycle.champions import registry
from lifecycle.champions.history import Version
from stages.tracking import store

MAE = "mae"
"""The name of the measure of versions that do not say by which measure they were selected."""


@dataclass(frozen=True)
class MonitoredVersion:
    """A model version that has made forecasts.

    Attributes:
        label: the name of its trial, for people.
        run: the id of its trial's MLflow run.
        objective: what it was trained for. Its first measure is the one that selected the trial.
        is_baseline: nothing was trained, so that all of its outputs are the same number, not quantiles.
        test_errors: its errors on the test rows by the name of the measure, as far as MLflow has them.
        known_until: the time of the last target that it was trained or selected on.
    """

    version: int
    label: str
    run: str
    objective: Objective
    is_baseline: bool
    test_errors: Mapping[str, float]
    known_until: np.datetime64

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
    architecture = REGISTRY.get(data.params.get("architecture", ""))
    tests = {name.removeprefix("test_"): value for name, value in data.metrics.items() if name.startswith("test_")}
    return MonitoredVersion(
        version=version.version,
        label=version.label,
        run=version.run,
        objective=_objective(data.params),
        is_baseline=architecture is not None and not architecture.trainable,
        test_errors=tests,
        known_until=registry.read_validated_until(version),
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
