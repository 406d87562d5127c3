"""An actor of the Ray cluster that knows how far its bundles have come: nodes tell it, the driver asks it.

It runs on the cluster: this module imports nothing that would take seconds or memory there.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class BundleProgress:
    """How far a bundle has come.

    Attributes:
        node: the id of the node that trains it.
        begun: when it began there, in seconds since the epoch.
        epochs: that are done, of all its trials.
    """

    node: str
    begun: float
    epochs: int


class ProgressActor:
    """The progress of bundles by their numbers. What it loses, only the bar and `recast status` show."""

    def __init__(self) -> None:
        self.bundles: dict[int, BundleProgress] = {}

    def tell(self, number: int, progress: BundleProgress) -> None:
        """From a node."""
        self.bundles[number] = progress

    def read(self, numbers: Iterable[int]) -> dict[int, BundleProgress]:
        """What was told of these bundles; the others are forgotten."""
        self.bundles = {number: self.bundles[number] for number in numbers if number in self.bundles}
        return self.bundles
