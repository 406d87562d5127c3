"""Stage train: the list of the grid's trials that `evaluate` reads, written when all of them have ended.

The command of the stage is `flows/train.py`. `flows/train_flow.py` has the missing trials trained, and
`flows/dispatch.py` chooses the runner that decides where and when. What a bundle of trials does is in
`stages/training/bundle.py`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from problems.errors import RecastError
from project.atomic import write_json
from stages.training.listed_trials import LIST_FILE, ListedTrial
from stages.training.outcomes import Outcome, read_outcome
from stages.training.trials import RESULT_FILES, TRIAL_FILE, Trial, trial_folder


def write_trial_list(trials: Sequence[Trial], out: Path) -> list[Outcome]:
    """Write the list of the grid's trials: how each ended, and the hash of its files.

    `evaluate` depends on the list in place of the trials, as the folder of all trials also holds those of other grids.
    The same grid gives the same bytes.

    Raises:
        RecastError: a trial has not ended.
    """
    outcomes = [_read_ended(trial) for trial in trials]
    listed = [
        ListedTrial(trial.key, trial.label, outcome.status, outcome.reason, _hash_files(trial_folder(trial)))
        for trial, outcome in zip(trials, outcomes, strict=True)
    ]
    write_json(out / LIST_FILE, [asdict(trial) for trial in listed])
    return outcomes


def _read_ended(trial: Trial) -> Outcome:
    outcome = read_outcome(trial)
    if outcome is None:
        raise RecastError(f"{trial_folder(trial)}: {trial.label} has not ended; recast run {trial.problem}")
    return outcome


def _hash_files(folder: Path) -> str:
    """The SHA-256 of a trial's files that DVC tracks."""
    digest = hashlib.sha256()
    for name in (TRIAL_FILE, *RESULT_FILES):
        if (folder / name).exists():
            digest.update((folder / name).read_bytes())
    return digest.hexdigest()
