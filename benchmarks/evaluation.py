"""What evaluating the quick grid costs: leaderboard, report, MLflow and the packaging of the best models.

The grid is that of `params.yaml`, on New York's airports. It is trained for one step, as how well a network forecasts
does not change what its evaluation costs. Seconds are those of the processor (user and system); a ratio says how many
times as long as a bare `import torch` it takes, in the same round. The first evaluation of a trial computes its
answers to the windows of validation and test, which is most of the work; later ones read them from its folder.

Goal: twice `import torch` beyond the imports.
"""

import contextlib
import resource
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mlflow import MlflowClient

from project import paths
from project.settings.loading import load_settings
from stages.evaluation.answer_files import ANSWERS_FILE
from stages.tracking.packaging import CONTENT_TAG
from stages.training.bundle import train_bundle
from stages.training.expansion import list_trials
from tests.support import checkout
from tests.support.checkout import ROOT, Checkout

PROBLEM = "nyc"


def run(quick: bool) -> dict[str, Any]:
    """Evaluate a trained grid in a process of its own, with and without models to package, in turn with the imports."""
    rounds = 1 if quick else 5
    with tempfile.TemporaryDirectory() as name:
        project = _train_grid(Path(name) / "checkout")
        evaluate = (sys.executable, "-m", "stages.evaluate", PROBLEM)
        # The first evaluation also writes the runs of the trials, which otherwise happens while they are trained.
        project.run(*evaluate, new_process=True)
        contenders: dict[str, Callable[[], object]] = {
            "import torch": lambda: project.run(sys.executable, "-c", "import torch", new_process=True),
            "import stages.evaluate": lambda: project.run(
                sys.executable, "-c", "import stages.evaluate", new_process=True
            ),
            "evaluate for the first time": lambda: project.run(*evaluate, new_process=True),
            "evaluate again": lambda: project.run(*evaluate, new_process=True),
            "evaluate again, and package all models": lambda: project.run(*evaluate, new_process=True),
        }
        seconds: dict[str, list[float]] = {title: [] for title in contenders}
        for _ in range(rounds):
            for title, work in contenders.items():
                if "package" in title:
                    _forget_models(project)
                if "first" in title:
                    _forget_answers(project)
                seconds[title].append(_measure_cpu_seconds(work))
    bare = seconds["import torch"]
    return {
        "results": {
            title: {
                "CPU seconds": round(statistics.median(values), 2),
                "ratio to import torch": round(
                    statistics.median(value / reference for value, reference in zip(values, bare, strict=True)), 2
                ),
            }
            for title, values in seconds.items()
        }
    }


def _train_grid(root: Path) -> Checkout:
    """A checkout with the quick grid, trained for one step."""
    project = checkout.make_checkout(root)
    shutil.copy(ROOT / "params.yaml", project.file("params.yaml"))
    project.settings(run=[PROBLEM], train__epochs=1, train__steps_per_epoch=1)
    for stage in ("ingest", "normalize", "window"):
        project.run(sys.executable, "-m", f"stages.{stage}", PROBLEM, new_process=True)
    with contextlib.chdir(project.root):
        trials = list_trials(load_settings(), PROBLEM, paths.stage_folder("window", PROBLEM))
        train_bundle(trials, torch.device("cpu"), None)
    return project


def _forget_models(project: Checkout) -> None:
    """Make the stored models count as those of another version, so that they are packaged again."""
    client = MlflowClient(f"sqlite:///{project.file('mlruns/mlflow.db')}")
    experiment = client.get_experiment_by_name(PROBLEM)
    for run in client.search_runs([experiment.experiment_id]):
        if CONTENT_TAG in run.data.tags:
            client.delete_tag(run.info.run_id, CONTENT_TAG)


def _forget_answers(project: Checkout) -> None:
    """Have every answer computed again."""
    for file in project.root.glob(f"trials/{PROBLEM}/*/{ANSWERS_FILE}"):
        file.unlink()


def _measure_cpu_seconds(work: Callable[[], object]) -> float:
    """Seconds of the processor that the processes take that `work` starts and waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
