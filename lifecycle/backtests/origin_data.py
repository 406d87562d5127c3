"""The table and the windows of each origin, in folders of their own."""

import shutil
from collections.abc import Sequence

from lifecycle.backtests.plan import Origin, set_origin
from problems.errors import RecastError
from problems.problem import Problem
from project import paths
from project.settings.sections import Settings
from stages.normalize import normalize
from stages.window import window


def prepare_origin(name: str, problem: Problem, settings: Settings, origin: Origin) -> None:
    """Write the table and the windows of an origin, as the stages `normalize` and `window` do.

    Raises:
        RecastError: a part of the split has no window.
    """
    problem_then = set_origin(problem, origin)
    normalized, windowed = (paths.stage_folder(stage, name, origin.name) for stage in ("normalize", "window"))
    try:
        scale = problem_then.table.scale or settings.normalize.scale
        normalize(problem_then, scale, paths.stage_folder("ingest", name), normalized)
        window(problem_then, settings.window.stride, normalized, windowed)
    except RecastError as error:
        raise RecastError(
            f"origin {origin.name}: {error}. Choose fewer origins or other lengths for the backtest: --origins, "
            "--every, --test, --validation, --train"
        ) from None


def remove_other_origins(problem: str, origins: Sequence[Origin]) -> None:
    """Delete the data of all other origins, but not the trials."""
    names = {origin.name for origin in origins} | {"trials", "result"}
    for folder in paths.backtest_folder(problem).glob("*/"):
        if folder.name not in names:
            shutil.rmtree(folder)
