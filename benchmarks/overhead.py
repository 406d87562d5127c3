"""Time a trial takes beyond its training, in a real pipeline: Prefect, worker processes, MLflow, trial folders.

Aim: under 0.3 s a trial once workers are up.
"""

import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import seconds
from infra import server_process, servers
from tests.support import checkout
from tests.support.checkout import Checkout


def run(quick: bool) -> dict[str, Any]:
    """Seconds a trial on one worker, from grids of two sizes, so that start-up cancels, less the training itself."""
    few, many = (4, 12) if quick else (20, 80)
    # The state of the Prefect server, and of nothing else, is below the current folder.
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        root = Path(name)
        api = f"{server_process.start(servers.PREFECT)}/api"
        try:
            taken, training = {}, {}
            for trials in (few, many):
                made = checkout.make_checkout(root / str(trials), PREFECT_API_URL=api)
                made.settings(
                    runner={**checkout.SETTINGS["runner"], "kind": "local", "workers": 1},
                    grid={"seeds": list(range(trials)), "architectures": {"dense": {"units": [4]}}},
                )
                for stage in ("ingest", "normalize", "window"):
                    made.run(sys.executable, "-m", f"stages.{stage}", "demo")
                taken[trials] = seconds(lambda made=made: made.run(sys.executable, "-m", "flows.train", "demo"))
                training[trials] = _training(made)
        finally:
            server_process.stop(servers.PREFECT)
    each = (taken[many] - taken[few]) / (many - few)
    trained = (training[many] - training[few]) / (many - few)
    return {
        "trials": [few, many],
        "seconds a trial": round(each, 3),
        "of them training": round(trained, 3),
        "beyond training": round(each - trained, 3),
        "start-up, once": round(taken[few] - few * each, 1),
    }


def _training(made: Checkout) -> float:
    """Seconds that the trials' epochs took, as each trial notes them."""
    notes = made.root.glob("trials/*/*/run.json")
    return sum(float(json.loads(note.read_text())["training_seconds"]) for note in notes)
