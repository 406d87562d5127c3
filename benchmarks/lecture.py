"""The lecture's experiments D4 to D11 against its published figures: validation MAE, normalised, split `lecture`.

Made by the pipeline itself, three seeds each. On the hourly data the training windows are a sixth of the lecture's,
which begin at every ten minutes, and two columns, max. wv and wd, are missing; all else is the lecture's setting.
"""

from typing import Any

from problems.errors import RecastError
from stages import leaderboard, places
from stages.leaderboard import Row

GRID = "recast use grids/lecture.yaml && recast run jena"

DROPOUT = "dropout=0.1 recurrent_dropout=0.5"
EXPERIMENTS: dict[str, tuple[str, float | None, str]] = {
    "persistence": ("D4 the last temperature", 0.29, ""),
    "dense": ("D5 dense 32", None, "not better than D4"),
    "gru": ("D6 GRU 32", 0.2644, ""),
    f"gru units=[32, 64] activation=[tanh, relu] {DROPOUT} epochs=40": ("D7 stacked GRU, dropout", 0.2619, ""),
    "gru reversed=True initial=keras": ("D8 GRU 32, reversed, Keras's initial weights", None, "worse than D4"),
    "gru reversed=True initial=pytorch": ("D8 GRU 32, reversed", None, "worse than D4"),
    "gru bidirectional=True epochs=40": ("D9 bidirectional GRU 32", 0.2615, ""),
    f"conv_gru {DROPOUT}": ("D10 Conv1D + GRU 32, step 6", None, ""),
    "gru units=64": ("D11 GRU 64", None, ""),
    "gru learning_rate=0.0003": ("D11 GRU 32, learning rate 0.0003", None, ""),
    "gru regressor=32": ("D11 GRU 32, dense 32", None, ""),
    "lstm": ("D11 LSTM 32", None, ""),
    "dense units=128 layers=2": ("D11 dense 2 x 128", None, ""),
}
"""By the configuration's label: the lecture's row, its best validation MAE where it gives one, and what it says."""


def run(quick: bool) -> dict[str, Any]:
    """Read the leaderboard that the pipeline has left.

    Raises:
        RecastError: it is of another grid.
    """
    found = leaderboard.read(places.stage("evaluate", "jena"))
    if found is None or {row.configuration for row in found.rows} != set(EXPERIMENTS):
        raise RecastError(f"data/evaluate/jena holds no leaderboard of the lecture's grid: {GRID}")
    rows = {row.configuration: row for row in found.rows}
    common_sense = rows["persistence"].validation_mae_normalized
    assert common_sense
    return {
        "made by": f"`{GRID}`, then the command above",
        "results": {
            name: _cells(rows[label], published, said) for label, (name, published, said) in EXPERIMENTS.items()
        },
        "windows": ", ".join(f"{count:,} {split}" for split, count in found.windows["windows"].items()),
    }


def _cells(row: Row, published: float | None, said: str) -> dict[str, str]:
    """A row of the table; the test rows are read for the best configuration of each architecture alone."""
    validation, degrees, test = row.validation_mae_normalized, row.validation_mae, row.test_mae
    assert validation and degrees
    return {
        "parameters": f"{row.parameters:,}",
        "lecture": said if published is None else f"{published}",
        "Recast": _spread(validation.mean, validation.deviation, 4),
        "difference": "" if published is None else f"{validation.mean - published:+.4f}",
        "°C": _spread(degrees.mean, degrees.deviation, 3),
        "test °C": _spread(test.mean, test.deviation, 3) if test else "",
    }


def _spread(mean: float, deviation: float | None, digits: int) -> str:
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")
