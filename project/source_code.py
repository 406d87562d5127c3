"""The source code that decides a result: the modules that are imported, and a digest of what they execute.

Whether a trial, a stored model or a stage of `dvc.yaml` is still valid depends on code. Which code that is follows from
the imports of the modules that compute it, so there is no list to maintain. Each caller names the modules to start
from, and the few imported modules that decide nothing, with the reason.

A digest covers what Python executes. It ignores comments, blank lines, docstrings, the order of imports and where a
module is: an imported module counts by its own digest, not by its name. It is the same under every version of Python,
because it is computed from tokens; syntax trees differ between versions.
"""

import hashlib
import io
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from problems.errors import RecastError

ROOT = Path(__file__).parent.parent
"""The folder of the project's packages."""

PACKAGES = ("architectures", "flows", "forecasting", "infra", "learning", "lifecycle", "problems", "project", "stages")
"""The packages of the project. Which version of another package is imported, the lock file decides."""


@dataclass(frozen=True)
class Import:
    """One imported name.

    Attributes:
        module: the module named in the statement, with dots.
        name: the name imported from it; empty for `import module`.
        alias: the name in the importing module.
    """

    module: str
    name: str
    alias: str


@dataclass(frozen=True)
class Source:
    """A module's imports, and the rest of its code without comments, blank lines and docstrings."""

    imports: tuple[Import, ...]
    code: str


def find_imported_modules(starts: Iterable[str], ignored: Iterable[str] = (), root: Path = ROOT) -> set[str]:
    """These modules, and the project's modules that they import, directly or through others.

    A package is among them only where it is imported itself; importing a module of it does not count.

    Args:
        starts: module names with dots. A package stands for all of its modules.
        ignored: modules, or packages with all of their modules, that are neither counted nor followed.

    Raises:
        RecastError: a module does not exist.
    """
    ignored = tuple(ignored)
    modules: set[str] = set()
    waiting = [module for start in starts for module in _expand_package(start, root)]
    while waiting:
        module = waiting.pop()
        if module not in modules and not is_within(module, ignored):
            modules.add(module)
            waiting += _imported_by(module, root)
    return modules


def digest_source(starts: Iterable[str], ignored: Iterable[str] = (), root: Path = ROOT) -> str:
    """The SHA-256 of the code that these modules execute, including the project's modules that they import.

    Args:
        starts: see `find_imported_modules`.
        ignored: see `find_imported_modules`.

    Raises:
        RecastError: a module does not exist, or two modules import each other.
    """
    digests: dict[str, str] = {}
    ignored = tuple(ignored)
    modules = sorted({module for start in starts for module in _expand_package(start, root)})
    parts = sorted(_digest_module(module, ignored, root, digests, ()) for module in modules)
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def find_module_file(module: str, root: Path = ROOT) -> Path:
    """The file of a module or of a package, relative to `root`.

    Raises:
        RecastError: it does not exist.
    """
    path = Path(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if (root / file).is_file():
            return file
    raise RecastError(f"{root / path.with_suffix('.py')}: the project does not have a module {module}")


def list_modules(root: Path = ROOT) -> list[str]:
    """Every module of the project's packages, and the packages themselves, sorted."""
    files = [file.relative_to(root) for package in PACKAGES for file in (root / package).rglob("*.py")]
    return sorted(map(_name_module, files))


def is_within(module: str, entries: Iterable[str]) -> bool:
    """Whether a module is one of these, or in a package that is."""
    return any(module == entry or module.startswith(f"{entry}.") for entry in entries)


def read_source(text: str) -> Source:
    """Split a module's text into its imports and the code that counts."""
    lines = text.split("\n")
    imports: list[Import] = []
    statement: list[tokenize.TokenInfo] = []
    in_strings: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
        elif token.type in (tokenize.NEWLINE, tokenize.ENDMARKER):
            words = [part.string for part in statement]
            is_import = words[:1] in (["from"], ["import"])
            if is_import:
                imports += _parse_import(words)
            if is_import or _is_docstring(statement):
                _blank(lines, statement[0].start, statement[-1].end)
            else:
                in_strings |= set(_rows_in_strings(statement))
            statement = []
        elif token.type not in (tokenize.NL, tokenize.INDENT, tokenize.DEDENT):
            statement.append(token)
    kept = [
        line if row in in_strings else line.rstrip()
        for row, line in enumerate(lines, 1)
        if line.strip() or row in in_strings
    ]
    return Source(tuple(imports), "\n".join(kept))


def _is_docstring(statement: Sequence[tokenize.TokenInfo]) -> bool:
    """Whether a statement is nothing but text: of a module, a class, a function or an attribute."""
    return bool(statement) and all(
        token.type == tokenize.STRING and "f" not in token.string.lower().partition(token.string[-1])[0]
        for token in statement
    )


def _rows_in_strings(statement: Sequence[tokenize.TokenInfo]) -> Iterator[int]:
    """The rows of a statement, counted from 1, whose end is within a text: there, spaces and blank lines count.

    From Python 3.12 on, an f-string is several tokens; before, it is one.
    """
    starts: list[int] = []
    for token in statement:
        kind = tokenize.tok_name[token.type]
        if kind == "FSTRING_START":
            starts.append(token.start[0])
        elif kind == "FSTRING_END":
            yield from range(starts.pop(), token.end[0])
        elif kind == "STRING":
            yield from range(token.start[0], token.end[0])


def _blank(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> None:
    """Remove the text from `start` to `end`, which are (row, column) as in tokens."""
    (first, begin), (last, until) = start, end
    if first == last:
        lines[first - 1] = lines[first - 1][:begin] + lines[first - 1][until:]
        return
    lines[first - 1] = lines[first - 1][:begin]
    lines[last - 1] = lines[last - 1][until:]
    for row in range(first, last - 1):
        lines[row] = ""


def _parse_import(words: list[str]) -> Iterator[Import]:
    """The names that one import statement imports."""
    module = ""
    names = words[1:]
    if words[0] == "from":
        position = words.index("import")
        module, names = "".join(words[1:position]), words[position + 1 :]
    for part in " ".join(word for word in names if word not in "()").split(","):
        name, _, alias = part.strip().partition(" as ")
        name = name.replace(" ", "")
        if name:
            yield Import(module, name, alias or name) if module else Import(name, "", alias or name.partition(".")[0])


@cache
def _read_file(file: Path) -> Source:
    """The source of a file when this process first asks: the process does not execute later edits."""
    return read_source(file.read_text(encoding="utf-8"))


def _exists(module: str, root: Path) -> bool:
    path = root.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _expand_package(start: str, root: Path) -> list[str]:
    """The module itself, or all modules of a package."""
    folder = root.joinpath(*start.split("."))
    if not folder.is_dir():
        find_module_file(start, root)
        return [start]
    return [_name_module(file.relative_to(root)) for file in folder.rglob("*.py")]


def _name_module(file: Path) -> str:
    """The name of the module in a file, which is relative to the folder of the packages."""
    return ".".join(file.parent.parts if file.stem == "__init__" else file.with_suffix("").parts)


def _resolve_import(statement: Import, root: Path) -> str | None:
    """The project's module that an import loads; None for other packages."""
    if statement.module.startswith("."):
        raise RecastError(
            f"from {statement.module} import {statement.name}: write the full name of the module; relative imports are "
            "not followed"
        )
    module = statement.module or statement.name
    if module.partition(".")[0] not in PACKAGES:
        return None
    inner = f"{module}.{statement.name}"
    return inner if statement.module and statement.name and _exists(inner, root) else module


def _imported_by(module: str, root: Path) -> Iterator[str]:
    """The project's modules that a module imports itself."""
    for statement in _read_file(root / find_module_file(module, root)).imports:
        imported = _resolve_import(statement, root)
        if imported:
            find_module_file(imported, root)
            yield imported


def _digest_module(
    module: str, ignored: tuple[str, ...], root: Path, digests: dict[str, str], path: tuple[str, ...]
) -> str:
    """The digest of one module: its code, and its imports with the digests of the modules that they load.

    Args:
        digests: the digests of modules so far, to which this one is added.
        path: the modules that import each other down to this one.
    """
    if module in path:
        raise RecastError(f"these modules import each other: {' -> '.join([*path, module])}")
    if module not in digests:
        source = _read_file(root / find_module_file(module, root))
        imports = []
        for statement in source.imports:
            imported = _resolve_import(statement, root)
            if imported is None:
                imports.append(f"{statement.module} {statement.name} {statement.alias}")
            else:
                # Not the module's name: the module may move.
                name = statement.name if imported == statement.module else ""
                if is_within(imported, ignored):
                    part = "ignored"
                else:
                    part = _digest_module(imported, ignored, root, digests, (*path, module))
                imports.append(f"{part} {name} {statement.alias}")
        text = "\n".join([*sorted(set(imports)), source.code])
        digests[module] = hashlib.sha256(text.encode()).hexdigest()
    return digests[module]
