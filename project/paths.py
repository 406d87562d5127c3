"""Where each stage keeps its files, below the project's root. `dvc.yaml` names the same folders."""

from pathlib import Path

from problems.errors import RecastError

FILES = ("params.yaml", "dvc.yaml")
"""What the project's root has; every path is relative to it."""

STATE = Path(".recast")
"""What runs: locks, logs, addresses of servers and Prefect's database; with the profile `servers` also their stores."""


MLFLOW_STORE = Path("mlruns")
"""MLflow's own store: a database and artifacts."""


def require_root() -> None:
    """
    Raises:
        RecastError: the current folder is not the project's root; in another one every command would begin afresh.
    """
    if missing := [name for name in FILES if not Path(name).exists()]:
        raise RecastError(f"{Path.cwd()}: no {missing[0]} here; run this in the project's root")


def raw(problem: str) -> Path:
    """The raw files of a problem: downloads, and links to what the user owns."""
    return Path("data/raw") / problem


def backtest(problem: str) -> Path:
    """What a backtest of a problem leaves: data of its origins, trials, the result. DVC tracks none of it."""
    return Path("data/backtest") / problem


def pending(problem: str) -> Path:
    """New rows that have come and are not checked yet; it is made anew each time."""
    return Path("data/pending") / problem


def quarantine(problem: str) -> Path:
    """New rows that break the contract, with the reasons."""
    return Path("data/quarantine") / problem


def stage(name: str, problem: str, origin: str | None = None) -> Path:
    """The folder that a stage writes for a problem, or for an origin of its backtest."""
    return (backtest(problem) / origin if origin else Path("data")) / name / problem


def trials(problem: str, origin: str | None = None) -> Path:
    """The trials of a problem, one folder a key. It persists: nothing in it is trained twice.

    Those of a backtest stand apart, those of all its origins together.
    """
    return backtest(problem) / "trials" if origin else Path("trials") / problem


PARAMS = Path("params.yaml")
