"""NumPy, Polars and httpx, loaded when they are first used.

The settings consist of classes of this package, and a command that only reads settings should not wait for libraries
that read data. A module that imports from here begins with `from __future__ import annotations`: its annotations would
load the libraries at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx
    import numpy as np
    import polars as pl
else:

    class _LazyModule:
        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            return getattr(import_module(self._name), attribute)

    httpx, np, pl = _LazyModule("httpx"), _LazyModule("numpy"), _LazyModule("polars")

__all__ = ["httpx", "np", "pl"]
