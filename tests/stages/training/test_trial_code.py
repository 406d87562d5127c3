"""The source code in a trial's key: all that decides the trial, and nothing else."""

import shutil
from pathlib import Path

import pytest

from architectures import REGISTRY
from project.source_code import (
    PACKAGES,
    ROOT,
    find_imported_modules,
    find_module_file,
    is_within,
    list_modules,
    read_source,
)
from stages.training.trial_code import DECIDES_NO_TRIAL, digest_trial_code, list_start_modules

EVERY = set(REGISTRY)


@pytest.fixture(scope="module")
def before() -> dict[str, str]:
    return {name: digest_trial_code(name) for name in REGISTRY}


def digest_edited(root: Path, file: str, old: str, new: str) -> dict[str, str]:
    """The digests of a copy of the project in which a file is edited.

    Args:
        old: what is replaced; empty: `new` is added at the end.
    """
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
    text = (root / file).read_text(encoding="utf-8")
    assert old in text
    (root / file).write_text(text.replace(old, new) if old else text + new, encoding="utf-8")
    return {name: digest_trial_code(name, root) for name in REGISTRY}


def test_a_comment_changes_no_digest(tmp_path: Path, before: dict[str, str]) -> None:
    assert digest_edited(tmp_path, "architectures/network.py", "", "\n\n# a comment\n") == before


@pytest.mark.parametrize(
    ("module", "changed", "unchanged"),
    [
        ("architectures/recurrent.py", {"gru"}, {"dense"}),
        ("architectures/dense.py", {"dense"}, {"gru"}),
        ("architectures/network.py", EVERY, set()),
        ("architectures/view.py", set(), EVERY),
        ("learning/optimizers.py", EVERY, set()),
        ("learning/scores.py", EVERY, set()),
        ("stages/training/fit.py", EVERY, set()),
        ("stages/training/results.py", EVERY, set()),
        ("stages/sequences/reading.py", EVERY, set()),
        ("stages/training/outcomes.py", set(), EVERY),
        ("stages/tracking/trial_run.py", set(), EVERY),
        ("forecasting/forecaster.py", set(), EVERY),
    ],
)
def test_a_digest_changes_with_the_code_that_decides_a_trial_of_the_architecture(
    tmp_path: Path, before: dict[str, str], module: str, changed: set[str], unchanged: set[str]
) -> None:
    after = digest_edited(tmp_path, module, "", "\nx = 1\n")
    different = {name for name in REGISTRY if after[name] != before[name]}
    assert changed <= different
    assert not different & unchanged


def test_a_digest_changes_with_the_targets_of_a_window(tmp_path: Path, before: dict[str, str]) -> None:
    """Batches read the leads of a window when they gather targets; no stage stores them."""
    after = digest_edited(
        tmp_path, "stages/tables/windows.py", "self.delay - self.step *", "1 + self.delay - self.step *"
    )
    assert all(after[name] != before[name] for name in REGISTRY)


def is_empty(module: str) -> bool:
    """Whether importing a module executes nothing, as of a package that has only a docstring."""
    source = read_source((ROOT / find_module_file(module)).read_text(encoding="utf-8"))
    return not source.imports and not source.code


def test_every_module_decides_a_trial_or_has_a_reason_why_not() -> None:
    deciding = {
        module for name in REGISTRY for module in find_imported_modules(list_start_modules(name), DECIDES_NO_TRIAL)
    }
    for module in list_modules():
        reasons = [entry for entry in DECIDES_NO_TRIAL if is_within(module, [entry])]
        if module in deciding:
            assert not reasons, f"{module} decides trials, and {reasons} say that it does not"
        else:
            assert reasons or is_empty(module), f"{module}: does it decide the result of a trial? see DECIDES_NO_TRIAL"


def test_every_reason_is_of_a_module() -> None:
    for entry, reason in DECIDES_NO_TRIAL.items():
        assert any(is_within(module, [entry]) for module in list_modules()), f"{entry} is not a module"
        assert reason
