"""Where the pictures of networks at work are stored."""

from pathlib import Path

from stages.training.trials import Trial

PICTURES_FOLDER = "inside"
"""The folder of the pictures, beside the report and among the artifacts of a run."""


def picture_folder(evaluated: Path, trial: Trial) -> Path:
    """The folder of the pictures of an architecture's best trial.

    Args:
        evaluated: the folder of the stage `evaluate`.
    """
    return evaluated / PICTURES_FOLDER / trial.configuration.family.replace(" ", "_")
