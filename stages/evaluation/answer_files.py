"""The answers of evaluated trials, kept with their weights: once a grid has grown, only its new trials take time."""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from project.atomic import replace_file
from project.source_code import digest_source
from stages.evaluation.answers import Answers, TrialAnswers
from stages.training.trials import Trial, read_trial, trial_folder

ANSWERS_FILE = "answers.npz"
"""In a trial's folder. Its format has a checksum of each array."""

_ABOUT = "about"
_ARRAYS = tuple(field.name for field in fields(Answers) if field.name != "mean_scores")


def read_answers(trial: Trial) -> TrialAnswers | None:
    """The answers of a finished trial; None: they have not been written, or the file is damaged, or of other code.

    Raises:
        DamagedTrial: a file of the trial itself is missing, or is not as training wrote it.
    """
    identity = _identify(trial)
    try:
        with np.load(_answers_file(trial), allow_pickle=False) as arrays:
            about = json.loads(bytes(arrays[_ABOUT]))
            if about["identity"] != identity:
                return None
            answers = {split: _unpack(arrays, split, scores) for split, scores in about["mean_scores"].items()}
    except (FileNotFoundError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None
    return TrialAnswers(answers["test"], answers.get("validation"))


def write_answers(trial: Trial, answers: TrialAnswers) -> None:
    """Keep the answers of a finished trial."""
    splits = {"test": answers.test} | ({"validation": answers.validation} if answers.validation else {})
    arrays: dict[str, Any] = {
        f"{split}.{name}": _narrow(value)
        for split, kept in splits.items()
        for name in _ARRAYS
        if (value := getattr(kept, name)) is not None
    }
    about = {"identity": _identify(trial), "mean_scores": {split: kept.mean_scores for split, kept in splits.items()}}
    arrays[_ABOUT] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    with replace_file(_answers_file(trial)) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def remove_answers(trial: Trial) -> None:
    """Remove the answers of a trial, if it has any: with many leads and quantiles they take more space than weights."""
    _answers_file(trial).unlink(missing_ok=True)


def _unpack(arrays: Mapping[str, NDArray[Any]], split: str, mean_scores: dict[str, float]) -> Answers:
    kept = {name: arrays[f"{split}.{name}"].astype(np.float64) for name in _ARRAYS if f"{split}.{name}" in arrays}
    return Answers(
        mean_scores, kept["window_N"], kept.get("values_NLO"), kept.get("errors_NL"), kept.get("confusion_CC")
    )


def _narrow(values: NDArray[np.float64]) -> NDArray[Any]:
    """The same values in half the space, where they were computed in single precision."""
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    return single if np.array_equal(single, values, equal_nan=True) else values


def _answers_file(trial: Trial) -> Path:
    return trial_folder(trial) / ANSWERS_FILE


def _identify(trial: Trial) -> str:
    """The hash of all that decides the answers of a trial: its key and its weights, and the code that collects them."""
    record = read_trial(trial)
    decisive = {"trial": trial.key, "files": record["files"], "code": _digest_code()}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


@cache
def _digest_code() -> str:
    # Neither decides an answer: `problems` says where rows come from, and `project` where files are.
    return digest_source(["stages.evaluation.answers", "stages.training.networks"], ["problems", "project"])
