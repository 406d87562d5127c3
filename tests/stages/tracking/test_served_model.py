"""The code that is stored with a model, and the hash by which a model is stored again."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from architectures import WindowShape
from forecasting.about import About
from project.source_code import PACKAGES, ROOT, find_module_file, read_source
from stages.tracking.packaging import REQUIRED_DISTRIBUTIONS, copy_code
from stages.tracking.served_model import hash_content, stored_modules

ABOUT = About(
    problem="demo",
    key="0123",
    architecture="dense",
    hyperparameters={"units": [4]},
    shape=WindowShape(steps=3, features=2, target=0, horizon=1, day=24),
    objective="value",
    unit="°C",
    synthetic=False,
    code="4567",
    data="89ab",
    commit="cdef",
)


@pytest.fixture
def edited(tmp_path: Path) -> Callable[[str, str, str], Path]:
    """Makes a copy of the project's packages in which a text of one file is another."""

    def copy(file: str, old: str, new: str) -> Path:
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        for package in PACKAGES:
            shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
        text = (root / file).read_text(encoding="utf-8")
        assert text.count(old) >= 1, f"{file} does not contain {old!r}"
        (root / file).write_text(text.replace(old, new, 1), encoding="utf-8")
        return root

    return copy


def test_a_change_of_what_decides_forecasts_changes_the_hash(edited: Callable[[str, str, str], Path]) -> None:
    for file, old, new in (
        ("forecasting/filling.py", "import numpy as np\n", "import numpy as np\n\nLIMIT = 1\n"),
        ("forecasting/mlflow_model.py", "import mlflow\n", "import mlflow\n\nLIMIT = 1\n"),
        ("architectures/dense.py", "class ", "LIMIT = 1\n\n\nclass "),
    ):
        assert hash_content(ABOUT, edited(file, old, new)) != hash_content(ABOUT), file


def test_a_change_of_anything_else_leaves_the_hash(edited: Callable[[str, str, str], Path]) -> None:
    for file, old, new in (
        ("forecasting/filling.py", '"""', '"""Of course: '),
        ("architectures/recurrent.py", "class ", "LIMIT = 1\n\n\nclass "),
        ("architectures/view.py", "class ", "LIMIT = 1\n\n\nclass "),
        ("stages/evaluate.py", "def main", "LIMIT = 1\n\n\ndef main"),
    ):
        assert hash_content(ABOUT, edited(file, old, new)) == hash_content(ABOUT), file


def test_a_description_with_another_value_has_another_hash_unless_it_follows_from_the_others() -> None:
    assert hash_content(replace(ABOUT, unit="K")) != hash_content(ABOUT)
    assert hash_content(replace(ABOUT, levels=(0.8,))) != hash_content(ABOUT)
    same = replace(ABOUT, commit="another", reaches={0.8: (1.0,)}, ranges={"T": (0.0, 1.0)})
    assert hash_content(same) == hash_content(ABOUT)


def test_the_stored_code_is_what_a_model_imports_and_nothing_else(tmp_path: Path) -> None:
    folders = copy_code(tmp_path)
    modules = stored_modules()
    assert {Path(folder).name for folder in folders} == {module.partition(".")[0] for module in modules}
    packages = {str(parent) for module in modules for parent in find_module_file(module).parents if parent.name}
    expected = {str(find_module_file(module)) for module in modules} | {f"{folder}/__init__.py" for folder in packages}
    assert {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()} == expected
    assert not {"flows", "infra", "lifecycle", "stages"} & {module.partition(".")[0] for module in modules}
    # Elsewhere it can be imported as it is, with every architecture.
    program = (
        "import architectures, forecasting.mlflow_model, forecasting.forecaster as module; "
        "print(module.__file__, len(architectures.REGISTRY))"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    process = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith(str(tmp_path / "forecasting"))


def test_the_stored_code_needs_the_distributions_that_it_names_and_no_others() -> None:
    imported = {
        entry.module.partition(".")[0] or entry.name.partition(".")[0]
        for module in stored_modules()
        for entry in read_source((ROOT / find_module_file(module)).read_text(encoding="utf-8")).imports
    }
    # pydantic comes with pydantic_core in the one version that fits.
    others = imported - set(PACKAGES) - sys.stdlib_module_names - {"pydantic_core"}
    distributions = packages_distributions()
    assert not [name for name in others if not set(distributions[name]) & set(REQUIRED_DISTRIBUTIONS)]
    assert {name for other in others for name in distributions[other]} >= set(REQUIRED_DISTRIBUTIONS) - {"pyarrow"}


def test_whoever_imports_mlflow_has_set_what_it_reads_before() -> None:
    """`stages.tracking` sets it, and `lifecycle` imports that; the module that MLflow serves is left as it is."""
    importers = {
        str(file.relative_to(ROOT))
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
        if line.startswith(("import mlflow", "from mlflow"))
    } - {"forecasting/mlflow_model.py"}
    assert importers
    assert {file for file in importers if not file.startswith(("stages/tracking/", "lifecycle/"))} == set()
    program = (
        "import os, lifecycle; print(os.environ['MLFLOW_DISABLE_TELEMETRY'], 'mlflow' in __import__('sys').modules)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert process.stdout.split() == ["true", "False"]
