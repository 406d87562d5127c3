"""Whether this process can use the compiled loops, and the command that compiles them in a process of its own.

    python -m architectures.kernels.loading LOOP ...    compile loops, such as backward-gru-tanh, unless they are kept

Where compiled loops cannot be used, PyTorch's loops compute the same, within rounding.
"""

import os
import sys
from collections.abc import Callable, Sequence
from functools import cache

from architectures.kernels.compiled import Loop, has_fused_instructions, logger

CHOICE = "RECAST_RECURRENT_LOOPS"
"""The environment variable that may choose `pytorch`: then no loop is compiled."""

NO_FUSED_INSTRUCTIONS = "the processor has no FMA instructions"

_failure: str | None = None
"""Why a loop could not be loaded or compiled in this process."""


def load_loop(loop: Loop) -> Callable[..., None]:
    """A compiled loop. It is compiled first if it is not kept.

    Raises:
        Exception: whatever Numba, LLVM or the system raise where they do not work.
    """
    from architectures.kernels import time_loop  # noqa: PLC0415 - loads Numba

    compile_direction = time_loop.compile_forward if loop.direction == "forward" else time_loop.compile_backward
    return compile_direction(loop.cell, loop.activation)


def find_obstacle() -> str | None:
    """Why this process does not use compiled loops; None: as far as is known, it can."""
    if os.environ.get(CHOICE) == "pytorch":
        return f"{CHOICE} is pytorch"
    try:
        if not has_fused_instructions():
            return NO_FUSED_INSTRUCTIONS
    # Whatever keeps LLVM from being loaded.
    except Exception as error:
        return describe_error(error)
    return _failure


@cache
def can_load(cell: str, activation: str, with_derivatives: bool) -> bool:
    """Whether the loops of a cell can be used. They are loaded, and compiled if they are not kept.

    If one of them fails, this process uses no compiled loops at all from then on, so that the choice is the same for
    all layers.
    """
    global _failure
    if find_obstacle() is None:
        try:
            load_loop(Loop("forward", cell, activation))
            if with_derivatives:
                load_loop(Loop("backward", cell, activation))
        # Numba and LLVM raise errors of many kinds, and PyTorch's loops need none of what may be broken.
        except Exception as error:
            _failure = describe_error(error)
            can_load.cache_clear()
            logger.warning("The recurrent layers use PyTorch's loops, which take longer: %s", _failure)
    return find_obstacle() is None


def describe_error(error: Exception) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def main(names: Sequence[str]) -> None:
    """Compile loops, and print the name of each when it is done; at the first error print the error and end."""
    for name in names:
        try:
            load_loop(Loop.parse(name))
        except Exception as error:
            sys.exit(describe_error(error))
        print(name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
