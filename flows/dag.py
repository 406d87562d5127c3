"""The DAG of dvc.yaml as DVC sees it: its stages in order, which of them are stale, and the record of what ran."""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from dvc.dvcfile import LOCK_FILE
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo, lock_repo
from dvc.repo.reproduce import collect_stages, plan_repro
from dvc.utils.serialize import dump_yaml, load_yaml, parse_yaml_for_update
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from problems.errors import RecastError
from project.atomic import replaced_file

# What DVC says of every lock file that it writes is of no use here.
logging.getLogger("dvc").setLevel(logging.WARNING)

PATIENCE_SECONDS = 600
"""How long a stage that has run waits for another DVC command to end, to be recorded. It is too dear to throw away."""

_dvc = threading.Lock()
"""DVC has one caller at a time: its index and its lock file are not made for threads."""


@contextmanager
def repository(patience: float = 0) -> Iterator[Repo]:
    """DVC's view of this checkout, with no other caller beside.

    Args:
        patience: seconds to wait for another DVC command to end, beyond the few that DVC waits itself.

    Raises:
        RecastError: this is no DVC repository, another DVC command runs, or `dvc.yaml` is wrong.
    """
    with _dvc, ExitStack() as stack:
        try:
            repo = stack.enter_context(Repo())
            for attempt in Retrying(
                retry=retry_if_exception_type(LockError),
                stop=stop_after_delay(patience),
                wait=wait_fixed(0.5),
                reraise=True,
            ):
                with attempt:
                    stack.enter_context(lock_repo(repo))
            yield repo
        except LockError as error:
            raise RecastError(f"another DVC command runs in this checkout; wait for it. ({error})") from error
        except DvcException as error:
            raise RecastError(f"DVC: {error}") from error


def track(path: Path) -> bool:
    """Have DVC keep what a folder holds now and note it in `<path>.dvc`; False: it was noted already.

    Raises:
        RecastError: another DVC command runs, or the folder is not there.
    """
    with repository(PATIENCE_SECONDS) as repo:
        file = f"{path}.dvc"
        if Path(file).exists():
            (stage,) = repo.stage.collect(file)
            if not stage.changed():
                return False
        if not path.exists():
            raise RecastError(
                f"{path}: it is not there, and {file} says what it held: dvc checkout {file}, or dvc pull"
            )
        repo.add(str(path))
        return True


def ordered(repo: Repo, problems: Sequence[str]) -> list[Any]:
    """The stages that lead to these problems' evaluations, in the order in which `dvc repro` runs them.

    Increments of a raw store that DVC tracks are among them, as a stage without a command.
    """
    targets = [f"evaluate@{problem}" for problem in problems]
    return list(plan_repro(repo.index.graph, collect_stages(repo, targets)))


def stale(problems: Sequence[str]) -> list[str]:
    """The stages of these problems that `dvc repro` would run now, by name; those after them may follow."""
    with repository() as repo:
        return [stage.addressing for stage in ordered(repo, problems) if stage.changed()]


def hashes(stage: Any) -> dict[str, Any]:
    """What DVC would note now of everything that a stage depends on, by name."""
    return {str(dependency): dependency.get_hash() for dependency in stage.deps}


def entries(repo: Repo, order: Sequence[str]) -> list[str]:
    """The stages in the order in which `dvc repro` leaves them in dvc.lock: those that it has, then those to come."""
    file = Path(repo.root_dir) / LOCK_FILE
    there = list(load_yaml(file).get("stages", {})) if file.exists() else []
    return [*there, *(name for name in order if name not in there)]


def record(repo: Repo, name: str, sequence: Sequence[str]) -> None:
    """Record through DVC that a stage has run.

    DVC adds an entry at the end of dvc.lock. Stages that run side by side end in any order, so the entries are put in
    that of `sequence`: the file is then, byte for byte, what `dvc repro` writes.
    """
    repo.commit(name, force=True)
    file = Path(repo.root_dir) / LOCK_FILE
    lock = parse_yaml_for_update(file.read_text(encoding="utf-8"), file)
    there = list(lock["stages"])
    wanted = sorted(there, key=lambda entry: sequence.index(entry) if entry in sequence else len(sequence))
    if wanted != there:
        for entry in wanted:
            lock["stages"][entry] = lock["stages"].pop(entry)
        with replaced_file(file) as temporary:
            dump_yaml(temporary, lock)
