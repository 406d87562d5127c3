"""The record of a backtest in MLflow."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from mlflow.entities import Metric

from lifecycle.backtests.result import Backtest, OriginInfo
from stages.evaluation.ranking import group_by_configuration
from stages.tracking import store
from stages.tracking.runs import RunContext, end_pipeline_run
from stages.training.trials import Trial, read_run_notes, trial_folder


@store.translate_errors()
def log_backtest(
    result: Backtest,
    trials: Mapping[str, Sequence[Trial]],
    backtest_context: RunContext,
    contexts: Mapping[str | None, RunContext],
    folder: Path,
) -> None:
    """Log the result to the run of the backtest and to those of the origins, and test errors to the runs of the trials.

    The step of a metric is the number of its origin, and its timestamp is the origin; those of the mean of all origins
    are 0 and the last origin. So logging twice adds nothing.

    Args:
        trials, contexts: the trials and the run of each origin, by the origin's name.
        backtest_context: the run of the backtest.
        folder: the folder with the result and its page.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    client, measure = store.get_client(), result.measure.name
    results = {configuration.configuration: configuration for configuration in result.configurations}
    for step, origin in enumerate(result.origins):
        timestamp = _timestamp(origin)
        values = {f"persistence_test_{measure}": origin.persistence, "persistence_test_mae": origin.persistence_mae}
        if score := result.chosen.by_origin[step]:
            values |= {
                f"best_validation_{measure}": score.validation.mean,
                f"best_test_{measure}": score.test.mean,
                "best_skill": score.skill,
                "best_mae_skill": score.mae_skill,
            }
            client.set_tag(contexts[origin.name].parent, "recast.best", origin.best)
        metrics = _metrics(values, step, timestamp)
        client.log_batch(backtest_context.parent, metrics=metrics)
        client.log_batch(contexts[origin.name].parent, metrics=metrics)
        for label, group in group_by_configuration(trials[origin.name]).items():
            if score := results[label].by_origin[step]:
                for trial, error in zip(group, score.test.values, strict=True):
                    run = read_run_notes(trial_folder(trial))["mlflow_run_id"]
                    client.log_batch(run, metrics=_metrics({f"test_{measure}": error}, step, timestamp))
        end_pipeline_run(contexts[origin.name], len(origin.failed))
    if result.chosen.test:
        mean = {f"mean_test_{measure}": result.chosen.test.mean}
        client.log_batch(backtest_context.parent, metrics=_metrics(mean, 0, _timestamp(result.origins[-1])))
    with store.translate_artifact_errors():
        client.log_artifacts(backtest_context.parent, str(folder), "backtest")
    end_pipeline_run(backtest_context, len(result.failures))


def _timestamp(origin: OriginInfo) -> int:
    """The moment of an origin, in milliseconds since 1970."""
    return round(datetime.fromisoformat(origin.test_from).replace(tzinfo=UTC).timestamp() * 1000)


def _metrics(values: Mapping[str, float | None], step: int, timestamp: int) -> list[Metric]:
    """The values that exist as metrics.

    Args:
        timestamp: in milliseconds since 1970.
    """
    return [Metric(name, value, timestamp, step) for name, value in values.items() if value is not None]
