"""Exclusive use of matplotlib: its settings belong to the process, in which stages run in parallel threads."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_lock = threading.RLock()


@contextmanager
def use_matplotlib(style: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Use matplotlib with its own defaults and these settings, whatever a user's matplotlibrc says.

    Only one thread at a time can be in such a block. All code that creates, fills or saves a figure belongs in one.
    Blocks of one thread may be nested.

    Args:
        style: settings that differ from matplotlib's defaults.
    """
    import matplotlib.style  # noqa: PLC0415 - saves half a second where nothing is drawn, as in the service

    with _lock, matplotlib.style.context(["default", dict(style or {})]):
        yield
