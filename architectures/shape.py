"""What a network is told of its windows. Without PyTorch: `window` finds it out and trains nothing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class WindowShape:
    """What a network is told of the windows it will see.

    Attributes:
        steps: T, input steps in a window.
        features: F, values at each step.
        target: index of the feature that is forecast; None: what is asked for is none of the features.
        horizon: steps from the last input to the last lead; a fraction where that falls between two steps.
        day: steps in 24 hours; a fraction where a day is no whole number of steps; 0 where the steps have no clock.
        climatology: indices of the features that are the target's climatology at a step's time and a horizon after
            it; None: the problem has none.
        derived: how many features, the last ones, Recast adds: what is known in advance, calendar and climatology.
        codes: the inputs are codes below this number, one a step, in the place of features; None: they are numbers.
        each: an answer is asked for at each step, of which T then is the largest number, and it must not depend on
            later steps; otherwise after the last.
        leads: S, answers that are asked for after the last step, a step apart, the last a horizon on.
        outputs: O, numbers in an answer: one for a value; one for each quantile, class or label.
        carried: a batch goes on where the one before ended, unless `Network.forget` is called between them.
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
