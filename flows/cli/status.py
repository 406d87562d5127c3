"""The command that shows what is stale, what runs where, and for how long."""

import time

from rich.markup import escape
from rich.table import Table

from flows.cli.app import Problems, app, chosen
from flows.cli.pipeline import addresses
from project import paths
from project.lock import is_running
from project.progress import results
from project.settings.loading import load_settings
from project.settings.sections import Settings


@app.command()
def status(problems: Problems = None) -> None:
    """Show what is stale, which trials are done, what runs where and for how long, and where the servers are."""
    from flows.dag import stale
    from infra.servers import WORKER, url

    settings = load_settings()
    names = chosen(settings, problems)
    running = is_running()
    table = Table("problem", "stale stages", "trials", title="Status")
    old = stale(names) if not running else []
    for name in names:
        stages = [stage.partition("@")[0] for stage in old if stage.endswith(f"@{name}")]
        table.add_row(name, "?" if running else ", ".join(stages) or "none", escape(_trials(settings, name, running)))
    results.print(table)
    results.print("A pipeline runs in this checkout." if running else "No pipeline runs in this checkout.")
    _show_grids()
    for title, place in {**addresses(), WORKER.title: url(WORKER) and f"runs, its log: {WORKER.log}"}.items():
        results.print(f"{title}: {place or 'not running (recast up starts it)'}", soft_wrap=True)


def _trials(settings: Settings, problem: str, running: bool) -> str:
    """How many trials of the grid are done, failed and under way."""
    from stages.training.outcomes import outcome
    from stages.training.trials import expand, read_run, trial_folder

    windowed = paths.stage("window", problem)
    if not (windowed / "windows.json").exists():
        return "not known before `window` has run"
    trials = expand(settings, problem, windowed)
    ended = [outcome(trial) for trial in trials]
    failed = sum(each is not None and each.status == "failed" for each in ended)
    open_ = [trial for trial, each in zip(trials, ended, strict=True) if each is None]
    begun = [trial for trial in open_ if trial_folder(trial).exists()]
    epochs = {trial.label: read_run(trial_folder(trial)).get("epoch", 0) for trial in begun}
    now = [f"{label}: epoch {epoch}" if running else f"{label}: {epoch} epochs kept" for label, epoch in epochs.items()]
    text = f"{len(trials) - len(open_) - failed} of {len(trials)} done"
    return "\n".join([text + (f", {failed} failed" if failed else ""), *now])


def _show_grids() -> None:
    """A table of each grid that is being trained: devices, slots, what runs there, the queue and the time left."""
    from infra.devices.board import pages

    found = pages()
    if not found:
        results.print("No grid is being trained.")
    for page in found:
        left = "not known: no trial like these has ended here" if page.left is None else _length(page.left)
        caption = f"{page.queued} more wait; time left: {left}"
        table = Table("device", "slots", "memory kept", "runs", "for", "of about", title=page.title, caption=caption)
        for place in page.places:
            here = [each for each in page.running if each.device == place.device]
            kept = "" if place.memory is None else f"{_gib(place.used or 0)} of {_gib(place.memory)}"
            now = time.time()
            table.add_row(
                escape(place.device),
                f"{len(here)} of {place.slots}",
                kept,
                escape("\n".join(each.label for each in here)),
                "\n".join(_length(now - each.begun) for each in here),
                "\n".join("?" if each.expected is None else _length(each.expected) for each in here),
            )
        results.print(table)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _length(seconds: float) -> str:
    """A length of time in its two largest units."""
    whole = max(0, round(seconds))
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
