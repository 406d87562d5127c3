"""An actor of the Ray cluster that knows how far its bundles have come: nodes report to it, the driver asks it.

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
        epochs: completed epochs of all its trials.
    """

    node: str
    begun: float
    epochs: int


class ProgressActor:
    """The progress of bundles by the numbers of their jobs. Only the progress bar and `recast status` use it."""

    def __init__(self) -> None:
        self.bundles: dict[int, BundleProgress] = {}

    def update(self, number: int, progress: BundleProgress) -> None:
        """Called by a node: how far a bundle has come now."""
        self.bundles[number] = progress

    def read(self, numbers: Iterable[int]) -> dict[int, BundleProgress]:
        """Called by the driver: the progress of these bundles. That of all others is forgotten."""
        self.bundles = {number: self.bundles[number] for number in numbers if number in self.bundles}
        return self.bundles
