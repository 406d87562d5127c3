"""Peak memory of each stage as the rows grow: what is not backed by files must not grow with them in training."""

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests import checkout

STAGES = ("ingest", "normalize", "window", "train")


def run(quick: bool) -> dict[str, Any]:
    """Peak MiB by stage, in a process of its own each, for a simulated station every ten seconds."""
    sizes = (100_000, 1_000_000) if quick else (100_000, 1_000_000, 10_000_000, 30_000_000)
    found: dict[str, Any] = {}
    for rows in sizes:
        with tempfile.TemporaryDirectory() as name:
            made = checkout.make(Path(name) / "checkout")
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
    path = f"{Path(__file__).parent.parent}"
    process = subprocess.Popen(command, cwd=root, env={**environment, "PYTHONPATH": path})
    peaks = {"anonymous": 0, "whole": 0}

    def watch() -> None:
        while process.poll() is None:
            try:
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            except (FileNotFoundError, ProcessLookupError):
                return
            status = dict(line.split(":", 1) for line in lines if ":" in line)
            for name, key in (("anonymous", "RssAnon"), ("whole", "VmRSS")):
                if key in status:
                    peaks[name] = max(peaks[name], int(status[key].split()[0]))
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    if process.wait():
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    watcher.join()
    return f"{peaks['anonymous'] / 1024:.0f} / {peaks['whole'] / 1024:.0f}"


def _train(problem: str) -> None:
    """Train one trial of fifty steps, without MLflow, in this process."""
    import torch

    from stages import batches, places
    from stages.fit import fit
    from stages.normalize import Table
    from stages.settings import load
    from stages.trials import expand
    from stages.window import Windowing

    normalized, windowed = places.stage("normalize", problem), places.stage("window", problem)
    _table, windowing = Table.read(normalized), Windowing.read(windowed)
    trial = expand(load(), problem, windowed)[-1]
    data = batches.read(normalized, windowed, torch.device("cpu"))
    fit(
        trial.configuration.architecture,
        trial.configuration.hyperparameters,
        0,
        trial.train.model_copy(update={"epochs": 1, "steps_per_epoch": 50}),
        windowing.shape,
        data,
        torch.device("cpu"),
        Path("checkpoint.pt"),
        lambda progress: None,
    )


if __name__ == "__main__":
    _train(sys.argv[2])
