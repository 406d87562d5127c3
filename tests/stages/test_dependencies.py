"""The code dependencies in dvc.yaml are those that the imports say."""

import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from project.source_code import ROOT, is_within, list_modules
from stages.dependencies import (
    DECIDES_NO_OUTPUT,
    MORE_BY_STAGE,
    START_MODULES,
    is_code_dependency,
    list_code_dependencies,
    write_dependencies,
)

STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def test_every_stage_has_start_modules() -> None:
    assert set(STAGES) == set(START_MODULES)


@pytest.mark.parametrize("stage", START_MODULES)
def test_dvc_yaml_lists_the_code_that_a_stage_imports(stage: str) -> None:
    listed = [dependency for dependency in STAGES[stage]["deps"] if is_code_dependency(dependency)]
    assert sorted(listed) == list_code_dependencies(stage), "run python -m stages.dependencies"
    assert all((ROOT / dependency).exists() for dependency in listed)


@pytest.mark.parametrize(
    ("stage", "dependency"),
    [
        ("ingest", "problems"),
        ("window", "stages/tables/windows.py"),
        ("train", "stages/training"),
        ("train", "stages/tables/windows.py"),
        ("evaluate", "problems"),
        ("evaluate", "stages/tracking/packaging.py"),
        ("evaluate", "forecasting/forecaster.py"),
        ("evaluate", "forecasting/climatology.py"),
    ],
)
def test_what_decides_a_stage_is_listed(stage: str, dependency: str) -> None:
    """As files, or within packages."""
    listed = STAGES[stage]["deps"]
    inside = [name for name in listed if name == dependency or dependency.startswith(f"{name}/")]
    assert inside or any(name.startswith(f"{dependency}/") for name in listed)


def test_every_entry_of_the_tables_is_a_module() -> None:
    for table in (DECIDES_NO_OUTPUT, *MORE_BY_STAGE.values()):
        for entry, reason in table.items():
            assert any(is_within(module, [entry]) for module in list_modules()), entry
            assert reason


def test_writing_them_again_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "dvc.yaml"
    shutil.copy(ROOT / "dvc.yaml", file)
    write_dependencies(file)
    assert file.read_text(encoding="utf-8") == (ROOT / "dvc.yaml").read_text(encoding="utf-8")
