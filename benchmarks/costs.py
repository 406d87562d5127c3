"""The cost of a trial of each configuration of `grids/all.yaml`: seconds per epoch of 20 steps, and peak memory.

Measured on windows of New York's airports, on one CPU thread, with seed 0. The peak is the largest resident set of the
process; most of it is Python and its libraries. `python -m benchmarks schedule` simulates a cluster with these costs.
"""

import contextlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from infra import server_process, servers
from tests.support import checkout

STEPS = 20


def run(quick: bool) -> dict[str, Any]:
    """Train every configuration once, for an epoch, in one process."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        api = server_process.start(servers.PREFECT)
        try:
            project = checkout.make_checkout(Path(name) / "checkout", PREFECT_API_URL=f"{api}/api")
            _write_settings(project.root, quick)
            project.recast("fetch", "nyc")
            for stage in ("ingest", "normalize", "window"):
                project.run(sys.executable, "-m", f"stages.{stage}", "nyc")
            project.run(sys.executable, "-m", "flows.train", "nyc")
            return {"steps": STEPS, "results": _read_costs(project.file("trials/nyc"))}
        finally:
            server_process.stop(servers.PREFECT)


def _write_settings(root: Path, quick: bool) -> None:
    """Write this project's settings with the grid, one seed and a short epoch."""
    yaml = YAML()
    shutil.copy(checkout.ROOT / "params.yaml", root)
    settings = yaml.load((root / "params.yaml").read_text(encoding="utf-8"))
    grid_settings = yaml.load((checkout.ROOT / "grids/all.yaml").read_text(encoding="utf-8"))
    settings["run"] = ["nyc"]
    settings["problems"]["nyc"]["window"] = grid_settings["problems"]["nyc"]["window"]
    settings["train"] |= grid_settings["train"] | {"epochs": 1, "steps_per_epoch": STEPS, "threads": 1}
    settings["grid"] = {"seeds": [0], "architectures": grid_settings["grid"]["architectures"]}
    if quick:
        settings["grid"]["architectures"] = {"dense": {"units": [8]}, "gru": {"units": [32]}}
    settings["runner"] |= {"kind": "local", "workers": 1, "devices": "cpu"}
    with (root / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(settings, file)


def _read_costs(trials: Path) -> dict[str, Any]:
    """The costs by configuration, of every trial that finished and has weights."""
    costs = {}
    for file in sorted(trials.glob("*/trial.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        notes = json.loads(file.with_name("run.json").read_text(encoding="utf-8"))
        if record["status"] == "finished" and record["parameters"] and notes.get("epoch"):
            costs[record["configuration"]] = {
                "parameters": record["parameters"],
                "seconds": round(notes["training_seconds"] / notes["epoch"], 3),
                "peak MiB": notes["peak_bytes"] >> 20,
            }
    return dict(sorted(costs.items()))
