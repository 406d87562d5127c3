"""Peak memory of each stage as the rows grow: what is not backed by files must not grow with them in training.

But for one copy: where a window takes every n-th row, as here, a table of up to 256 MiB is reordered in memory, which
the one of 10,000,000 rows is, and the one of 30,000,000 not.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks.measure import watched
from stages.training import reading
from tests.support import checkout

STAGES = ("ingest", "normalize", "window", "train")


def run(quick: bool) -> dict[str, Any]:
    """Peak MiB by stage, in a process of its own each, for a simulated station every ten seconds."""
    sizes = (100_000, 1_000_000) if quick else (100_000, 1_000_000, 10_000_000, 30_000_000)
    found: dict[str, Any] = {}
    for rows in sizes:
        with tempfile.TemporaryDirectory() as name:
            made = checkout.make_checkout(Path(name) / "checkout")
            _station(made.file("params.yaml"), rows)
            made.file("data/raw/station").mkdir()
            measured = {}
            for stage in STAGES:
                module = [f"stages.{stage}"] if stage != "train" else ["benchmarks.memory", "--train"]
                measured[stage] = _peak([sys.executable, "-m", *module, "station"], made.root, made.environment)
            found[f"{rows:,} rows"] = measured
    return {"unit": "MiB: anonymous / with the pages of mapped files", "results": found}


def _station(file: Path, rows: int) -> None:
    """Make the checkout's problem a simulated station of so many rows."""
    yaml = YAML()
    settings = yaml.load(file.read_text())
    settings["run"] = ["station"]
    settings["problems"] = {
        "station": {
            "title": "A simulated station",
            "source": {"kind": "station", "rows": rows, "cadence": "10s", "seed": 0},
            "table": {"features": ["p (mbar)", "T (degC)", "rh (%)"], "target": "T (degC)", "unit": "°C"},
            "split": "half",
            "window": {"lookback": "1h", "step": "1m", "delay": "10m"},
        }
    }
    with file.open("w") as out:
        yaml.dump(settings, out)


def _peak(command: list[str], root: Path, environment: dict[str, str]) -> str:
    """Peak anonymous and whole resident memory of a command."""
    _, peak = watched(command, root, {**environment, "PYTHONPATH": f"{Path(__file__).parent.parent}"})
    return f"{peak.anonymous:.0f} / {peak.whole:.0f}"


def _train(problem: str) -> None:
    """Train one trial of fifty steps, without MLflow, in this process."""
    import torch

    from project import paths
    from project.settings.loading import load_settings
    from stages.tables.windows import TableWindows
    from stages.training.expansion import list_trials
    from stages.training.fit import fit
    from stages.training.objectives import choose_objective

    normalized, windowed = paths.stage_folder("normalize", problem), paths.stage_folder("window", problem)
    windowing = TableWindows.read(windowed)
    trial = list_trials(load_settings(), problem, windowed)[-1]
    settings = trial.train.model_copy(update={"epochs": 1, "steps_per_epoch": 50})
    data = reading.read_batches(normalized, windowed, torch.device("cpu"))
    fit(
        trial.configuration.architecture,
        trial.configuration.hyperparameters,
        0,
        settings,
        windowing.shape,
        choose_objective(windowing, settings),
        data,
        torch.device("cpu"),
        Path("checkpoint.pt"),
        lambda progress: None,
    )


if __name__ == "__main__":
    _train(sys.argv[2])
