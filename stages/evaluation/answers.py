"""The answers of a trained network to the windows of a split, and the scores of these answers."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from architectures import Axes, Network, ShapeError, combined
from learning.answers import ANSWER_KINDS
from learning.objectives import Objective
from learning.scores import sort_quantiles
from stages.evaluation.baseline import BASELINE
from stages.evaluation.metrics import Errors
from stages.tables.windows import AnyWindows
from stages.training.baselines import spread_baseline
from stages.training.batches import SplitData
from stages.training.objectives import choose_objective, choose_shape
from stages.training.scoring import ScoreSums, answer_windows, find_errors, score_batch
from stages.training.trials import Trial

MAX_CONFUSION_CLASSES = 20
"""The largest number of classes for which a confusion matrix is made."""


@dataclass(frozen=True)
class Answers:
    """A network's answers to the windows of a split.

    Attributes:
        mean_scores: the weighted mean of the scores for each measure.
        window_N: the mean score of the selection measure by window.
        values_NLO: the answers themselves, normalised; None unless they are numbers.
        errors_NL: the answers minus the targets, normalised, see `find_errors`; None unless they are numbers.
        confusion_CC: how often each class (a row) got each answer (a column); None unless the answers are classes, and
            few.
    """

    mean_scores: dict[str, float]
    window_N: Errors
    values_NLO: NDArray[np.float64] | None
    errors_NL: Errors | None
    confusion_CC: NDArray[np.float64] | None


@dataclass(frozen=True)
class TrialAnswers:
    """A trial's answers to the test windows and, where these are numbers, to those of validation."""

    test: Answers
    validation: Answers | None


def collect_trial_answers(
    network: Network, splits: Mapping[str, SplitData], objective: Objective, kind: str
) -> TrialAnswers:
    """The answers of a trial's network.

    Args:
        splits: validation and test.
        kind: the kind of answers, by its name in `ANSWER_KINDS`.
    """
    test = collect_answers(network, splits["test"], objective, kind)
    if not ANSWER_KINDS[kind].is_number:
        return TrialAnswers(test, None)
    return TrialAnswers(test, collect_answers(network, splits["validation"], objective, kind))


def collect_answers(network: Network, data: SplitData, objective: Objective, kind: str) -> Answers:
    """The answers of a network to all windows of a split, with their scores.

    Args:
        kind: the kind of answers, by its name in `ANSWER_KINDS`.
    """
    answer_kind = ANSWER_KINDS[kind]
    sums = ScoreSums(data.device)
    window_means: list[NDArray[np.float64]] = []
    values: list[NDArray[np.float64]] = []
    errors: list[Errors] = []
    confusion_CC: NDArray[np.float64] | None = None
    for y_BSO, batch in answer_windows(network, data):
        scores, weight_BS = score_batch(objective, y_BSO, batch)
        sums.add(scores, weight_BS)
        selection_BS = scores[objective.selection_measure.name]
        window_means.append(((selection_BS * weight_BS).sum(dim=1) / weight_BS.sum(dim=1)).numpy())
        if answer_kind.is_number:
            values.append((sort_quantiles(y_BSO) if objective.quantiles else y_BSO).double().numpy())
            errors.append(find_errors(y_BSO, batch.y_BSK, objective.quantiles))
        elif answer_kind.has_classes and batch.weight_BS is None and max(objective.outputs, 2) <= MAX_CONFUSION_CLASSES:
            answer_B = answer_kind.choose_class(y_BSO[:, 0])
            counts_CC = _count_answers(batch.y_BSK[:, 0, 0].long(), answer_B, max(objective.outputs, 2))
            confusion_CC = counts_CC if confusion_CC is None else confusion_CC + counts_CC
    return Answers(
        sums.mean_scores(),
        np.concatenate(window_means),
        np.concatenate(values) if values else None,
        np.concatenate(errors) if errors else None,
        confusion_CC,
    )


def _count_answers(class_B: torch.Tensor, answer_B: torch.Tensor, classes: int) -> NDArray[np.float64]:
    """How often each class (a row) got each answer (a column)."""
    flat = np.bincount((class_B * classes + answer_B).numpy(), minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.float64)


def build_baseline(windows: AnyWindows, trial: Trial, validation: SplitData) -> Network | None:
    """The baseline of the skill score; None where it cannot answer the problem.

    Args:
        trial: any trial of the grid: its settings decide what a network's outputs are.
        validation: the windows whose errors decide how far its quantiles are from its forecast.
    """
    try:
        baseline = combined.build_network(BASELINE, Axes(), choose_shape(windows, trial.train))
    except ShapeError:
        return None
    spread_baseline(baseline, choose_objective(windows, trial.train).quantiles, validation)
    return baseline.eval()


def measure_baseline(
    splits: Mapping[str, SplitData], windows: AnyWindows, trial: Trial, scale: float
) -> dict[str, float]:
    """The test errors of the baseline by the name of the measure; empty where it cannot answer the problem.

    Args:
        splits: validation and test.
        trial: any trial of the grid.
        scale: one unit of a normalised error in the target's unit.
    """
    baseline = build_baseline(windows, trial, splits["validation"])
    if baseline is None:
        return {}
    objective = choose_objective(windows, trial.train)
    answers = collect_answers(baseline, splits["test"], objective, windows.objective)
    return objective.compute_measures(answers.mean_scores, scale)
