"""One module a DVC stage, each a pure function with a thin command, and what they share."""

import gc

# PyTorch, MLflow and Prefect make half a million objects that stay. To look through all of them again and again while
# they are imported, as Python does by itself, took a tenth of each process's start.
gc.set_threshold(*gc.get_threshold()[:2], 100)
