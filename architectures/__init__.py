"""The networks: one file a family. `REGISTRY` has every architecture by its name in the grid.

A new architecture needs no more than a new file with a registered class: the first use of a name of `__all__` imports
every module of this package.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from architectures.network import REGISTRY, Axes, Network, Output, ShapeError, TrainedAxes, register
    from architectures.shape import WindowShape

__all__ = ["REGISTRY", "Axes", "Network", "Output", "ShapeError", "TrainedAxes", "WindowShape", "register"]


def __getattr__(name: str) -> Any:
    """Import the package's modules at the first use of a name of `__all__`.

    They are not imported earlier because PyTorch takes seconds to load, and the stage `window`, which needs only
    `architectures.shape`, does without it.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    network = importlib.import_module(f"{__name__}.network")
    globals().update({public: getattr(network, public) for public in __all__})
    return globals()[name]
