"""Where the nodes of a Ray cluster tell how far their bundles have come.

It runs on the cluster: this module imports nothing that would take seconds or memory there.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Told:
    """How far a bundle has come: the id of its node, since when, and the epochs that are done."""

    node: str
    begun: float
    epochs: int


class Desk:
    """An actor of the cluster: nodes tell it how far their bundles have come. What it loses, only the bar shows."""

    def __init__(self) -> None:
        self.told: dict[int, Told] = {}

    def tell(self, number: int, what: Told) -> None:
        """From a node."""
        self.told[number] = what

    def read(self, numbers: Iterable[int]) -> dict[int, Told]:
        """What was told of these bundles; the others are forgotten."""
        self.told = {number: self.told[number] for number in numbers if number in self.told}
        return self.told
