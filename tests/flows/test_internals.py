"""Recast uses parts of Prefect and of DVC that they do not document: another version must be checked before its use."""

import inspect
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from prefect import flow_engine
from prefect.client.orchestration import SyncPrefectClient
from prefect.concurrency import _leases
from prefect.deployments.runner import RunnerDeployment
from prefect.workers.process import ProcessWorker

from flows import dag, prefect_internals

MODULES = {"prefect": "flows/prefect_internals.py", "dvc": "flows/dag.py"}
CHECKED_VERSIONS = {"prefect": prefect_internals.CHECKED_VERSION, "dvc": dag.CHECKED_VERSION}


def pinned_range(package: str) -> Requirement:
    """The versions that the project allows, from the metadata that pyproject.toml gives it."""
    requirements = [Requirement(text) for text in metadata.requires("recast") or ()]
    (pinned,) = [requirement for requirement in requirements if requirement.name == package]
    return pinned


@pytest.mark.parametrize("package", MODULES)
def test_the_installed_version_is_one_that_was_checked(package: str) -> None:
    installed, checked, pinned = metadata.version(package), CHECKED_VERSIONS[package], pinned_range(package)
    advice = (
        f"{package} {installed} is installed. {MODULES[package]} uses parts of it that are not documented, and was "
        f"checked with {checked}; pyproject.toml allows {pinned.specifier}. Compare these parts in both versions, run "
        f"the tests of flows with {installed}, then change CHECKED_VERSION there and the range in pyproject.toml."
    )
    assert pinned.specifier.contains(checked), advice
    assert pinned.specifier.contains(installed), advice


def test_prefect_still_has_what_is_used_of_its_inside() -> None:
    assert list(inspect.signature(_leases.maintain_concurrency_lease).parameters)[:2] == ["lease_id", "lease_duration"]
    assert "maintain_concurrency_lease(" in inspect.getsource(flow_engine)
    assert "_parameter_openapi_schema" in RunnerDeployment.__private_attributes__
    assert "_last_polled_time" in inspect.getsource(ProcessWorker.is_worker_still_polling)
    assert "flow_run" in prefect_internals.server_tables().tables
    assert list(inspect.signature(SyncPrefectClient.request).parameters)[1:3] == ["method", "path"]


def test_prefects_engine_goes_on_without_a_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_engine, "maintain_concurrency_lease", _leases.maintain_concurrency_lease)
    prefect_internals.keep_runs_without_lease()
    assert flow_engine.maintain_concurrency_lease is not _leases.maintain_concurrency_lease  # type: ignore[attr-defined]
