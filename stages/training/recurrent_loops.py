"""The compiled loops that networks need, and their compilation before the networks train or forecast."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import architectures
from architectures import Network, ShapeError
from architectures.cells.layer import MAX_COMPILED_UNITS, MIN_COMPILED_UNITS, RecurrentLayer
from architectures.kernels import loading
from architectures.kernels.compiled import Direction, Loop, find_folder
from project.progress import console, print_warning, show_progress
from stages.tables.windows import read_windows
from stages.training.failures import TrialFailed
from stages.training.fit import outline_network
from stages.training.objectives import choose_shape
from stages.training.trials import Trial

MAX_COMPILERS = 4
"""The most loops that are compiled at the same time; a compiler takes about 300 MB."""

_lock = threading.Lock()
"""Held while loops are compiled: grids that begin side by side in this process need the same ones."""

_warned = False


def list_loops(networks: Iterable[Network], directions: Sequence[Direction]) -> list[Loop]:
    """The loops that networks use on a CPU, each once."""
    layers = [layer for network in networks for layer in network.modules() if isinstance(layer, RecurrentLayer)]
    loops = {
        Loop(direction, layer.cell, layer.activation)
        for layer in layers
        if MIN_COMPILED_UNITS <= layer.units <= MAX_COMPILED_UNITS
        for direction in directions
    }
    return sorted(loops, key=str)


def list_training_loops(trials: Iterable[Trial]) -> list[Loop]:
    """The loops that trials need to train on a CPU."""
    networks = []
    for trial in {trial.configuration.label: trial for trial in trials}.values():
        configuration = trial.configuration
        shape = choose_shape(read_windows(trial.windowed), trial.train)
        # A network that cannot be made fails in its own trial.
        with suppress(ShapeError, TrialFailed):
            networks.append(outline_network(configuration.architecture, configuration.hyperparameters, shape))
    return list_loops(networks, ["forward", "backward"])


def compile_missing_loops(loops: Sequence[Loop]) -> None:
    """Compile the loops that are not kept yet, in processes of their own, and show how far that is.

    Where loops cannot be compiled, the user is told, and this process and those that it starts use PyTorch's loops.
    """
    with _lock:
        reason = loading.find_obstacle() if loops else None
        if reason is None and (missing := [loop for loop in loops if not loop.is_kept]):
            reason = _compile(missing)
        if reason is not None:
            # Workers would otherwise try again, each for itself.
            os.environ[loading.CHOICE] = "pytorch"
            _warn(loops, reason)


def _compile(loops: Sequence[Loop]) -> str | None:
    """Compile loops; why that failed, or None."""
    begun = time.monotonic()
    try:
        folder = find_folder()
    except OSError as error:
        return f"no folder to keep them in: {error}"
    compilers = min(len(loops), os.cpu_count() or 1, MAX_COMPILERS)
    with show_progress() as display, ThreadPoolExecutor(compilers) as threads:
        bar = display.add_task("Compiling recurrent loops", total=len(loops))
        shares = [loops[i::compilers] for i in range(compilers)]
        failures = list(threads.map(lambda share: _run_compiler(share, lambda: display.advance(bar)), shares))
        display.remove_task(bar)
    if failure := next(filter(None, failures), None):
        return failure
    console.print(
        f"compiled {len(loops)} {'loop' if len(loops) == 1 else 'loops'} of recurrent layers in "
        f"{time.monotonic() - begun:.0f} s; they are kept in {folder}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return None


def _run_compiler(loops: Sequence[Loop], report: Callable[[], None]) -> str | None:
    """Compile loops one after the other in a process of its own; why that failed, or None."""
    root = Path(architectures.__file__).parents[1]
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    with subprocess.Popen(
        [sys.executable, "-m", loading.__name__, *map(str, loops)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as compiler:
        printed: list[str] = []
        # Of a pipe that nobody reads, the compiler would wait for room.
        reader = threading.Thread(target=lambda: printed.extend(compiler.stderr or ()))
        reader.start()
        for _ in compiler.stdout or ():
            report()
        reader.join()
    if compiler.returncode == 0:
        return None
    return printed[-1].strip() if printed else f"the compiler ended with status {compiler.returncode}"


def _warn(loops: Sequence[Loop], reason: str) -> None:
    global _warned
    if not _warned:
        cells = ", ".join(sorted({f"{loop.cell} with {loop.activation}" for loop in loops}))
        print_warning(
            f"PyTorch's loops compute the recurrent layers ({cells}), which takes 2 to 5 times as long, because "
            f"compiled loops do not work here: {reason}; `recast doctor` says what to do"
        )
    _warned = True
