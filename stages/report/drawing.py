"""One caller of matplotlib at a time: its settings are the process's, and stages run side by side in its threads."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_lock = threading.RLock()


@contextmanager
def drawing(style: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Draw by matplotlib's own defaults and these settings, whatever a user's matplotlibrc says, while no other does.

    Whatever makes, fills or saves a figure belongs in the block, which may stand in another one of the same thread.
    """
    # Here: whoever only reads of runs, such as the service, draws nothing, and matplotlib takes half a second to load.
    import matplotlib.style

    with _lock, matplotlib.style.context(["default", dict(style or {})]):
        yield
