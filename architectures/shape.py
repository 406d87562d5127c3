"""The shape of the windows that a network reads. Without PyTorch: `window` determines it and trains nothing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class WindowShape:
    """The shape of the windows that a network reads, and of the answers that it gives.

    Attributes:
        steps: T, input steps in a window.
        features: F, values at each step.
        target: the index of the feature that is forecast; None: what is to be forecast is not one of the features.
        horizon: steps from the last input to the last lead; a fraction if that falls between two steps.
        day: steps in 24 hours; a fraction if a day is not a whole number of steps; 0 if the steps have no times.
        climatology: the indices of the features that are the target's climatology at a step's time and a horizon
            later; None: the problem has no climatology.
        derived: how many of the features Recast adds, which are the last ones: what is known in advance, calendar and
            climatology.
        codes: the inputs are codes below this number, one a step, instead of features; None: they are numbers.
        each: each step has an answer, which must not depend on later steps; T is then the largest number of steps.
            Otherwise the answers come after the last step.
        leads: S, the number of answers after the last step; they are a step apart, the last a horizon later.
        outputs: O, numbers in an answer: one for a value; one for each quantile, class or label.
        carried: a batch continues the sequences of the batch before, unless `Network.forget` is called between them.
    """

    steps: int
    features: int
    target: int | None
    horizon: float
    day: float
    climatology: tuple[int, int] | None = None
    derived: int = 0
    codes: int | None = None
    each: bool = False
    leads: int = 1
    outputs: int = 1
    carried: bool = False
