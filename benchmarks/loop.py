"""The loop of a user: edit, run, look. How long commands take, also as multiples of a bare `import torch`.

Hourly weather at Jena (JENA_ARCHIVE), or 20,000 simulated hours without it. Each round adds three GRU trials of 20
steps to a grid. `first trial` is from the start of `recast run` until the first of them begins to train, `prompt` from
the end of the last one until the command ends. OTHER_CHECKOUT may name another checkout, of an earlier version and with
an environment of its own, which is then measured in turn.

Goals on a machine on which `import torch` takes 1.4 s: 5 s until the first trial and 5 s until the prompt; 1 s where
there is nothing to do; 0.3 s for `--help`, and 0.7 s for `status` and `leaderboard`; 0.1 s a trial beyond its epochs.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks.measure import time_call
from problems.errors import RecastError
from project.source_code import PACKAGES
from tests.support.checkout import PROJECT_FILES, ROOT

SHOWING = {"recast --help": "--help", "recast status": "status", "recast leaderboard": "leaderboard"}
FIRST, PROMPT, BEYOND = "recast run: first trial", "recast run: prompt", "recast run: per trial, beyond its epochs"
BARE = "import torch"


@dataclass
class Project:
    """A project with the code of a checkout.

    Attributes:
        python: of the checkout's environment.
        seconds: the figures of each round, by what was measured.
    """

    root: Path
    python: Path
    environment: dict[str, str]
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def run(self, *arguments: str) -> None:
        """Run Python in the project.

        Raises:
            RecastError: it ends with another status than 0.
        """
        command = [str(self.python), *arguments]
        ended = subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True, check=False
        )
        if ended.returncode:
            raise RecastError(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}")

    def change_grid(self, seeds: Sequence[int]) -> None:
        """Write a grid of persistence and a GRU with these seeds."""
        settings, yaml = self.root / "params.yaml", YAML()
        document = yaml.load(settings.read_text(encoding="utf-8"))
        document["run"] = ["jena" if "JENA_ARCHIVE" in os.environ else "station"]
        document["train"] |= {"epochs": 1, "steps_per_epoch": 20}
        document["grid"] = {"seeds": list(seeds), "architectures": {"persistence": {}, "gru": {"units": [16]}}}
        with settings.open("w", encoding="utf-8") as file:
            yaml.dump(document, file)

    def measure_round(self, number: int) -> None:
        """Measure each command once."""
        self.change_grid(range(3 * number, 3 * number + 3))
        self._measure_run()
        self._add("recast run, with nothing to do", self._time("run"))
        for title, argument in SHOWING.items():
            self._add(title, self._time(argument))

    def _measure_run(self) -> None:
        known = set(self.root.glob("trials/*/*/run.json"))
        begun = time.time()
        self.run("-m", "flows", "run")
        ended = time.time()
        notes = [json.loads(file.read_text()) for file in set(self.root.glob("trials/*/*/run.json")) - known]
        trained = [note for note in notes if "epoch" in note]
        if len(trained) != 3:
            raise RecastError(f"{self.root}: {len(trained)} trials were trained in place of 3")
        self._add(FIRST, min(note["begun"] for note in trained) - begun)
        self._add(PROMPT, ended - max(note["begun"] + note["seconds"] for note in trained))
        beyond = [note["seconds"] - note["training_seconds"] for note in trained]
        # The first trial of each of two workers also reads the data.
        self._add(BEYOND, min(beyond))

    def _time(self, command: str) -> float:
        return time_call(lambda: self.run("-m", "flows", command))

    def _add(self, title: str, seconds: float) -> None:
        self.seconds.setdefault(title, []).append(seconds)


def run(quick: bool) -> dict[str, Any]:
    """Measure this checkout, and the other one if there is one, in turn; the first round does not count."""
    rounds = 1 if quick else 5
    other = os.environ.get("OTHER_CHECKOUT")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        projects = {"now": _make_project(ROOT, Path(sys.executable), root / "now")}
        if other:
            projects["before"] = _make_project(Path(other), Path(other) / ".venv/bin/python", root / "before")
        bare: list[float] = []
        try:
            for number in range(rounds + 1):
                bare.append(time_call(lambda: projects["now"].run("-c", "import torch")))
                for project in projects.values():
                    project.measure_round(number)
        finally:
            for project in projects.values():
                project.run("-m", "flows", "down")
    return {"results": {title: _describe(title, projects, bare) for title in (BARE, *projects["now"].seconds)}}


def _describe(title: str, projects: dict[str, Project], bare: Sequence[float]) -> dict[str, Any]:
    """The figures of one command in each project: the medians over the rounds, without the first."""
    columns: dict[str, Any] = {}
    for name, project in projects.items():
        seconds = list(bare) if title == BARE else project.seconds[title]
        ratios = [value / reference for value, reference in zip(seconds[1:], bare[1:], strict=True)]
        columns[f"{name}: s"] = round(statistics.median(seconds[1:]), 2)
        columns[f"{name}: ratio to {BARE}"] = round(statistics.median(ratios), 2)
    return columns


def _make_project(source: Path, python: Path, root: Path) -> Project:
    """A new project with the code and the settings of a checkout."""
    for package in PACKAGES:
        shutil.copytree(source / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*PROJECT_FILES, "params.yaml"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / file, root / file)
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    foreign = ("PREFECT_", "MLFLOW_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environment |= {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
    # Byte-code of the project is kept, as in a checkout that somebody works in.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return Project(root, python, environment)
