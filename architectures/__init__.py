"""The networks: one file a family, found by name in `REGISTRY`.

Every module of this package is imported once a name of `__all__` is asked for, so a new file with a registered class is
all that a new architecture needs.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from architectures.network import REGISTRY, Axes, Network, Output, ShapeError, TrainedAxes, register
    from architectures.shape import WindowShape

__all__ = ["REGISTRY", "Axes", "Network", "Output", "ShapeError", "TrainedAxes", "WindowShape", "register"]


def __getattr__(name: str) -> Any:
    """Not before it is asked for: PyTorch takes seconds to load, and `window` needs `architectures.shape` alone."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    network = importlib.import_module(f"{__name__}.network")
    globals().update({each: getattr(network, each) for each in __all__})
    return globals()[name]
