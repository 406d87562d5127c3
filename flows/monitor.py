"""The monitor flow: compare forecasts with observations. A broken rule sends an alert, and may start a retraining.

It may be repeated: the same observations give the same figures, and a broken rule sends one alert.
"""

from pathlib import Path

from filelock import FileLock
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed

from flows import deployments
from flows.alerts import alert
from flows.retrain import retrain
from learning.measures import MAE
from lifecycle.champions.history import find_champion
from lifecycle.monitoring import alert_state, rules, tracking
from lifecycle.monitoring import page as monitor_page
from lifecycle.monitoring.figures import daily_figures
from lifecycle.monitoring.history import merge_history, monitor_folder, newest_figures, read_history, write_history
from lifecycle.monitoring.rules import BrokenRule
from lifecycle.monitoring.versions import MonitoredVersion, measure_titles, read_monitored_versions
from lifecycle.table_problem import require_table_problem
from problems.errors import RecastError
from problems.problem import Problem
from project import paths
from project.atomic import replace_file
from project.progress import console
from project.retry import retry_while_unreachable
from project.settings.loading import load_settings
from project.settings.sections import Settings
from stages.tables.ingested import read_cadence

FINE, BROKEN, NOTHING = "Fine", "Rules broken", "Nothing to tell"
"""The names of the states in which it may end. A broken rule is not a failure of the flow."""


@flow(name="monitor", flow_run_name="monitor {problem}", persist_result=False)
def monitor(problem: str) -> State[None]:
    """Update the history of how good a problem's forecasts were, and check the newest figures against the rules.

    Args:
        problem: one that params.yaml declares, whose rows have times.

    Raises:
        RecastError: something that a person can fix.
    """
    settings = load_settings()
    declared = require_table_problem(problem, settings)
    paths.STATE.mkdir(exist_ok=True)
    # A person's run and a deployed one write the same files, and would send the same alert.
    with FileLock(paths.STATE / f"monitor-{problem}.lock"):
        state, starts_retraining = _monitor(problem, declared, settings)
    if starts_retraining:
        # After the state of the alerts was recorded: a retraining that fails here is not started again every day.
        retrain(problem, force=True)
    return state


def _monitor(problem: str, declared: Problem, settings: Settings) -> tuple[State[None], bool]:
    """Do everything but a retraining; the final state of the flow, and whether a retraining is to be run here."""
    ingested = paths.stage_folder("ingest", problem)
    if not (ingested / "table.parquet").exists():
        raise RecastError(f"{ingested / 'table.parquet'} does not exist; `recast run {problem}` ingests the rows")
    patience = settings.retrain.patience.total_seconds()
    versions = retry_while_unreachable(lambda: read_monitored_versions(problem), patience, "MLflow")
    figures = daily_figures(declared, problem, settings.monitor, ingested, versions)
    history = merge_history(read_history(problem), figures)
    if history.is_empty():
        message = f"{problem}: no forecast of the log has an observation yet"
        console.print(message, markup=False, highlight=False)
        return Completed(name=NOTHING, message=message), False
    write_history(problem, history)
    champion = find_champion(problem)
    newest = newest_figures(history, champion.version if champion else None)
    version_number = int(str(newest["model_version"]))
    limits = rules.limit_least(settings.monitor, read_cadence(ingested))
    broken = rules.broken_rules(limits, newest, declared.unit)
    page = monitor_folder(problem) / "monitor.html"
    with replace_file(page) as temporary:
        text = monitor_page.render_page(problem, declared, limits, history, newest, versions, broken)
        temporary.write_text(text, encoding="utf-8")
    retry_while_unreachable(lambda: tracking.log_figures(problem, history, versions, page), patience, "MLflow")
    starts_retraining = _act_on_broken_rules(
        problem, settings, version_number, str(newest["day"]), broken, versions.get(version_number), page
    )
    summary = _summarize(problem, newest, declared.unit, broken)
    console.print(summary, markup=False, highlight=False, soft_wrap=True)
    create_markdown_artifact(
        f"{summary}\n\nPage: `{page}`",
        key=f"monitor-{problem.replace('_', '-')}",
        description="What became of the forecasts",
    )
    return Completed(name=BROKEN if broken else FINE, message=summary), starts_retraining


def _summarize(problem: str, newest: dict[str, object], unit: str, broken: list[BrokenRule]) -> str:
    """The newest figures in a few lines."""
    measure = rules.measure_of(newest)
    skill = f", skill {newest['skill']:+.3f}" if newest["skill"] is not None else ""
    if measure != MAE and newest["mae_skill"] is not None:
        skill += f" (by MAE {newest['mae_skill']:+.3f})"
    error = "no forecast to judge"
    if newest[measure] is not None:
        error = f"{measure_titles()[measure]} {newest[measure]:.4g} {unit}".rstrip()
    figures = f"{problem}, {newest['day']}: {error}{skill}, {newest['forecasts']:,} forecasts"
    return "\n".join([figures, *(f"- {rule.rule}: {rule.message}" for rule in broken)])


def _act_on_broken_rules(
    problem: str,
    settings: Settings,
    version_number: int,
    day: str,
    broken: list[BrokenRule],
    version: MonitoredVersion | None,
    page: Path,
) -> bool:
    """Send an alert about rules that are newly broken, and start a deployed retraining where the settings ask for one.

    Args:
        day: of the newest figures.
        page: with all figures.

    Returns:
        Whether the settings ask for a retraining, and none is deployed.
    """
    new = alert_state.rules_to_announce(problem, version_number, broken)
    starts_retraining = bool(new) and settings.monitor.on_breach == "retrain"
    if new:
        send_monitor_alert(problem, version_number, day, new, version, page, starts_retraining)
    reason = f"{version_number}-{day}-{'-'.join(sorted(rule.rule for rule in new))}"
    has_started = starts_retraining and _run_deployed_retraining(problem, settings, reason)
    alert_state.record_announced(problem, version_number, broken)
    return starts_retraining and not has_started


def send_monitor_alert(
    problem: str,
    version_number: int,
    day: str,
    new: list[BrokenRule],
    version: MonitoredVersion | None,
    page: Path,
    starts_retraining: bool,
) -> None:
    """Send an alert about rules that are newly broken."""
    subject = "rule is" if len(new) == 1 else "rules are"
    label = f" ({version.label})" if version else ""
    lines = [f"- {rule.rule}: {rule.message}" for rule in new]
    lines += ["", f"Version {version_number}{label}, up to {day}. Page: {page}"]
    lines += ["A retraining is started." if starts_retraining else f"`recast retrain {problem}` trains again."]
    alert("monitor", f"{problem}: {len(new)} {subject} broken", "\n".join(lines))


def _run_deployed_retraining(problem: str, settings: Settings, reason: str) -> bool:
    """Start a run of the deployed retraining; False: none is deployed.

    Args:
        reason: the same reason starts only one run.
    """
    name = f"retrain/{deployments.deployment_name(problem, settings.deploy)}"
    try:
        run_deployment(
            name,
            parameters={"problem": problem, "force": True},
            timeout=0,
            as_subflow=False,
            idempotency_key=f"monitor-{problem}-{reason}",
        )
    except ObjectNotFound:
        return False
    return True
