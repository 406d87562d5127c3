"""Time that a trial takes beyond its training, in a real pipeline: Prefect, worker processes, MLflow, trial folders.

Goal: under 0.3 s per trial once the workers are up.
"""

import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import time_call
from infra import server_process, servers
from tests.support import checkout
from tests.support.checkout import Checkout


def run(quick: bool) -> dict[str, Any]:
    """Seconds per trial on one worker, and those of the training itself.

    The difference of two grids of different sizes gives the seconds, so that start-up cancels out.
    """
    few, many = (4, 12) if quick else (20, 80)
    # Only the Prefect server keeps its state below the current folder.
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        root = Path(name)
        api = f"{server_process.start(servers.PREFECT)}/api"
        try:
            durations, training = {}, {}
            for trials in (few, many):
                project = checkout.make_checkout(root / str(trials), PREFECT_API_URL=api)
                project.settings(
                    runner={**checkout.SETTINGS["runner"], "kind": "local", "workers": 1},
                    grid={"seeds": list(range(trials)), "architectures": {"dense": {"units": [4]}}},
                )
                for stage in ("ingest", "normalize", "window"):
                    project.run(sys.executable, "-m", f"stages.{stage}", "demo")
                command = (sys.executable, "-m", "flows.train", "demo")
                durations[trials] = time_call(lambda project=project, command=command: project.run(*command))
                training[trials] = _sum_training_seconds(project)
        finally:
            server_process.stop(servers.PREFECT)
    per_trial = (durations[many] - durations[few]) / (many - few)
    training_per_trial = (training[many] - training[few]) / (many - few)
    return {
        "trials": [few, many],
        "seconds per trial": round(per_trial, 3),
        "of which training": round(training_per_trial, 3),
        "of which beyond training": round(per_trial - training_per_trial, 3),
        "start-up seconds, once": round(durations[few] - few * per_trial, 1),
    }


def _sum_training_seconds(project: Checkout) -> float:
    """Seconds that the epochs of all trials took, as the trials note them."""
    files = project.root.glob("trials/*/*/run.json")
    return sum(float(json.loads(file.read_text())["training_seconds"]) for file in files)
