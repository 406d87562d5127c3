"""The networks: one file a family, found by name in `REGISTRY`.

Every module of this package is imported here, so a new file with a registered class is all that a new architecture
needs.
"""

import importlib
import pkgutil

from architectures.network import REGISTRY, Axes, Network, Output, ShapeError, TrainedAxes, WindowShape, register

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["REGISTRY", "Axes", "Network", "Output", "ShapeError", "TrainedAxes", "WindowShape", "register"]
