"""Recast's own network for 24 hours ahead: what an ensemble adds, and what each setting contributes.

MAE in °C, as mean and standard deviation over five seeds, on split `half`. Each row below the first network changes
only the one setting that it names. The best single network and the best ensemble by validation, and the baselines, are
evaluated on the test rows. No other configuration is.

Two things matter for Jena: the step size that decays to 0 (0.04 °C), and the calendar and the climatology among the
inputs (0.04 °C; `inputs measured` is the network without them). 32 units are as good as 128, a residual adds nothing,
and an ensemble of five improves the MAE by 0.02 °C.

For New York there is only half a year to learn from. On the validation rows, in summer, persistence is better than all
of these networks; on the test rows, in autumn, the network is better than persistence. These figures are of the former
settings of `nyc`: a yearly cycle among the inputs, which half a year cannot teach, and half of the rows for training.
With its present settings the default grid's GRU has a test MAE of 3.557 ± 0.027 °C, and persistence one of 4.044 °C, on
other test rows.
"""

from typing import Any

from problems.errors import RecastError
from project import paths
from project.settings.grid import Configuration, expand_grid
from project.settings.loading import load_settings
from project.settings.sections import Settings
from stages.evaluation import leaderboard
from stages.evaluation.leaderboard import LeaderboardRow, Spread

GRID_COMMAND = "recast use grids/best.yaml && recast run"
PUBLISHED_MAE = 2.39
"""Chollet, "Deep Learning with Python", 2nd ed., 10.4: the best test MAE of the book, a stacked GRU with dropout."""


def run(quick: bool) -> dict[str, Any]:
    """Read the leaderboards that the pipeline has left.

    Raises:
        RecastError: they do not exist, or come from another grid.
    """
    settings = load_settings()
    names = _name_configurations(settings)
    result: dict[str, Any] = {"made by": f"`{GRID_COMMAND}`, then the command above"}
    for problem in settings.run:
        evaluation = leaderboard.read_leaderboard(paths.stage_folder("evaluate", problem))
        rows = {row.configuration: row for row in evaluation.rows} if evaluation else {}
        if not {"persistence", next(iter(names))} <= rows.keys() <= names.keys():
            raise RecastError(f"data/evaluate/{problem} has no leaderboard of this grid; make it: {GRID_COMMAND}")
        result[problem] = {name: _tabulate_row(rows[label]) for label, name in names.items() if label in rows}
    result["published for jena"] = f"{PUBLISHED_MAE} °C on the test rows, the book's best single network"
    return result


def _name_configurations(settings: Settings) -> dict[str, str]:
    """The name of every configuration in the table, by label: the network, or the settings in which it differs."""
    configurations = expand_grid(settings.grid)
    networks = [configuration for configuration in configurations if configuration.architecture == "gru"]
    names = {configuration.label: configuration.architecture for configuration in configurations}
    names |= {network.label: f"with {_describe_difference(network, networks[0])}" for network in networks[1:]}
    return names | {networks[0].label: f"{networks[0].label}"}


def _describe_difference(configuration: Configuration, reference: Configuration) -> str:
    """The axes in which two configurations differ, with the values of the first."""
    values, references = configuration.hyperparameters.model_dump(), reference.hyperparameters.model_dump()
    return ", ".join(f"{axis} {value}" for axis, value in values.items() if value != references[axis])


def _tabulate_row(row: LeaderboardRow) -> dict[str, str]:
    return {
        "parameters": "" if row.parameters is None else f"{row.parameters:,}",
        "validation": _format_spread(row.validation.get("mae")),
        "test": _format_spread(row.test.get("mae")),
    }


def _format_spread(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return f"{spread.mean:.3f}" + ("" if spread.deviation is None else f" ± {spread.deviation:.3f}")
