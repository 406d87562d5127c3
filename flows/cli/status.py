"""The command that shows what is stale, what runs where, and since when."""

import time
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from flows.cli.app import ProblemArguments, app
from flows.cli.pipeline import server_addresses, server_line
from flows.problem_selection import select_problems
from problems.errors import RecastError
from project import paths
from project.lock import is_pipeline_running
from project.progress import output

if TYPE_CHECKING:
    from project.settings.sections import Settings


@app.command()
def status(problems: ProblemArguments = None) -> None:
    """Show which stages are stale, which trials are done, what runs where and since when, and where the servers are."""
    from flows.dag import stale_stages
    from infra.server_process import running_address
    from infra.servers import WORKER
    from project.settings.parsing import parse_settings

    settings = parse_settings()
    names = select_problems(settings, problems)
    running = is_pipeline_running()
    table = Table("problem", "stale stages", "trials", "newest row", title="Status")
    stale = stale_stages(names) if not running else []
    for name in names:
        stages = [stage.partition("@")[0] for stage in stale if stage.endswith(f"@{name}")]
        # Of a grid that has ended, the stage has listed the trials. To expand the present one takes PyTorch.
        is_complete = not running and "train" not in stages
        trials = _count_listed_trials(name) if is_complete else _count_trials(name, running)
        table.add_row(
            name,
            "?" if running else ", ".join(stages) or "none",
            escape(trials),
            _describe_newest_row(name, settings),
        )
    output.print(table)
    output.print("A pipeline runs in this checkout." if running else "No pipeline runs in this checkout.")
    _show_grids()
    worker = f"runs, its log: {WORKER.log}" if running_address(WORKER) else None
    for title, address in (server_addresses() | {WORKER.title: worker}).items():
        output.print(server_line(title, address), soft_wrap=True)


def _describe_newest_row(problem: str, settings: "Settings") -> str:
    """The time and the age of the newest row that was ingested or accepted since, in red where it is too old."""
    from lifecycle.new_rows.row_age import measure_age
    from problems.problem import Problem

    declared = settings.problem(problem)
    if not isinstance(declared, Problem):
        return "has no times"
    try:
        age = measure_age(declared, paths.raw_folder(problem), paths.stage_folder("ingest", problem))
    except RecastError as error:
        return f"[red]not known: {escape(str(error))}[/]"
    if age is None:
        return "nothing is ingested"
    return f"[red]{age.describe()}[/]" if age.is_stale else age.describe()


def _count_listed_trials(problem: str) -> str:
    """How many trials of a grid that has ended are done and failed."""
    from stages.training.listed_trials import read_listed_trials

    trials = read_listed_trials(paths.stage_folder("train", problem))
    return _format_counts(len(trials), sum(trial.status == "failed" for trial in trials), 0)


def _count_trials(problem: str, running: bool) -> str:
    """How many trials of the grid are done, failed and under way."""
    from project.settings.loading import load_settings
    from stages.training.expansion import list_trials
    from stages.training.outcomes import read_outcome
    from stages.training.trials import DamagedTrial, read_run_notes, trial_folder

    settings, windowed = load_settings(), paths.stage_folder("window", problem)
    if not (windowed / "windows.json").exists():
        return "not known until the stage `window` has run"
    trials = list_trials(settings, problem, windowed)
    outcomes, damaged = {}, []
    for trial in trials:
        try:
            outcomes[trial.key] = read_outcome(trial)
        except DamagedTrial:
            damaged.append(f"{trial.label}: damaged; the next run trains it again")
    failed = sum(outcome is not None and outcome.status == "failed" for outcome in outcomes.values())
    unfinished = [trial for trial in trials if outcomes.get(trial.key) is None]
    begun = [trial for trial in unfinished if trial.key in outcomes and trial_folder(trial).exists()]
    epochs = {trial.label: read_run_notes(trial_folder(trial)).get("epoch", 0) for trial in begun}
    under_way = [
        f"{label}: epoch {epoch}" if running else f"{label}: {epoch} epochs kept" for label, epoch in epochs.items()
    ]
    return "\n".join([_format_counts(len(trials), failed, len(unfinished)), *damaged, *under_way])


def _format_counts(trials: int, failed: int, unfinished: int) -> str:
    return f"{trials - unfinished - failed} of {trials} done" + (f", {failed} failed" if failed else "")


def _show_grids() -> None:
    """Print a table of each grid that is being trained: devices, slots, what runs there, queue and time left."""
    from infra.devices.status import running_grids

    grids = running_grids()
    if not grids:
        output.print("No grid is being trained.")
    for grid in grids:
        seconds = grid.seconds_left
        left = "not known, as no similar trial has ended here" if seconds is None else _format_seconds(seconds)
        caption = f"{grid.queued} more wait; time left: {left}"
        table = Table(
            "device", "slots", "memory reserved", "runs", "for", "of about", title=grid.title, caption=caption
        )
        for device in grid.devices:
            running = [bundle for bundle in grid.running if bundle.device == device.device]
            memory = "" if device.memory is None else f"{_gib(device.used or 0)} of {_gib(device.memory)}"
            now = time.time()
            table.add_row(
                escape(device.device),
                f"{len(running)} of {device.slots}",
                memory,
                escape("\n".join(bundle.label for bundle in running)),
                "\n".join(_format_seconds(now - bundle.begun) for bundle in running),
                "\n".join("?" if bundle.expected is None else _format_seconds(bundle.expected) for bundle in running),
            )
        output.print(table)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _format_seconds(seconds: float) -> str:
    """A length of time in its two largest units."""
    whole = max(0, round(seconds))
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
