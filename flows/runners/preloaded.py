"""What the process that workers are forked from imports: all that training and its log use.

Some of it would otherwise be imported only when a first trial needs it. None of it may start a thread, use an
accelerator or hold a lock: a forked process has none of its parent's threads, and would wait for them forever.
"""

import contextlib
import gc
import importlib
import os
import sys

MODULES = (
    "torch",
    # PyTorch imports its compiler for the first optimizer, and for the first choice of deterministic algorithms.
    "torch._inductor.config",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.artifact.local_artifact_repo",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "flows.runners.worker_processes",
    "flows.runners.slot_training",
)


def import_modules() -> None:
    """Import the modules, and the architectures; end this process if the one that needs them has ended meanwhile."""
    parent = os.getppid()
    for module in MODULES:
        importlib.import_module(module)
        if os.getppid() != parent:
            sys.exit()
    # Where Numba does not work, PyTorch's loops train, and the process that dispatches says so.
    with contextlib.suppress(Exception):
        importlib.import_module("architectures.kernels.layer_loop")
        importlib.import_module("architectures.kernels.loading")
        importlib.import_module("architectures.kernels.compiled").prepare_runtime()
    # The first use of a name imports every module of the package.
    importlib.import_module("architectures").REGISTRY  # noqa: B018 - see above
    # Python's collector would write to every object that it examines, and so copy the memory that the processes share.
    gc.freeze()


import_modules()
