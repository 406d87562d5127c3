"""What can be removed from a checkout without losing anything that it, a commit, an experiment or a champion needs."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flows.dag import list_cached_objects, list_used_hashes, open_repository
from lifecycle.champions.history import (
    CHAMPIONS_FOLDER,
    champion_stack,
    find_challenger_in,
    history_file,
    read_history,
)
from lifecycle.champions.lineage import Lineage
from project import paths
from project.records import read_record
from project.settings.loading import load_settings
from stages.training.expansion import list_trials
from stages.training.listed_trials import LIST_FILE, read_listed_trials

FORMER_DATABASES = "mlflow-????????T??????.db"
"""Databases that a migration has kept; no file that a person has named."""


@dataclass(frozen=True)
class Garbage:
    """Files and folders that can be removed for the same reason.

    Attributes:
        title: what they are.
        consequence: what has to be done again, if anything, to have them back.
    """

    title: str
    consequence: str
    paths: tuple[Path, ...]

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(file.stat().st_size for path in self.paths for file in _list_files(path))

    def remove(self) -> None:
        """Remove them."""
        for path in self.paths:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _list_files(path: Path) -> Iterator[Path]:
    yield from (file for file in path.rglob("*") if file.is_file()) if path.is_dir() else (path,)


def find_garbage(old_trials: bool) -> list[Garbage]:
    """All that can be removed.

    Args:
        old_trials: also the trials of other grids, data and code than the present ones.
    """
    kinds = [
        Garbage(
            "data in DVC's cache that no commit, experiment, version or file of this checkout uses",
            "nothing can refer to them",
            tuple(_list_unused_objects()),
        ),
        Garbage(
            "damaged trials that were set aside",
            "the next run trains them again, if none has",
            tuple(sorted((paths.STATE / "damaged").glob("*/*"))),
        ),
        Garbage(
            "databases of MLflow before they were migrated",
            "the present database has all runs",
            tuple(sorted(paths.MLFLOW_STORE.glob(FORMER_DATABASES))),
        ),
        Garbage(
            "what DVC was writing to its cache when it was killed",
            "nothing can refer to it",
            tuple(sorted(paths.DVC_CACHE.rglob(".*.tmp"))),
        ),
        Garbage(
            "copies of models that are neither champion nor challenger, nor the champion before",
            "they are fetched from MLflow again",
            tuple(_list_unused_copies()),
        ),
    ]
    if old_trials:
        kinds.append(
            Garbage(
                "trials of other grids, data or code, which no version of a model comes from",
                "a grid that has them is trained again",
                tuple(_list_old_trials()),
            )
        )
    return [kind for kind in kinds if kind.paths]


def remove_garbage(kinds: list[Garbage]) -> None:
    """Remove what `find_garbage` has found, while no DVC command can run.

    Raises:
        RecastError: another DVC command runs.
    """
    with open_repository():
        for kind in kinds:
            kind.remove()


def _list_unused_objects() -> list[Path]:
    """The objects in DVC's cache to which nothing refers."""
    cached = list_cached_objects()
    # The stages of a problem that is not in `run` now are in dvc.lock, but not in what DVC calls the workspace; and a
    # version may come from a checkout that had no commit yet, so that it has no experiment.
    texts = [
        file.read_text(encoding="utf-8") for file in (Path(paths.DVC_LOCK), *_list_lineage_files()) if file.exists()
    ]
    used = list_used_hashes() | {digest for text in texts for digest in re.findall(r"\b[0-9a-f]{32}(?:\.dir)?", text)}
    for digest in list(used):
        if digest.endswith(".dir") and digest in cached:
            used |= {entry["md5"] for entry in json.loads(cached[digest].read_bytes())}
    return [file for digest, file in sorted(cached.items()) if digest not in used]


def _list_lineage_files() -> list[Path]:
    return sorted(CHAMPIONS_FOLDER.glob("*/versions/*.json"))


def _list_unused_copies() -> list[Path]:
    """The copies of models that no command is about to use, each with its lock."""
    unused: list[Path] = []
    for folder in sorted(paths.MODEL_COPIES.glob("*")):
        if not history_file(folder.name).exists():
            continue
        entries = read_history(folder.name)
        used = {str(entry.version) for entry in champion_stack(entries)[-2:]}
        if challenger := find_challenger_in(folder.name, entries):
            used.add(str(challenger.version))
        unused += [path for path in sorted(folder.iterdir()) if path.name.partition("-")[0] not in used]
    return unused


def _list_old_trials() -> list[Path]:
    """The folders of trials that no present grid has, and that no version of a model comes from."""
    settings = load_settings()
    lineages = [read_record(file, Lineage, "restore the file from a backup") for file in _list_lineage_files()]
    old: list[Path] = []
    for folder in sorted(path for path in paths.trials_folder("").glob("*") if path.is_dir()):
        problem, windowed = folder.name, paths.stage_folder("window", folder.name)
        # Without its windows nobody knows which trials the present grid of a problem has.
        if problem not in settings.problems or not (windowed / "windows.json").exists():
            continue
        present = {trial.key for trial in list_trials(settings, problem, windowed)}
        if (paths.stage_folder("train", problem) / LIST_FILE).exists():
            present |= {trial.key for trial in read_listed_trials(paths.stage_folder("train", problem))}
        present |= {lineage.key for lineage in lineages if lineage.problem == problem}
        old += [trial for trial in sorted(folder.iterdir()) if trial.name not in present]
    return old
