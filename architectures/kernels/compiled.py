"""Compiled loops are kept on disk: each once for a version of its sources, of Numba, and a kind of processor.

They lie in `__pycache__` beside the sources, as Python's own byte-code does; in the folder that NUMBA_CACHE_DIR names;
or, where the sources cannot be written to, in the cache of the user. Each file is renamed when it is complete.
"""

import hashlib
import os
import platform
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock
from llvmlite.binding import get_host_cpu_features
from numba import njit
from numba.core import caching
from numba.core.registry import cpu_target

from architectures.kernels.blocks import OPTIONS


def _digest_sources() -> str:
    """The SHA-256 of the sources of this package."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


SOURCES = _digest_sources()
"""Of the sources as they were imported: a process compiles these, even if they have been edited since."""


class _Locator(caching._CacheLocator):  # type: ignore[misc]  # noqa: SLF001 - Numba has no public way to name files
    """Where a loop is kept. Numba itself would compare the times of files, which a fresh clone has anew."""

    def __init__(self, name: str) -> None:
        self.name = name

    def get_cache_path(self) -> str:
        return str(_find_folder())

    def get_source_stamp(self) -> str:
        return SOURCES

    def get_disambiguator(self) -> str:
        return f"{self.name}-{SOURCES[:16]}"

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> "_Locator":
        return cls(py_func.kept_as)


class _LoopFiles(caching.CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = (_Locator,)


class _LoopCache(caching.FunctionCache):  # type: ignore[misc]
    _impl_class = _LoopFiles

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        # Numba adds a hash of what a function refers to, which is another one in each process. Our name says all of it.
        return sig, codegen.magic_tuple(), SOURCES


def compile_loop(function: Callable[..., None], name: str, signature: Any) -> Callable[..., None]:
    """A compiled function. It is compiled now, unless it was before; of several processes one does it.

    Args:
        name: stands for the function and all that it calls, within one version of the sources.
        signature: the types of its arguments.
    """
    function.kept_as = name  # type: ignore[attr-defined]
    compiled = njit(**OPTIONS, nogil=True, no_cfunc_wrapper=True)(function)  # threads of Python may run meanwhile
    compiled._cache = _LoopCache(function)  # noqa: SLF001 - as `enable_caching` of Numba does with its own class
    with FileLock(_find_folder() / f"{function.__name__}-{name}.lock"):
        compiled.compile(signature)
    compiled.disable_compile()
    result: Callable[..., None] = compiled
    return result


def prepare_compiler() -> None:
    """Load what Numba otherwise loads when a process calls its first loop: half a second, once for forked processes."""
    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()


@cache
def has_fused_instructions() -> bool:
    """Whether the processor multiplies and adds in one instruction; otherwise the loops would call a slow function."""
    return platform.machine() not in ("x86_64", "AMD64") or bool(get_host_cpu_features().get("fma"))


@cache
def _find_folder() -> Path:
    """The first folder in which files can be made.

    Raises:
        OSError: there is none.
    """
    beside, user = Path(__file__).with_name("__pycache__"), Path.home() / ".cache" / "recast"
    named = os.environ.get("NUMBA_CACHE_DIR")
    for folder in (Path(named),) if named else (beside, user):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            refused = error
        else:
            return folder
    raise refused
