"""Where each stage keeps its files, below the project's root. `dvc.yaml` names the same folders."""

from pathlib import Path

STATE = Path(".recast")
"""What runs: locks, logs and addresses of servers. It may be deleted when nothing does."""


def raw(problem: str) -> Path:
    """The raw files of a problem: downloads, and links to what the user owns."""
    return Path("data/raw") / problem


def stage(name: str, problem: str) -> Path:
    """The folder that a stage writes for a problem."""
    return Path("data") / name / problem


def trials(problem: str) -> Path:
    """The trials of a problem, one folder a key. It persists: nothing in it is trained twice."""
    return Path("trials") / problem
