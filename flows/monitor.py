"""The monitor flow: forecasts meet what was observed; what breaks a rule is told, and may start a retraining.

It may be repeated: the same observations give the same figures, and people are told of a broken rule once.
"""

from pathlib import Path

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed

from flows import deployments
from flows.alerts import alert
from lifecycle.champions import registry
from lifecycle.champions.comparison import table_problem
from lifecycle.monitoring import page as monitor_page
from lifecycle.monitoring import rules
from lifecycle.monitoring.rules import Breached, Watched
from problems.errors import RecastError
from project import paths
from project.atomic import replaced_file
from project.progress import console
from project.settings.loading import load_settings
from project.settings.sections import Settings

FINE, BROKEN, NOTHING = "Fine", "Rules broken", "Nothing to tell"
"""How it ends, by the name of its state. A broken rule is no failure of the flow."""


@flow(name="monitor", flow_run_name="monitor {problem}", persist_result=False)
def monitor(problem: str) -> State[None]:
    """Bring the history of what became of a problem's forecasts up to date, and judge the newest figures.

    Args:
        problem: one that params.yaml declares, whose rows have times.

    Raises:
        RecastError: something a person can mend.
    """
    settings = load_settings()
    declared = table_problem(problem, settings)
    ingested = paths.stage("ingest", problem)
    if not (ingested / "table.parquet").exists():
        raise RecastError(f"{ingested / 'table.parquet'} is not there; `recast run {problem}` ingests the rows")
    patience = settings.retrain.patience.total_seconds()
    versions = registry.patiently(lambda: rules.watched(problem), patience)
    found = rules.figures(declared, problem, settings.monitor, ingested, versions)
    history = rules.updated(rules.history(problem), found)
    if history.is_empty():
        message = f"{problem}: no forecast of the log has met an observation yet"
        console.print(message, markup=False, highlight=False)
        return Completed(name=NOTHING, message=message)
    rules.write_history(problem, history)
    champion = registry.champion(problem)
    newest = rules.judged(history, champion.version if champion else None)
    number = int(str(newest["model_version"]))
    version = versions.get(number)
    broken = rules.breaches(settings.monitor, newest, version.test_mae if version else None, declared.unit)
    page = rules.folder(problem) / "monitor.html"
    with replaced_file(page) as temporary:
        text = monitor_page.render(problem, declared, settings.monitor, history, newest, versions, broken)
        temporary.write_text(text, encoding="utf-8")
    registry.patiently(lambda: rules.log(problem, history, versions, page), patience)
    _tell(problem, settings, number, str(newest["day"]), broken, version, page)
    said = _said(problem, newest, declared.unit, broken)
    console.print(said, markup=False, highlight=False, soft_wrap=True)
    create_markdown_artifact(
        f"{said}\n\nPage: `{page}`",
        key=f"monitor-{problem.replace('_', '-')}",
        description="What became of the forecasts",
    )
    return Completed(name=BROKEN if broken else FINE, message=said)


def _said(problem: str, newest: dict[str, object], unit: str, broken: list[Breached]) -> str:
    """The newest figures in a few lines."""
    skill = f", skill {newest['skill']:+.3f}" if newest["skill"] is not None else ""
    mae = f"MAE {newest['mae']:.4g} {unit}".rstrip() if newest["mae"] is not None else "no forecast to judge"
    figures = f"{problem}, {newest['day']}: {mae}{skill}, {newest['forecasts']:,} forecasts"
    return "\n".join([figures, *(f"- {each.rule}: {each.message}" for each in broken)])


def _tell(
    problem: str,
    settings: Settings,
    number: int,
    day: str,
    broken: list[Breached],
    version: Watched | None,
    page: Path,
) -> None:
    """Tell people of rules that are newly broken, and start a retraining where the settings want one."""
    news = rules.to_tell(problem, number, broken)
    retrain = bool(news) and settings.monitor.on_breach == "retrain"
    if news:
        what = "rule is" if len(news) == 1 else "rules are"
        lines = [f"- {each.rule}: {each.message}" for each in news]
        after = ["", f"Version {number}{f' ({version.label})' if version else ''}, up to {day}. Page: {page}"]
        after += ["A retraining is started." if retrain else f"`recast retrain {problem}` trains anew."]
        alert("monitor", f"{problem}: {len(news)} {what} broken", "\n".join([*lines, *after]))
    started = retrain and _started(problem, settings, f"{number}-{day}-{'-'.join(sorted(each.rule for each in news))}")
    rules.note_told(problem, number, broken)
    if retrain and not started:
        # After the note: a retraining that fails here is not begun again each day.
        from flows.retrain import retrain as flow

        flow(problem, force=True)


def _started(problem: str, settings: Settings, reason: str) -> bool:
    """Start what is deployed to retrain; False: nothing is.

    Args:
        reason: the same one starts one run.
    """
    name = f"retrain/{deployments.name(problem, settings.deploy)}"
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
