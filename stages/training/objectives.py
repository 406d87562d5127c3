"""The objective of a trial: what it is trained for, by its windows and its settings."""

from dataclasses import replace

from architectures import WindowShape
from learning.answers import ANSWER_KINDS, LearningTask
from learning.objectives import Objective
from project.settings.sections import TrainSettings
from stages.tables.windows import AnyWindows


def choose_objective(windows: AnyWindows, train: TrainSettings) -> Objective:
    """The loss and the measures of networks that are trained on these windows."""
    task = LearningTask(windows.shape.outputs, windows.token, train.loss, train.quantiles)
    return ANSWER_KINDS[windows.objective].choose_objective(task)


def choose_shape(windows: AnyWindows, train: TrainSettings) -> WindowShape:
    """The shape of the windows for a network, with as many outputs as its objective needs."""
    return replace(windows.shape, outputs=choose_objective(windows, train).outputs)
