"""Peak memory of each stage as the rows grow. In training, memory that no file backs must not grow with them.

There is one exception: where a window takes every n-th row, as here, a table of up to 256 MiB is reordered in memory.
That applies to the table of 10,000,000 rows, but not to the one of 30,000,000.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML

from benchmarks.measure import run_and_watch_memory
from project import paths
from project.settings.loading import load_settings
from stages.tables.windows import TableWindows
from stages.training import reading
from stages.training.expansion import list_trials
from stages.training.fit import fit
from stages.training.objectives import choose_objective
from tests.support import checkout

STAGES = ("ingest", "normalize", "window", "train")


def run(quick: bool) -> dict[str, Any]:
    """Peak MiB by stage, each in a process of its own, for a simulated station with a row every ten seconds."""
    sizes = (100_000, 1_000_000) if quick else (100_000, 1_000_000, 10_000_000, 30_000_000)
    table: dict[str, Any] = {}
    for rows in sizes:
        with tempfile.TemporaryDirectory() as name:
            project = checkout.make_checkout(Path(name) / "checkout")
            _write_settings(project.file("params.yaml"), rows)
            project.file("data/raw/station").mkdir()
            peaks = {}
            for stage in STAGES:
                module = [f"stages.{stage}"] if stage != "train" else ["benchmarks.memory", "--train"]
                command = [sys.executable, "-m", *module, "station"]
                peaks[stage] = _measure_peak(command, project.root, project.environment)
            table[f"{rows:,} rows"] = peaks
    return {"unit": "MiB: anonymous memory / with the pages of mapped files", "results": table}


def _write_settings(file: Path, rows: int) -> None:
    """Write the settings of a problem that is a simulated station with `rows` rows."""
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


def _measure_peak(command: list[str], root: Path, environment: dict[str, str]) -> str:
    """Peak anonymous memory of a command, and peak memory with the pages of mapped files."""
    _, peak = run_and_watch_memory(command, root, {**environment, "PYTHONPATH": f"{Path(__file__).parent.parent}"})
    return f"{peak.anonymous:.0f} / {peak.resident:.0f}"


def _train(problem: str) -> None:
    """Train one trial of fifty steps without MLflow in this process."""
    normalized, windowed = paths.stage_folder("normalize", problem), paths.stage_folder("window", problem)
    windows = TableWindows.read(windowed)
    trial = list_trials(load_settings(), problem, windowed)[-1]
    settings = trial.train.model_copy(update={"epochs": 1, "steps_per_epoch": 50})
    data = reading.read_batches(normalized, windowed, torch.device("cpu"))
    fit(
        trial.configuration.architecture,
        trial.configuration.hyperparameters,
        0,
        settings,
        windows.shape,
        choose_objective(windows, settings),
        data,
        torch.device("cpu"),
        Path("checkpoint.pt"),
        lambda state: None,
    )


if __name__ == "__main__":
    _train(sys.argv[2])
