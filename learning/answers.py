"""The kinds of answers: all that Recast does differently for numbers, yes or no, classes and labels.

A new kind is a subclass of `AnswerKind` and an entry in `ANSWER_KINDS`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from learning.choices import Choice
from learning.losses import LOSSES
from learning.measures import CLASS_MEASURES, LABEL_MEASURES, TOKEN_MEASURES, YES_OR_NO_MEASURES
from learning.objectives import Objective, mean_of
from learning.scores import class_cross_entropy, labels_cross_entropy, sort_quantiles, yes_or_no_cross_entropy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LearningTask:
    """What decides the objective of a network, apart from the kind of its answers.

    Attributes:
        outputs: the number of classes or labels; 1 for a number and for yes or no.
        token: what a class is, where classes are the tokens of a text: characters or words.
        loss: the name in `LOSSES`, for numbers.
        quantiles: the quantiles that a network forecasts if that is what its loss is for.
    """

    outputs: int
    token: str | None
    loss: str
    quantiles: tuple[float, ...]


class AnswerKind(ABC):
    """One kind of answer.

    Attributes:
        title: what an answer is, for people.
        is_number: an answer is a number, so that it has an error.
        has_classes: an answer is one of a fixed number of classes, so that answers can be counted by class.
    """

    title: ClassVar[str]
    is_number: ClassVar[bool] = False
    has_classes: ClassVar[bool] = False

    @abstractmethod
    def choose_objective(self, task: LearningTask) -> Objective:
        """What a network with such answers is trained for."""

    @abstractmethod
    def decode(self, y_BSO: "Tensor") -> "Tensor":
        """What a network's outputs say: forecasts, or probabilities."""

    def choose_class(self, y_BO: "Tensor") -> "Tensor":
        """The class (B,) of each answer, where answers have classes."""
        raise NotImplementedError

    def count_outputs(self, answers: int) -> int:
        """The outputs of a network for one answer.

        Args:
            answers: the number of classes or labels; 1 for other kinds.
        """
        return 1

    def count_target_values(self, answers: int) -> int:
        """The values in the target of one answer; for `answers` see `count_outputs`."""
        return 1

    def largest_target(self, answers: int) -> int | None:
        """The largest value in a target, which is then a whole number from 0; None: any number. See `count_outputs`."""
        return None


class Number(AnswerKind):
    """A number, or quantiles of it."""

    title = "number"
    is_number = True

    def choose_objective(self, task: LearningTask) -> Objective:
        return LOSSES[task.loss](task.quantiles)

    def decode(self, y_BSO: "Tensor") -> "Tensor":
        # Quantiles that cross are sorted; a single number stays as it is.
        return sort_quantiles(y_BSO)


class YesOrNo(AnswerKind):
    """Yes (1) or no (0); the output is the logit of yes."""

    title = "yes or no"
    has_classes = True

    def choose_objective(self, task: LearningTask) -> Objective:
        return Objective(mean_of(yes_or_no_cross_entropy), YES_OR_NO_MEASURES, outputs=1)

    def decode(self, y_BSO: "Tensor") -> "Tensor":
        return y_BSO.sigmoid()

    def choose_class(self, y_BO: "Tensor") -> "Tensor":
        return (y_BO[:, 0] > 0).long()

    def largest_target(self, answers: int) -> int:
        return 1


class Class(AnswerKind):
    """One of several classes; each has a logit."""

    title = "class"
    has_classes = True

    def choose_objective(self, task: LearningTask) -> Objective:
        measures = TOKEN_MEASURES[task.token] if task.token else CLASS_MEASURES
        return Objective(mean_of(class_cross_entropy), measures, task.outputs)

    def decode(self, y_BSO: "Tensor") -> "Tensor":
        return y_BSO.softmax(dim=2)

    def choose_class(self, y_BO: "Tensor") -> "Tensor":
        return y_BO.argmax(dim=1)

    def count_outputs(self, answers: int) -> int:
        return answers

    def largest_target(self, answers: int) -> int:
        return answers - 1


class Labels(AnswerKind):
    """For each of several labels, whether it is there; each has a logit."""

    title = "labels"

    def choose_objective(self, task: LearningTask) -> Objective:
        return Objective(mean_of(labels_cross_entropy), LABEL_MEASURES, task.outputs)

    def decode(self, y_BSO: "Tensor") -> "Tensor":
        return y_BSO.sigmoid()

    def count_outputs(self, answers: int) -> int:
        return answers

    def count_target_values(self, answers: int) -> int:
        return answers

    def largest_target(self, answers: int) -> int:
        return 1


ANSWER_KINDS: dict[str, AnswerKind] = {"value": Number(), "binary": YesOrNo(), "classes": Class(), "labels": Labels()}
"""By the names in files: `objective` in windows.json and model.json."""

AnswerKindName = Annotated[str, Choice(ANSWER_KINDS)]
