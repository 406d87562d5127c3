"""Recast's own network for 24 hours ahead, what an ensemble adds, and what each setting is worth.

MAE in °C, mean and deviation over five seeds, split `half`. Rows after the first network differ from it in the one
setting that they name. The best single network and the best ensemble, by validation, are tried on the test rows, and so
are the baselines; nothing else reads them. What counts for Jena is the step size that falls to 0 (0.04 °C) and the
calendar and the climatology among the inputs (0.04 °C, `inputs measured` is without); 32 units are as good as 128, a
residual adds nothing, an ensemble of five 0.02 °C. Of New York there is half a year to learn from: by validation, in
summer, persistence is better than any of these networks, in the autumn of the test rows the network is.
"""

from typing import Any

from problems.errors import RecastError
from project import paths
from project.settings.grid import Configuration, expand_grid
from project.settings.loading import load_settings
from project.settings.sections import Settings
from stages.evaluation import leaderboard
from stages.evaluation.leaderboard import Spread

GRID = "recast use grids/best.yaml && recast run"
PUBLISHED = 2.39
"""Chollet, "Deep Learning with Python", 2nd ed., 10.4: the best test MAE of the book, a stacked GRU with dropout."""


def run(quick: bool) -> dict[str, Any]:
    """Read the leaderboards that the pipeline has left.

    Raises:
        RecastError: they are of another grid, or not there.
    """
    settings = load_settings()
    names = _names(settings)
    about: dict[str, Any] = {"made by": f"`{GRID}`, then the command above"}
    for problem in settings.run:
        found = leaderboard.read_leaderboard(paths.stage_folder("evaluate", problem))
        rows = {row.configuration: row for row in found.rows} if found else {}
        if not {"persistence", next(iter(names))} <= rows.keys() <= names.keys():
            raise RecastError(f"data/evaluate/{problem} holds no leaderboard of this grid: {GRID}")
        about[problem] = {
            name: {
                "parameters": f"{rows[label].parameters:,}",
                "validation": _spread(rows[label].validation_mae),
                "test": _spread(rows[label].test_mae),
            }
            for label, name in names.items()
            if label in rows
        }
    about["published for jena"] = f"{PUBLISHED} °C on the test rows, the book's best single network"
    return about


def _names(settings: Settings) -> dict[str, str]:
    """What to call each configuration: the network, or what of it is another one."""
    found = expand_grid(settings.grid)
    networks = [each for each in found if each.architecture == "gru"]
    names = {each.label: each.architecture for each in found}
    names |= {each.label: f"with {_difference(each, networks[0])}" for each in networks[1:]}
    return names | {networks[0].label: f"{networks[0].label}"}


def _difference(one: Configuration, other: Configuration) -> str:
    """The axes in which two configurations differ, with the first one's values."""
    values, others = one.hyperparameters.model_dump(), other.hyperparameters.model_dump()
    return ", ".join(f"{axis} {value}" for axis, value in values.items() if value != others[axis])


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return f"{spread.mean:.3f}" + ("" if spread.deviation is None else f" ± {spread.deviation:.3f}")
