"""The source code that decides a result: found by following imports, hashed by what it means.

Whether a trial, a stored model or a stage of `dvc.yaml` is still valid depends on code. Which code that is follows from
the imports of the modules that compute it, so there is no list to forget. Each caller names the modules that it starts
from, and the few modules on the way that decide nothing, with the reason.

A digest covers what Python executes. It ignores comments, blank lines, docstrings, the order of imports and where a
module lies: an imported module counts by its own digest, not by its name. It is the same under every version of Python,
because it is computed from tokens; syntax trees differ between versions.
"""

import hashlib
import io
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from problems.errors import RecastError

ROOT = Path(__file__).parent.parent
"""The folder that holds the project's packages."""

PACKAGES = ("architectures", "flows", "forecasting", "infra", "lifecycle", "problems", "project", "stages")
"""The packages of the project; an import of anything else is the lock file's business."""


@dataclass(frozen=True)
class Import:
    """One imported name.

    Attributes:
        module: the module named in the statement, with dots.
        name: what is imported from it; empty for `import module`.
        alias: the name that it gets in the importing module.
    """

    module: str
    name: str
    alias: str


@dataclass(frozen=True)
class Source:
    """A module's imports, and the rest of its code without comments, blank lines and docstrings."""

    imports: tuple[Import, ...]
    code: str


def imported_modules(starts: Iterable[str], ignored: Iterable[str] = (), root: Path = ROOT) -> set[str]:
    """The project's modules that these import, directly or through others, and themselves.

    Args:
        starts: module names with dots. A package stands for all of its modules.
        ignored: modules, or packages with all of their modules, that are neither counted nor followed.

    Raises:
        RecastError: a module does not exist.
    """
    ignored = tuple(ignored)
    found: set[str] = set()
    waiting = [module for start in starts for module in _expand(start, root)]
    while waiting:
        module = waiting.pop()
        if module not in found and not _is_within(module, ignored):
            found.add(module)
            waiting += _targets(module, root)
    return found


def source_digest(starts: Iterable[str], ignored: Iterable[str] = (), root: Path = ROOT) -> str:
    """The SHA-256 of the code that these modules execute, imported modules of the project included.

    Args:
        starts: see `imported_modules`.
        ignored: see `imported_modules`.

    Raises:
        RecastError: a module does not exist, or two modules import each other.
    """
    digests: dict[str, str] = {}
    ignored = tuple(ignored)
    modules = sorted({module for start in starts for module in _expand(start, root)})
    parts = sorted(_module_digest(module, ignored, root, digests, ()) for module in modules)
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def module_file(module: str, root: Path = ROOT) -> Path:
    """The file of a module or of a package, relative to `root`.

    Raises:
        RecastError: there is none.
    """
    path = Path(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if (root / file).is_file():
            return file
    raise RecastError(f"{root / path.with_suffix('.py')}: the project has no module {module}")


def all_modules(root: Path = ROOT) -> list[str]:
    """Every module of the project's packages, packages themselves included, sorted."""
    files = [file.relative_to(root) for package in PACKAGES for file in (root / package).rglob("*.py")]
    return sorted(map(_module_name, files))


def read_source(text: str) -> Source:
    """Split a module's text into its imports and the code that counts."""
    lines = text.split("\n")
    imports: list[Import] = []
    statement: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
        elif token.type in (tokenize.NEWLINE, tokenize.ENDMARKER):
            words = [each.string for each in statement]
            is_text = bool(statement) and all(each.type == tokenize.STRING for each in statement)
            if words[:1] in (["from"], ["import"]):
                imports += _parse_import(words)
            if words and (is_text or words[0] in ("from", "import")):
                _blank(lines, statement[0].start, statement[-1].end)
            statement = []
        elif token.type not in (tokenize.NL, tokenize.INDENT, tokenize.DEDENT):
            statement.append(token)
    return Source(tuple(imports), "\n".join(line.rstrip() for line in lines if line.strip()))


def _blank(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> None:
    """Remove the text from `start` to `end`, (row, column) as tokens have them."""
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
        at = words.index("import")
        module, names = "".join(words[1:at]), words[at + 1 :]
    for part in " ".join(word for word in names if word not in "()").split(","):
        name, _, alias = part.strip().partition(" as ")
        name = name.replace(" ", "")
        if name:
            yield Import(module, name, alias or name) if module else Import(name, "", alias or name.partition(".")[0])


@cache
def _read(file: Path) -> Source:
    """The source of a file as it is when this process first asks: what is edited later, the process does not run."""
    return read_source(file.read_text(encoding="utf-8"))


def _exists(module: str, root: Path) -> bool:
    path = root.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in PACKAGES


def _is_within(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes)


def _expand(start: str, root: Path) -> list[str]:
    """The module itself, or all modules of a package."""
    folder = root.joinpath(*start.split("."))
    if not folder.is_dir():
        module_file(start, root)
        return [start]
    return [_module_name(file.relative_to(root)) for file in folder.rglob("*.py")]


def _module_name(file: Path) -> str:
    """The module in a file, which is relative to the packages' folder."""
    return ".".join(file.parent.parts if file.stem == "__init__" else file.with_suffix("").parts)


def _target(each: Import, root: Path) -> str | None:
    """The project's module that an import loads; None for other packages."""
    if each.module.startswith("."):
        raise RecastError(
            f"from {each.module} import {each.name}: write the full module name; relative imports are not followed"
        )
    module = each.module or each.name
    if not _is_ours(module):
        return None
    inner = f"{module}.{each.name}"
    return inner if each.module and each.name and _exists(inner, root) else module


def _targets(module: str, root: Path) -> Iterator[str]:
    for each in _read(root / module_file(module, root)).imports:
        target = _target(each, root)
        if target:
            module_file(target, root)
            yield target


def _module_digest(
    module: str, ignored: tuple[str, ...], root: Path, digests: dict[str, str], path: tuple[str, ...]
) -> str:
    """The digest of one module: its code, and its imports with the digests of the modules that they load."""
    if module in path:
        raise RecastError(f"these modules import each other: {' -> '.join([*path, module])}")
    if module not in digests:
        source = _read(root / module_file(module, root))
        imports = []
        for each in source.imports:
            target = _target(each, root)
            if target is None:
                imports.append(f"{each.module} {each.name} {each.alias}")
            else:
                # Not the module's name: it may move.
                name = each.name if target == each.module else ""
                if _is_within(target, ignored):
                    part = "ignored"
                else:
                    part = _module_digest(target, ignored, root, digests, (*path, module))
                imports.append(f"{part} {name} {each.alias}")
        text = "\n".join([*sorted(set(imports)), source.code])
        digests[module] = hashlib.sha256(text.encode()).hexdigest()
    return digests[module]
