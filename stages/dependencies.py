"""The code dependencies in `dvc.yaml`, derived from the imports of the module that each stage runs.

    python -m stages.dependencies

writes them into `dvc.yaml`. A test fails if the file differs from what the imports say.
"""

import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from problems.errors import RecastError
from project.atomic import replace_file
from project.source_code import PACKAGES, ROOT, find_imported_modules, find_module_file, is_within, list_modules

DVC_FILE = Path("dvc.yaml")

START_MODULES = {
    "ingest": ("stages.ingest",),
    "normalize": ("stages.normalize",),
    "window": ("stages.window",),
    # `flows.train` runs the stage; where and when it trains decides nothing that it writes.
    "train": ("stages.train", "stages.training", "architectures"),
    # MLflow loads the module that serves a model by its file.
    "evaluate": ("stages.evaluate", "architectures", "forecasting.mlflow_model"),
}
"""The modules whose imports are the code of each stage."""

DECIDES_NO_OUTPUT = {
    "problems.passwords": "hides passwords in messages",
    "problems.wording": "shortens messages",
    "project.atomic": "says how a file is written, not what is in it",
    "project.command": "runs a stage and reports its errors",
    "project.disk": "explains errors of the disk",
    "project.git": "asks which commit is checked out, for MLflow",
    "project.lock": "keeps two pipelines apart",
    "project.paths": "says where files are; dvc.yaml names the same folders",
    "project.profile": "says which servers are used",
    "project.progress": "shows progress",
    "project.redaction": "removes passwords from logs",
    "project.retry": "says how long a server is waited for",
    "project.settings.explaining": "explains errors in params.yaml",
    "project.settings.operation": "says where trials run and what happens to their results",
    "project.settings.runners": "says where trials are trained",
    "project.source_code": "computes digests of source code",
    "project.spelling": "suggests names in error messages",
    "stages.dependencies": "writes these dependencies",
    "stages.tables.polars_errors": "explains errors of Polars",
    "stages.tables.polars_limits": "limits memory, whatever is read",
}
"""Modules whose code does not decide what any stage writes, each with the reason."""

CONCERNS_TRAINING = {
    "learning.losses": "says what networks are trained for",
    "learning.measures": "says what networks are measured by",
    "learning.objectives": "says what networks are trained for",
    "learning.scores": "says how good answers are",
}
"""More such modules of the stages before `train`, which read the kinds of answers and check the settings."""

MORE_BY_STAGE = {
    "ingest": CONCERNS_TRAINING,
    "normalize": CONCERNS_TRAINING,
    "window": CONCERNS_TRAINING,
}


def list_code_dependencies(stage: str, root: Path = ROOT) -> list[str]:
    """The files that decide what a stage writes, sorted; a package where all of its modules do."""
    ignored = DECIDES_NO_OUTPUT | MORE_BY_STAGE.get(stage, {})
    modules = find_imported_modules(START_MODULES[stage], ignored, root)
    all_modules = list_modules(root)
    packages = [module for module in all_modules if find_module_file(module, root).stem == "__init__"]
    contents = {package: {m for m in all_modules if m.startswith(f"{package}.")} for package in packages}
    whole = {package for package, content in contents.items() if content and content <= modules}
    folders = {package for package in whole if package.rpartition(".")[0] not in whole}
    files = {find_module_file(module, root) for module in modules if not is_within(module, folders)}
    templates = {
        file.relative_to(root) for folder in {file.parent for file in files} for file in (root / folder).glob("*.jinja")
    }
    return sorted([*(package.replace(".", "/") for package in folders), *map(str, files | templates)])


def is_code_dependency(dependency: str) -> bool:
    """Whether a dependency in `dvc.yaml` is code of the project."""
    return dependency.split("/")[0] in PACKAGES


def write_dependencies(file: Path = DVC_FILE) -> None:
    """Replace the code dependencies of every stage in `dvc.yaml`."""
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 120, True
    yaml.indent(mapping=2, sequence=2, offset=0)
    document: Any = yaml.load(file.read_text(encoding="utf-8"))
    for stage_name in START_MODULES:
        stage = document["stages"][stage_name]
        for dependency in [name for name in stage["deps"] if is_code_dependency(name)]:
            stage["deps"].remove(dependency)
        stage["deps"].extend(list_code_dependencies(stage_name))
    with replace_file(file) as temporary, temporary.open("w", encoding="utf-8") as out:
        yaml.dump(document, out)


if __name__ == "__main__":
    try:
        write_dependencies()
    except RecastError as error:
        sys.exit(f"error: {error}")
