"""DVC: the stages of dvc.yaml in order, which of them are stale, and the record of what ran.

The only module of the flows that imports DVC. DVC documents nothing of what it imports, and may change it with any
version: tests/flows/test_internals.py fails when another version is installed than this module was checked with.
"""

import json
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from dvc import dvcfile
from dvc.config import NoRemoteError
from dvc.dvcfile import LOCK_FILE, Lockfile, SingleStageFile
from dvc.exceptions import DvcException
from dvc.lock import LockError, make_lock
from dvc.repo import Repo, lock_repo
from dvc.repo.experiments.refs import ExpRefInfo
from dvc.repo.reproduce import collect_stages, plan_repro
from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK
from dvc.stage.cache import RunCacheNotFoundError
from dvc.utils.serialize import dump_yaml, load_yaml
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from problems.errors import RecastError
from project.atomic import replace_file
from project.paths import STATE
from project.progress import console

# DVC logs a line for every lock file that it writes, which nobody here needs.
logging.getLogger("dvc").setLevel(logging.WARNING)

CHECKED_VERSION = "3.67.1"
"""The version of DVC that this module was checked with."""

RECORD_PATIENCE_SECONDS = 600
"""How long a stage that has run waits to be recorded while another DVC command runs: its result may have cost hours."""

FORMER_FILES = STATE / "dvc"
"""The former contents of files that DVC is writing."""

_dvc_lock = threading.Lock()
"""Held while DVC is called: its index and its lock file are not made for threads."""


@contextmanager
def open_repository(patience: float = 0) -> Iterator[Repo]:
    """DVC's view of this checkout. No other DVC command can run in it meanwhile.

    Args:
        patience: seconds to wait for another DVC command to end, beyond the three that DVC waits itself.

    Raises:
        RecastError: this is not a DVC repository, another DVC command runs, or `dvc.yaml` is wrong.
    """
    with _dvc_lock, ExitStack() as stack:
        try:
            repo = stack.enter_context(Repo())
            for attempt in Retrying(
                retry=retry_if_exception_type(LockError),
                stop=stop_after_delay(patience),
                wait=wait_fixed(0.5),
                before_sleep=_report_wait,
                reraise=True,
            ):
                with attempt:
                    stack.enter_context(lock_repo(repo))
            _remove_damaged_rwlock(repo)
            for former in FORMER_FILES.rglob("*.former"):
                # A whole file stays: it was written after all, or somebody has restored it meanwhile.
                if _is_damaged(former.relative_to(FORMER_FILES).with_suffix(""), repo):
                    _put_back(former)
                else:
                    former.unlink()
            yield repo
        except LockError as error:
            raise RecastError(f"another DVC command runs in this checkout; wait for it. ({error})") from error
        except DvcException as error:
            raise RecastError(f"DVC: {error}") from error


def _report_wait(state: RetryCallState) -> None:
    """Say once that another DVC command is in the way."""
    if state.attempt_number == 1:
        console.print("another DVC command runs in this checkout; waiting for it to end", soft_wrap=True)


def _remove_damaged_rwlock(repo: Repo) -> None:
    """Remove DVC's list of what its commands read and write, if a kill or a full disk has cut it short.

    DVC writes it in place, and refuses every command once it is damaged.
    """
    folder = str(repo.tmp_dir)
    file = Path(folder) / RWLOCK_FILE
    with make_lock(str(Path(folder) / RWLOCK_LOCK), tmp_dir=folder, hardlink_lock=repo.config["core"]["hardlink_lock"]):
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except ValueError:
            file.unlink()


@contextmanager
def _written_whole(file: Path) -> Iterator[None]:
    """Where a kill or a full disk cuts a file short that DVC writes in place, its former content is put back.

    Args:
        file: by its path from the project's root.
    """
    former = FORMER_FILES / f"{file}.former"
    with replace_file(former) as temporary:
        temporary.write_bytes(file.read_bytes() if file.exists() else b"")
    try:
        yield
    except BaseException:
        _put_back(former)
        raise
    former.unlink()


def _put_back(former: Path) -> None:
    """Give a file its former content, which takes no space; an empty one stands for no file."""
    file = former.relative_to(FORMER_FILES).with_suffix("")
    if former.stat().st_size:
        former.replace(file)
    else:
        file.unlink(missing_ok=True)
        former.unlink()


def _is_damaged(file: Path, repo: Repo) -> bool:
    """Whether DVC cannot read a file that it has written."""
    if not file.exists():
        return False
    kind = Lockfile if file.name == LOCK_FILE else SingleStageFile
    try:
        kind(repo, str(file)).load()
    except DvcException:
        return True
    return not file.stat().st_size


def track_folder(path: Path) -> bool:
    """Have DVC store what a folder holds now, and note it in `<path>.dvc`; False: it was noted already.

    Raises:
        RecastError: another DVC command runs, or the folder does not exist.
    """
    with open_repository(RECORD_PATIENCE_SECONDS) as repo:
        file = f"{path}.dvc"
        if Path(file).exists():
            (stage,) = repo.stage.collect(file)
            if not stage.changed():
                return False
        if not path.exists():
            raise RecastError(
                f"{path} does not exist, and {file} says what it held: `dvc checkout {file}`, or `dvc pull`"
            )
        with _written_whole(Path(file)):
            repo.add(str(path))
        return True


def stages_in_order(repo: Repo, problems: Sequence[str]) -> list[Any]:
    """The stages that lead to these problems' evaluations, in the order in which `dvc repro` runs them.

    If DVC tracks increments of a raw store, they are among the stages, as one without a command.
    """
    targets = [f"evaluate@{problem}" for problem in problems]
    return list(plan_repro(repo.index.graph, collect_stages(repo, targets)))


def stale_stages(problems: Sequence[str]) -> list[str]:
    """The names of the stages of these problems that `dvc repro` would run now. Later stages may have to follow."""
    with open_repository() as repo:
        return [stage.addressing for stage in stages_in_order(repo, problems) if stage.changed()]


def dependency_hashes(stage: Any) -> dict[str, Any]:
    """The hashes that DVC would note now of everything that a stage depends on, by name."""
    return {str(dependency): dependency.get_hash() for dependency in stage.deps}


def lockfile_order(repo: Repo, order: Sequence[str]) -> list[str]:
    """The stages in the order in which `dvc repro` leaves them in dvc.lock: those that are in it, then the others.

    Args:
        order: the stages in the order in which they run.
    """
    file = Path(repo.root_dir) / LOCK_FILE
    recorded = list(load_yaml(file).get("stages", {})) if file.exists() else []
    return [*recorded, *(name for name in order if name not in recorded)]


def record_stage(repo: Repo, name: str, sequence: Sequence[str]) -> None:
    """Record through DVC that a stage has run.

    DVC appends an entry to dvc.lock. Stages that run side by side end in any order, so the entries are sorted as in
    `sequence`: the file is then, byte for byte, what `dvc repro` writes.
    """
    file = Path(LOCK_FILE)
    with _written_whole(file), _parse_lock_file_as_values():
        repo.commit(name, force=True)
    lock = load_yaml(file)
    recorded = list(lock["stages"])
    in_order = sorted(recorded, key=lambda entry: sequence.index(entry) if entry in sequence else len(sequence))
    if in_order != recorded:
        lock["stages"] = {entry: lock["stages"][entry] for entry in in_order}
        with replace_file(file) as temporary:
            dump_yaml(temporary, lock)


@contextmanager
def _parse_lock_file_as_values() -> Iterator[None]:
    """Have DVC read dvc.lock without comments and styles, in a quarter of the time, before it adds a stage.

    Only DVC writes this file, so there are none: what it then writes is the same, byte for byte.
    """
    modify_yaml = dvcfile.modify_yaml

    @contextmanager
    def modify_values(path: str, fs: Any = None) -> Iterator[dict[str, Any]]:
        if Path(path).name != LOCK_FILE:
            with modify_yaml(path, fs=fs) as content:
                yield content
        else:
            content = load_yaml(path) if Path(path).exists() else {}
            yield content
            dump_yaml(path, content)

    dvcfile.modify_yaml = modify_values
    try:
        yield
    finally:
        dvcfile.modify_yaml = modify_yaml


def restore_from_cache(repo: Repo, stage: Any) -> bool:
    """Restore the outputs of a stage for the present state of its dependencies; False: DVC does not have them."""
    _remove_unfinished_records(Path(repo.stage_cache.cache_dir))
    try:
        repo.stage_cache.restore(stage)
    except RunCacheNotFoundError:
        return False
    return True


def _remove_unfinished_records(run_cache: Path) -> None:
    """Remove what a kill has left where DVC records which outputs a stage has had.

    DVC makes a folder, writes a temporary file in it, and renames that. It fails with a TypeError where it finds the
    folder empty, and with a KeyError where the file is only half written.
    """
    for folder in run_cache.glob("*/*"):
        for file in folder.glob(".*.tmp"):
            file.unlink()
        with suppress(OSError):  # It is not empty.
            folder.rmdir()


def list_cached_objects() -> dict[str, Path]:
    """The files in DVC's cache by their hashes; that of a folder ends with .dir."""
    with open_repository() as repo:
        cache = repo.cache.local
        return {digest: Path(cache.oid_to_path(digest)) for digest in cache.all()}


def list_used_hashes() -> set[str]:
    """The hashes of all that the checkout, any commit of git and any experiment uses.

    Raises:
        RecastError: another DVC command runs, or a commit cannot be read.
    """
    with open_repository() as repo:
        used = repo.used_objs(all_commits=True, all_experiments=True)
        return {str(digest.value) for digests in used.values() for digest in digests}


def experiment_reference(commit: str, name: str) -> str:
    """The git reference of the DVC experiment of this name that starts from a commit."""
    return str(ExpRefInfo(commit, name))


def check_remote(file_name: str, content: bytes) -> tuple[str, bytes] | None:
    """Write a file to DVC's default remote, read it and delete it; None: there is no such remote.

    Returns:
        The address of the remote, and the content as it was read.
    """
    with Repo() as repo:
        try:
            remote = repo.cloud.get_remote_odb()
        except NoRemoteError:
            return None
        file = remote.fs.join(remote.path, file_name)
        remote.fs.makedirs(remote.path, exist_ok=True)
        remote.fs.pipe_file(file, content)
        read = remote.fs.cat_file(file)
        remote.fs.rm_file(file)
        return remote.fs.unstrip_protocol(remote.path), read
