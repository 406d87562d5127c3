"""The table of runners: every kind that params.yaml may choose has a runner."""

from dataclasses import replace

import pytest

from flows.dispatch import load_runner
from problems.errors import RecastError
from project.settings.runners import RUNNERS


@pytest.mark.parametrize("kind", RUNNERS)
def test_every_kind_has_a_runner(kind: str) -> None:
    if RUNNERS[kind].extra:
        pytest.importorskip("ray")
    assert callable(load_runner(kind).run)


def test_a_runner_whose_packages_are_missing_is_refused_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(RUNNERS, "ray", replace(RUNNERS["ray"], path="a_package_that_nobody_has:Runner"))
    with pytest.raises(RecastError, match=r"runner\.kind: ray needs packages.*pip install 'recast\[cluster\]'"):
        load_runner("ray")
