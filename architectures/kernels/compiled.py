"""Compiled loops are kept on disk: each once for its sources, the versions of Numba and Python, and the processor.

They lie in `__pycache__` beside the sources, as Python's own byte-code does; in the folder that NUMBA_CACHE_DIR names;
or, where the sources cannot be written to, in the cache of the user. Each file is renamed when it is complete.

A file is a line of text and the machine code that follows it. Numba's own cache would not do: it unpickles what it
reads, and it loads all code into one place, where two functions of one name become one. Numba's names count the
functions of a process, so that loops of two activations, compiled by two processes, would share names. Here each loop
is loaded into a place of its own.

This module loads Numba only to compile or to load a loop, not to say which loops are kept.
"""

import ctypes
import hashlib
import logging
import os
import platform
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

UNUSED_DAYS = 30
"""Loops that no process has loaded for so long are deleted when another is kept: their sources are of the past."""

SUFFIX = ".loop"

logger = logging.getLogger(__name__)


def _digest_sources() -> str:
    """The SHA-256 of the sources of this package."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


SOURCES = _digest_sources()
"""Of the sources as they were imported: a process compiles these, even if they have been edited since."""

Direction = Literal["forward", "backward"]


@dataclass(frozen=True)
class Loop:
    """The loop of a cell over all steps, or back over them for the derivatives.

    Attributes:
        cell: its name in `architectures.kernels.pointwise`.
    """

    direction: Direction
    cell: str
    activation: str

    def __str__(self) -> str:
        return f"{self.direction}-{self.cell}-{self.activation}"

    @classmethod
    def parse(cls, name: str) -> "Loop":
        """The loop of this name: backward-gru-tanh."""
        direction, cell, activation = name.split("-")
        return cls("forward" if direction == "forward" else "backward", cell, activation)

    @property
    def is_kept(self) -> bool:
        """Whether its file is on disk, for the present sources, versions and processor."""
        return any((folder / self.file_name).is_file() for folder in _list_folders())

    @property
    def file_name(self) -> str:
        return f"{self}-{_digest_circumstances()}{SUFFIX}"


@dataclass(frozen=True)
class Processor:
    """What loops are compiled for: this machine's processor, unless NUMBA_CPU_NAME and NUMBA_CPU_FEATURES name another.

    Attributes:
        features: its instructions as LLVM writes them: +avx2,-avx512f.
    """

    name: str
    features: str


@cache
def find_processor() -> Processor:
    """The processor that loops are compiled for.

    Raises:
        ImportError, OSError: LLVM cannot be loaded.
    """
    from llvmlite import binding  # noqa: PLC0415 - it may be what does not work

    name, features = os.environ.get("NUMBA_CPU_NAME"), os.environ.get("NUMBA_CPU_FEATURES")
    return Processor(
        binding.get_host_cpu_name() if name is None else name,
        binding.get_host_cpu_features().flatten() if features is None else features,
    )


@cache
def has_fused_instructions() -> bool:
    """Whether the processor multiplies and adds in one instruction; otherwise the loops would call a slow function."""
    return platform.machine() not in ("x86_64", "AMD64") or "-fma" not in find_processor().features.split(",")


@cache
def _digest_circumstances() -> str:
    """A digest of all that decides the machine code of a loop."""
    from llvmlite import binding  # noqa: PLC0415 - it may be what does not work

    options = sorted(
        f"{name}={value}"
        for name, value in os.environ.items()
        if name.startswith("NUMBA_") and name not in ("NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS")
    )
    processor = find_processor()
    circumstances = [SOURCES, version("numba"), version("llvmlite"), str(sys.implementation.cache_tag)]
    circumstances += [binding.get_process_triple(), processor.name, processor.features, *options]
    return hashlib.sha256("\n".join(circumstances).encode()).hexdigest()[:16]


def compile_loop(function: Callable[..., None], name: str, signature: Any) -> Callable[..., None]:
    """A compiled function. It is compiled now, unless it was before; of several processes one does it.

    Args:
        function: is called `forward` or `backward`.
        name: stands for the function and all that it calls, within one version of the sources: gru-tanh.
        signature: the types of its arguments.

    Raises:
        OSError: no file can be written.
        Exception: whatever Numba and LLVM raise where they do not work.
    """
    loop = Loop.parse(f"{function.__name__}-{name}")
    prepare_runtime()
    loaded = _load(loop)
    if loaded is None:
        folder = find_folder()
        with FileLock(folder / f"{loop}.lock"):
            # Another process may have compiled it while this one waited.
            loaded = _load(loop)
            if loaded is None:
                logger.warning("Compiling the recurrent loop %s, which is then kept in %s", loop, folder)
                _compile(function, signature, folder / loop.file_name)
                _remove_unused(folder)
                loaded = _load(loop)
    if loaded is None:
        raise OSError(f"{loop.file_name} is not read as it was written")
    return loaded


def prepare_runtime() -> None:
    """Load what loops call: memory for their arrays. Numba's compiler, which takes a second more, is not loaded."""
    from numba.core.registry import cpu_target  # noqa: PLC0415 - see the docstring of the module
    from numba.core.runtime import rtsys  # noqa: PLC0415 - see the docstring of the module

    rtsys.initialize(cpu_target.target_context)


def _compile(function: Callable[..., None], signature: Any, file: Path) -> None:
    """Compile a function and write its file: the names of its entry and of its environment, a digest, and its code."""
    from numba import njit  # noqa: PLC0415 - see the docstring of the module
    from numba.core.registry import cpu_target  # noqa: PLC0415 - see the docstring of the module

    from architectures.kernels.blocks import OPTIONS  # noqa: PLC0415 - loads Numba

    compiled = njit(**OPTIONS, nogil=True, no_cfunc_wrapper=True)(function)  # threads of Python may run meanwhile
    compiled.compile(signature)
    result = compiled.overloads[signature.args]
    if result.library.has_dynamic_globals or result.lifted or result.environment.consts:
        raise TypeError(f"{function.__name__} refers to objects of this process, and cannot be kept")
    _, _, (code, _) = result.library.serialize_using_object_code()
    names = (result.fndesc.llvm_cpython_wrapper_name, cpu_target.target_context.get_env_name(result.fndesc))
    header = " ".join((*names, hashlib.sha256(code).hexdigest()))
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}-", delete=False) as temporary:
        try:
            temporary.write(header.encode() + b"\n" + code)
            temporary.close()
            Path(temporary.name).replace(file)
        except BaseException:
            Path(temporary.name).unlink(missing_ok=True)
            raise


def _load(loop: Loop) -> Callable[..., None] | None:
    """A loop that is kept as it was written; None: there is none."""
    for folder in _list_folders():
        file = folder / loop.file_name
        with suppress(FileNotFoundError, PermissionError):
            header, _, code = file.read_bytes().partition(b"\n")
            *names, digest = header.decode(errors="replace").split(" ")
            if len(names) != 2 or hashlib.sha256(code).hexdigest() != digest:
                continue
            # It counts as used; a folder that others write to may refuse.
            with suppress(PermissionError):
                os.utime(file)
            return _load_code(code, *names)
    return None


def _load_code(code: bytes, entry: str, environment_name: str) -> Callable[..., None]:
    """The function of a compiled loop, which takes arrays.

    Args:
        entry: the name of the function that Python can call.
        environment_name: that of the variable with Numba's environment of the function.
    """
    from llvmlite import binding  # noqa: PLC0415 - it may be what does not work
    from numba import _dynfunc  # noqa: PLC0415 - see the docstring of the module

    target_machine = binding.Target.from_default_triple().create_target_machine(jit=True)
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), target_machine)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    environment = _dynfunc.Environment(globals={})
    variable = ctypes.c_void_p.from_address(engine.get_global_value_address(environment_name))
    variable.value = id(environment)
    # The function keeps alive what stands last.
    function: Callable[..., None] = _dynfunc.make_function(
        sys.modules[__name__], entry, "", engine.get_function_address(entry), environment, (engine,)
    )
    return function


def list_kept() -> list[Path]:
    """The files of the loops that are kept for the present sources, versions and processor."""
    pattern = f"*-{_digest_circumstances()}{SUFFIX}"
    return [file for folder in _list_folders() for file in sorted(folder.glob(pattern))]


@cache
def find_folder() -> Path:
    """The first folder in which loops can be kept.

    Raises:
        OSError: there is none.
    """
    refused: OSError | None = None
    for folder in _name_folders():
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_owner(folder)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            refused = error
        else:
            return folder
    raise refused or FileNotFoundError("no folder for compiled loops")


def _name_folders() -> tuple[Path, ...]:
    if named := os.environ.get("NUMBA_CACHE_DIR"):
        return (Path(named),)
    return Path(__file__).with_name("__pycache__"), Path.home() / ".cache" / "recast-loops"


def _list_folders() -> Iterator[Path]:
    """The folders whose files may be loaded. Not all of them can be written to."""
    for folder in _name_folders():
        with suppress(OSError):
            _check_owner(folder)
            yield folder


def _check_owner(folder: Path) -> None:
    """
    Raises:
        OSError: the folder does not exist, or others can write code to it that this process would run.
    """
    status = folder.stat()
    if os.name != "posix":
        return
    if status.st_mode & stat.S_IWOTH:
        raise PermissionError(f"{folder} can be written to by everybody: `chmod o-w {folder}`")
    if status.st_uid not in (os.getuid(), 0):
        raise PermissionError(f"{folder} belongs to another user")


def _remove_unused(folder: Path) -> None:
    """Delete the loops that no process has loaded for `UNUSED_DAYS`."""
    oldest = time.time() - UNUSED_DAYS * 86_400
    for file in folder.glob(f"*{SUFFIX}"):
        # Another process may delete it at the same time.
        with suppress(FileNotFoundError):
            if file.stat().st_mtime < oldest:
                file.unlink()
