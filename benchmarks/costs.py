"""What a trial of each configuration of `grids/all.yaml` takes: seconds an epoch of 20 steps, and the peak of memory.

On windows of New York's airports, one thread of the CPU, seed 0. The peak is the largest resident set of the process,
of which Python and its libraries take most. `python -m benchmarks schedule` simulates a cluster with these costs.
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
    """Train each configuration once, for an epoch, in one process."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        api = server_process.start(servers.PREFECT)
        try:
            made = checkout.make_checkout(Path(name) / "checkout", PREFECT_API_URL=f"{api}/api")
            _settings(made.root, quick)
            made.recast("fetch", "nyc")
            for stage in ("ingest", "normalize", "window"):
                made.run(sys.executable, "-m", f"stages.{stage}", "nyc")
            made.run(sys.executable, "-m", "flows.train", "nyc")
            return {"steps": STEPS, "results": _read(made.file("trials/nyc"))}
        finally:
            server_process.stop(servers.PREFECT)


def _settings(root: Path, quick: bool) -> None:
    """The project's own settings with the grid, one seed and a short epoch."""
    yaml = YAML()
    shutil.copy(checkout.ROOT / "params.yaml", root)
    settings = yaml.load((root / "params.yaml").read_text(encoding="utf-8"))
    part = yaml.load((checkout.ROOT / "grids/all.yaml").read_text(encoding="utf-8"))
    settings["run"] = ["nyc"]
    settings["problems"]["nyc"]["window"] = part["problems"]["nyc"]["window"]
    settings["train"] |= part["train"] | {"epochs": 1, "steps_per_epoch": STEPS, "threads": 1}
    settings["grid"] = {"seeds": [0], "architectures": part["grid"]["architectures"]}
    if quick:
        settings["grid"]["architectures"] = {"dense": {"units": [8]}, "gru": {"units": [32]}}
    settings["runner"] |= {"kind": "local", "workers": 1, "devices": "cpu"}
    with (root / "params.yaml").open("w", encoding="utf-8") as out:
        yaml.dump(settings, out)


def _read(trials: Path) -> dict[str, Any]:
    found = {}
    for file in sorted(trials.glob("*/trial.json")):
        about = json.loads(file.read_text(encoding="utf-8"))
        noted = json.loads(file.with_name("run.json").read_text(encoding="utf-8"))
        if about["status"] == "finished" and about["parameters"] and noted.get("epoch"):
            found[about["configuration"]] = {
                "weights": about["parameters"],
                "seconds": round(noted["training_seconds"] / noted["epoch"], 3),
                "peak MiB": noted["peak_bytes"] >> 20,
            }
    return dict(sorted(found.items()))
