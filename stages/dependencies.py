"""The code dependencies in `dvc.yaml`, made of the real imports of the module that each stage runs.

    python -m stages.dependencies

writes them into `dvc.yaml`. A test fails while the file says something else.
"""

import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from problems.errors import RecastError
from project.atomic import replaced_file
from project.source_code import PACKAGES, ROOT, all_modules, imported_modules, module_file

FILE = Path("dvc.yaml")

STARTS = {
    "ingest": ("stages.ingest",),
    "normalize": ("stages.normalize",),
    "window": ("stages.window",),
    # `flows.train` runs the stage; where and when it trains decides nothing that it writes.
    "train": ("stages.train", "stages.training", "architectures"),
    # MLflow loads the module that serves a model by its file.
    "evaluate": ("stages.evaluate", "architectures", "forecasting.mlflow_model"),
}
"""The modules from which the code of each stage is found."""

DECIDES_NO_OUTPUT = {
    "project.atomic": "says how a file is written, not what is in it",
    "project.command": "runs a stage and reports its errors",
    "project.git": "asks which commit is checked out, for MLflow",
    "project.lock": "keeps two pipelines apart",
    "project.paths": "says where files lie; dvc.yaml names the same folders",
    "project.profile": "says which servers are used",
    "project.progress": "shows progress",
    "project.redaction": "removes passwords from messages",
    "project.settings.explaining": "explains errors in params.yaml",
    "project.source_code": "computes digests of source code",
    "project.spelling": "suggests names in error messages",
    "stages.dependencies": "writes these dependencies",
}
"""Modules whose code does not decide what any stage writes, each with the reason."""

RECORDED_ONLY = {"stages.tracking": "tells MLflow how trials went, and writes none of the stage's files"}
"""More of them for the stage `train`."""


def code_dependencies(stage: str, root: Path = ROOT) -> list[str]:
    """The files, and the packages all of whose modules count, that decide what a stage writes; sorted."""
    ignored = DECIDES_NO_OUTPUT | (RECORDED_ONLY if stage == "train" else {})
    modules = imported_modules(STARTS[stage], ignored, root)
    every = {package: {m for m in all_modules(root) if m.startswith(f"{package}.")} for package in _packages(root)}
    whole = {package for package, inside in every.items() if inside and inside <= modules}
    folders = {package for package in whole if package.rpartition(".")[0] not in whole}
    files = {module_file(module, root) for module in modules if not _within(module, folders)}
    resources = {
        file.relative_to(root) for folder in {file.parent for file in files} for file in (root / folder).glob("*.jinja")
    }
    return sorted([*(package.replace(".", "/") for package in folders), *map(str, files | resources)])


def _packages(root: Path) -> list[str]:
    return [module for module in all_modules(root) if module_file(module, root).stem == "__init__"]


def _within(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def is_code(dependency: str) -> bool:
    """Whether a dependency in `dvc.yaml` is code of the project."""
    return dependency.split("/")[0] in PACKAGES


def write_dependencies(file: Path = FILE) -> None:
    """Replace the code dependencies of every stage in `dvc.yaml`."""
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 120, True
    yaml.indent(mapping=2, sequence=2, offset=0)
    document: Any = yaml.load(file.read_text(encoding="utf-8"))
    for name in STARTS:
        stage = document["stages"][name]
        for dependency in [each for each in stage["deps"] if is_code(each)]:
            stage["deps"].remove(dependency)
        stage["deps"].extend(code_dependencies(name))
    with replaced_file(file) as temporary, temporary.open("w", encoding="utf-8") as out:
        yaml.dump(document, out)


if __name__ == "__main__":
    try:
        write_dependencies()
    except RecastError as error:
        sys.exit(f"error: {error}")
