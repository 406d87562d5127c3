"""The quantiles of a baseline, which forecasts one number: they are as far from it as its errors on validation."""

from collections.abc import Sequence

import torch

from architectures import Network
from architectures.combined import QuantileBaseline
from learning.conformal import spread_quantiles
from stages.training.batches import SplitData
from stages.training.scoring import collect_errors


def spread_baseline(network: Network, quantiles: Sequence[float], validation: SplitData) -> None:
    """Set how far the quantiles are from the number that a baseline forecasts; nothing where it forecasts no quantiles.

    Otherwise a baseline would give one number for every quantile, and almost any spread would be better than that.

    Args:
        validation: the windows whose errors decide.
    """
    if isinstance(network, QuantileBaseline):
        spread_LO = spread_quantiles(collect_errors(network.network, (), validation), quantiles)
        network.spread_LO.copy_(torch.from_numpy(spread_LO))
