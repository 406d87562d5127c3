"""The DAG of dvc.yaml as DVC sees it: its stages in order, and which of them are stale."""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo, lock_repo
from dvc.repo.reproduce import collect_stages, plan_repro

from problems.errors import RecastError

# What DVC says of every lock file that it writes is of no use here.
logging.getLogger("dvc").setLevel(logging.WARNING)

_dvc = threading.Lock()
"""DVC has one caller at a time: its index and its lock file are not made for threads."""


@contextmanager
def repository() -> Iterator[Repo]:
    """DVC's view of this checkout, with no other caller beside.

    Raises:
        RecastError: this is no DVC repository, another DVC command runs, or `dvc.yaml` is wrong.
    """
    with _dvc:
        try:
            with Repo() as repo, lock_repo(repo):
                yield repo
        except LockError as error:
            raise RecastError(f"another DVC command runs in this checkout; wait for it. ({error})") from error
        except DvcException as error:
            raise RecastError(f"DVC: {error}") from error


def ordered(repo: Repo, problems: Sequence[str]) -> list[Any]:
    """The stages that lead to these problems' evaluations, each after those that it depends on."""
    targets = [f"evaluate@{problem}" for problem in problems]
    return list(plan_repro(repo.index.graph, collect_stages(repo, targets)))


def stale(problems: Sequence[str]) -> list[str]:
    """The stages of these problems that `dvc repro` would run now, by name; those after them may follow."""
    with repository() as repo:
        return [stage.addressing for stage in ordered(repo, problems) if stage.changed()]
