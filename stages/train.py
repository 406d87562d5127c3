"""train: the trials of the grid, each to its own folder, and the list of them that `evaluate` reads.

`flows/train.py` is the command of the stage: it says where and when bundles run. What a bundle does is here.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from project.atomic import write_json
from stages.training import history
from stages.training.outcomes import Outcome, outcome
from stages.training.trials import Trial, trial_folder


def write_list(trials: Sequence[Trial], out: Path) -> list[Outcome]:
    """Write the list of the grid's trials, how each ended and the hash of what it left.

    It stands for the trials among the dependencies of `evaluate`: the folder of all trials also holds those of other
    grids. The same grid gives the same bytes.
    """
    ended = []
    for trial in trials:
        found = outcome(trial)
        assert found is not None, f"{trial.label} has not ended"
        ended.append(found)
    write_json(
        out / "trials.json",
        [
            {
                "key": trial.key,
                "label": trial.label,
                "status": end.status,
                "reason": end.reason,
                "sha256": _digest(trial_folder(trial)),
            }
            for trial, end in zip(trials, ended, strict=True)
        ],
    )
    return ended


def _digest(folder: Path) -> str:
    """The hash of a trial's files that DVC tracks."""
    digest = hashlib.sha256()
    for name in ("trial.json", history.FILE, "weights.safetensors"):
        if (folder / name).exists():
            digest.update((folder / name).read_bytes())
    return digest.hexdigest()
