"""The sequence problems compared with published figures: Bai, Kolter and Koltun 2018 (T1 to T11), and IMDB (P2 to P5).

The pipeline itself produced these results with the grids of these names: the paper's TCN, and one size of each
recurrent network, with as many weights as the paper's. The paper searched more widely for its recurrent networks. The
table shows the best configuration of each architecture by validation, evaluated on the test sequences: mean and
standard deviation over seeds.

IMDB: LSTM and ConvNet reach the required accuracy, the ConvNet with a step size of 0.0003. At the lecture's 0.0001 it
is worse by validation, and still improving in its tenth epoch (one seed on the test reviews: 85.28).

T3: the paper's ranking holds. GRU and TCN solve the problem, the GRU in 7 epochs of the budget's 10. LSTM and RNN are
no better than the constant answer 1, as in the paper, after 7 and 9 epochs; their best epochs were the second and the
fourth.

T4: the TCN is far ahead, as in the paper, and still improving in the tenth and last epoch. All recurrent networks are
as good as guessing the ten digits, 0.0204, as in the paper, so their order says nothing; one GRU of three began to
improve. Here gradients are clipped after the backward pass, and RMSprop averages with 0.9 as Keras's does. The paper's
code clips before the backward pass, which has no effect, and averages with 0.99.

T5: the paper's ranking holds, except that LSTM and GRU, which are 0.02 apart in the paper, swap places by 0.03.

T6: the paper's ranking holds. All figures are worse: of 20 epochs at one step size, the last or the one before was
still the best. The paper's code trains for 100 epochs and lowers the step size, and the paper searched for the step
size of each recurrent network.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from problems.errors import RecastError
from project import paths
from stages.evaluation import leaderboard
from stages.evaluation.leaderboard import LeaderboardRow, Spread


@dataclass(frozen=True)
class Published:
    """The published figures of a problem.

    Attributes:
        row: the row of the lecture.
        title: the measure and its unit, for people.
        measure: the name of Recast's measure.
        figures: the published figures by architecture; None for an architecture without one.
        convert: turns Recast's measure into the published one.
        more_is_better: larger figures are better; otherwise smaller ones are.
    """

    row: str
    title: str
    measure: str
    figures: Mapping[str, float | None]
    convert: Callable[[float], float] = float
    more_is_better: bool = False


def _by_architecture(
    lstm: float | None, gru: float | None, rnn: float | None, tcn: float | None
) -> dict[str, float | None]:
    return {"lstm": lstm, "gru": gru, "simple_rnn": rnn, "tcn": tcn}


PUBLISHED = {
    "imdb": Published(
        "P2 to P5",
        "test accuracy, %; LSTM and ConvNet must reach 86",
        "accuracy",
        {"simple_rnn": None, "lstm": 86, "convnet": 86, "conv_gru": None},
        more_is_better=True,
    ),
    "mnist": Published(
        "T1", "test accuracy, %", "accuracy", _by_architecture(87.2, 96.2, 21.5, 99.0), more_is_better=True
    ),
    "permuted_mnist": Published(
        "T2", "test accuracy, %", "accuracy", _by_architecture(85.7, 87.3, 25.3, 97.2), more_is_better=True
    ),
    "adding": Published(
        "T3", "mean squared error", "rmse", _by_architecture(0.164, 5.3e-5, 0.177, 5.8e-5), lambda rmse: rmse * rmse
    ),
    "copy_memory": Published(
        "T4", "cross-entropy, nats", "cross_entropy", _by_architecture(0.0204, 0.0197, 0.0202, 3.5e-5)
    ),
    "jsb_chorales": Published(
        "T5", "negative log-likelihood, nats per step", "nll", _by_architecture(8.45, 8.43, 8.91, 8.10)
    ),
    "nottingham": Published(
        "T6", "negative log-likelihood, nats per step", "nll", _by_architecture(3.29, 3.46, 4.05, 3.07)
    ),
}
"""By the problem's name."""

ROWS_WITHOUT_GRID = "T7 to T11 (public corpora)"
"""The rows for which Recast has no grid."""


def run(quick: bool) -> dict[str, Any]:
    """Read the leaderboards that the pipeline has left; problems without one are listed as missing.

    Raises:
        RecastError: no problem has a leaderboard.
    """
    result: dict[str, Any] = {"made by": "`recast use grids/NAME.yaml && recast run`, then the command above"}
    missing = []
    for problem, published in PUBLISHED.items():
        evaluation = leaderboard.read_leaderboard(paths.stage_folder("evaluate", problem))
        if evaluation is None:
            missing.append(f"{published.row} ({problem})")
            continue
        rows = [row for row in evaluation.rows if row.selected]
        result[f"{problem}, {published.row}: {published.title}"] = {
            row.configuration: _tabulate_row(row, published) for row in rows
        }
        comparable = {row.architecture: row for row in rows if published.figures.get(row.architecture) is not None}
        if problem != "imdb":
            result[f"{problem}, best first"] = ", ".join(_rank_architectures(published, comparable))
            result[f"{problem}, best first in the paper"] = ", ".join(_rank_architectures(published, None))
    if len(missing) == len(PUBLISHED):
        command = "recast use grids/jsb_chorales.yaml && recast run"
        raise RecastError(f"data/evaluate has no leaderboard of these problems; make one, for example: {command}")
    return result | {"not in this run": ", ".join([*missing, ROWS_WITHOUT_GRID])}


def _rank_architectures(published: Published, rows: Mapping[str, LeaderboardRow] | None) -> list[str]:
    """The architectures, best first: by the test figures of `rows`, or in the paper where `rows` is None."""
    figures = {
        name: figure if rows is None else published.convert(rows[name].test[published.measure].mean)
        for name, figure in published.figures.items()
        if figure is not None and (rows is None or name in rows)
    }
    return sorted(figures, key=lambda name: figures[name], reverse=published.more_is_better)


def _tabulate_row(row: LeaderboardRow, published: Published) -> dict[str, str]:
    test, figure = row.test[published.measure], published.figures.get(row.architecture)
    spread = Spread.of([published.convert(value) for value in test.values])
    deviation = "" if spread.deviation is None else f" ± {spread.deviation:.2g}"
    return {
        "parameters": f"{row.parameters:,}",
        "seeds": str(len(test.values)),
        "published": "" if figure is None else f"{figure:g}",
        "Recast, test": f"{spread.mean:.4g}{deviation}",
    }
