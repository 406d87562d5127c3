"""The registry of champions: one version for each trial, a history that aliases follow, and rollbacks."""

import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from typer.testing import CliRunner

from flows.cli import app
from lifecycle.champions import history, pages, promotion, registry
from lifecycle.champions.history import Version
from lifecycle.champions.promotion import CHALLENGER, CHAMPION, PREVIOUS
from problems.errors import RecastError
from project import paths
from project.retry import retry_while_unreachable
from project.settings.loading import load_settings
from stages.tracking import store
from stages.tracking.packaging import CONTENT_TAG
from stages.training.expansion import list_trials
from stages.training.trials import Trial
from tests.support.champions import roll_back
from tests.support.checkout import Checkout


@pytest.fixture
def checkout(finished: Checkout, tmp_path: Path) -> Iterator[Checkout]:
    """A finished checkout that this process works in."""
    copied = finished.copy(tmp_path / "checkout")
    with copied.entered():
        yield copied


def trials() -> list[Trial]:
    """The trials whose models are stored: one for each architecture."""
    return [
        each
        for each in list_trials(load_settings(), "demo", paths.stage_folder("window", "demo"))
        if registry.is_stored(each)
    ]


def versions() -> list[Version]:
    """Three versions, registered."""
    found = [registry.register_version(trial, {"recast.data": trial.data}) for trial in trials()]
    assert len(found) == 3
    return found


def aliases() -> dict[str, int]:
    """The versions of MLflow's aliases."""
    return {
        name: int(at) for name, at in MlflowClient(store.tracking_uri()).get_registered_model("demo").aliases.items()
    }


def test_a_trial_has_one_version_however_often_it_is_registered(checkout: Checkout) -> None:
    first = versions()
    assert versions() == first
    assert list(registry.list_versions("demo").values()) == first
    found = MlflowClient(store.tracking_uri()).get_model_version("demo", str(first[1].version))
    assert found.tags[registry.KEY_TAG] == trials()[1].key
    assert found.run_id == first[1].run
    assert found.tags["recast.data"] == trials()[1].data


def test_a_model_that_was_stored_again_with_another_content_is_another_version(checkout: Checkout) -> None:
    _, two, _ = versions()
    promotion.promote("demo", two, None)
    trial = trials()[1]
    before = store.get_client().get_run(two.run).data.tags[CONTENT_TAG]
    store.get_client().set_tag(two.run, CONTENT_TAG, "other intervals")
    other = registry.register_version(trial, {})
    assert (other.version, other.key, other.run) == (4, two.key, two.run)
    assert registry.register_version(trial, {}) == other
    assert len(registry.list_versions("demo")) == 4
    assert history.find_champion("demo") == two
    assert aliases() == {CHAMPION: two.version}
    store.get_client().set_tag(two.run, CONTENT_TAG, before)
    assert registry.register_version(trial, {}) == two


def test_aliases_follow_the_history_and_a_rollback_goes_back_step_by_step(checkout: Checkout) -> None:
    one, two, three = versions()
    with pytest.raises(RecastError, match="there is no champion"):
        roll_back("demo")
    for version in (one, two):
        promotion.propose_challenger(version)
        assert history.find_challenger("demo") == version
        promotion.promote("demo", version, None, "it is better")
    assert aliases() == {CHAMPION: two.version, PREVIOUS: one.version}
    promotion.propose_challenger(three)
    promotion.refuse(three, "a decision", "it is worse")
    promotion.refuse(three, "a decision", "it is worse")
    assert aliases() == {CHAMPION: two.version, PREVIOUS: one.version, CHALLENGER: three.version}
    # By hand, against the decision.
    promotion.promote("demo", three, None, "by hand", by="a person")
    promotion.promote("demo", three, None, "by hand", by="a person")
    assert history.find_champion("demo") == three
    assert roll_back("demo") == two
    assert history.find_champion("demo") == two
    assert roll_back("demo") == one
    assert aliases() == {CHAMPION: one.version}
    with pytest.raises(RecastError, match=f"version {one.version} is the first champion"):
        roll_back("demo")
    promotion.promote("demo", three, None, "by hand")
    assert aliases() == {CHAMPION: three.version, PREVIOUS: one.version}
    kinds = [entry.kind for entry in history.read_history("demo")]
    assert kinds == ["challenge", "promotion"] * 2 + ["challenge", "refusal", "promotion"] + ["rollback"] * 2 + [
        "promotion"
    ]
    assert [entry.former for entry in history.read_history("demo") if entry.kind == "promotion"] == [None, 1, 2, 1]


def test_a_rollback_restores_the_exact_former_model(checkout: Checkout) -> None:
    _, two, three = versions()
    rows = pl.read_parquet("data/ingest/demo/table.parquet")
    promotion.promote("demo", two, None)
    before = registry.load_model(two).forecast(rows, all_windows=True)
    promotion.promote("demo", three, None)
    assert not registry.load_model(three).forecast(rows, all_windows=True).equals(before)
    roll_back("demo")
    now = history.find_champion("demo")
    assert now == two
    assert registry.load_model(now).forecast(rows, all_windows=True).equals(before)
    served = MlflowClient(store.tracking_uri()).get_model_version_by_alias("demo", CHAMPION)
    assert (int(served.version), served.run_id, served.tags[registry.KEY_TAG]) == (two.version, two.run, two.key)


def test_a_damaged_copy_of_a_model_is_downloaded_again(checkout: Checkout) -> None:
    version = versions()[0]
    rows = pl.read_parquet("data/ingest/demo/table.parquet")
    before = registry.load_model(version).forecast(rows)
    (example,) = (paths.STATE / "models").rglob("example.parquet")
    example.write_bytes(b"")
    assert registry.load_model(version).forecast(rows).equals(before)
    assert example.stat().st_size


def test_the_aliases_are_repaired_after_a_failure_between_history_and_aliases(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, _ = versions()
    promotion.promote("demo", one, None)
    with monkeypatch.context() as patch:

        def refuse(*arguments: object) -> None:
            raise MlflowException("the server has gone")

        patch.setattr(MlflowClient, "set_registered_model_alias", refuse)
        with pytest.raises(store.TrackingError, match="the server has gone"):
            promotion.promote("demo", two, None)
    assert history.find_champion("demo") == two
    assert aliases() == {CHAMPION: one.version}
    promotion.reconcile("demo")
    assert aliases() == {CHAMPION: two.version, PREVIOUS: one.version}
    MlflowClient(store.tracking_uri()).delete_registered_model_alias("demo", PREVIOUS)
    MlflowClient(store.tracking_uri()).set_registered_model_alias("demo", CHALLENGER, "1")
    promotion.promote("demo", two, None)
    assert aliases() == {CHAMPION: two.version, PREVIOUS: one.version}
    assert len(history.read_history("demo")) == 2


def test_a_checkout_without_a_history_takes_over_the_champion_that_there_is(checkout: Checkout) -> None:
    one, two, three = versions()
    MlflowClient(store.tracking_uri()).set_registered_model_alias("demo", CHAMPION, str(two.version))
    others = {CHAMPION: two.version, PREVIOUS: one.version, CHALLENGER: three.version}
    for alias in (PREVIOUS, CHALLENGER):
        MlflowClient(store.tracking_uri()).set_registered_model_alias("demo", alias, str(others[alias]))
    promotion.reconcile("demo")
    promotion.reconcile("demo")
    assert history.find_champion("demo") == two
    assert len(history.read_history("demo")) == 1
    assert aliases() == others
    assert one.version == 1
    promotion.promote("demo", three, None, by="a person")
    assert aliases() == {CHAMPION: three.version, PREVIOUS: two.version}


def test_a_champion_that_was_not_expected_stays(checkout: Checkout) -> None:
    one, two, three = versions()
    assert promotion.promote("demo", one, "a decision", expected=None)
    promotion.promote("demo", two, None, by="a person")
    assert not promotion.promote("demo", three, "another", expected=one)
    assert not promotion.promote("demo", three, "another", expected=None)
    assert history.find_champion("demo") == two
    assert len(history.read_history("demo")) == 2
    assert promotion.promote("demo", three, "another", expected=two)
    assert history.find_champion("demo") == three


def test_versions_that_mlflow_has_lost_are_named_with_the_fix(checkout: Checkout) -> None:
    version = versions()[0]
    promotion.promote("demo", version, None)
    MlflowClient(store.tracking_uri()).delete_registered_model("demo")
    with pytest.raises(RecastError, match="MLFLOW_TRACKING_URI"):
        promotion.reconcile("demo")
    file = history.champion_folder("demo") / "history.json"
    file.write_text(json.dumps([{"kind": "coronation"}]))
    with pytest.raises(RecastError, match=r"history\.json .*0\.kind"):
        history.find_champion("demo")


def test_mlflow_out_of_reach_is_waited_for_and_a_refusal_is_not(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A store without a server is not waited for.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    calls: list[int] = []

    def gone_at_first() -> str:
        calls.append(1)
        if len(calls) == 1:
            with store.translate_errors():
                raise MlflowException("connection refused")
        return "back"

    assert retry_while_unreachable(gone_at_first, 60, "MLflow") == "back"
    assert len(calls) == 2

    def refused() -> None:
        calls.append(1)
        with store.translate_errors():
            raise MlflowException("no such thing", error_code=RESOURCE_DOES_NOT_EXIST)

    calls.clear()
    with pytest.raises(store.TrackingError, match="no such thing"):
        retry_while_unreachable(refused, 60, "MLflow")
    assert len(calls) == 1
    calls.clear()
    with pytest.raises(store.TrackingError, match="connection refused"):
        retry_while_unreachable(gone_at_first, 0, "MLflow")


def recast(*arguments: str) -> str:
    """What a command prints, in this process; what it raises is raised."""
    ended = CliRunner().invoke(app, arguments, catch_exceptions=False)
    return " ".join(ended.output.split())


def test_one_process_draws_the_page_at_a_time_and_keeps_nobody_from_a_rollback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def read_history(problem: str) -> list[history.Entry]:
        with pytest.raises(Timeout), FileLock(paths.STATE / "champion-page-demo.lock", timeout=0):
            pass
        with FileLock(paths.STATE / "champion-demo.lock", timeout=0):
            return history.read_history(problem)

    monkeypatch.setattr(pages, "read_history", read_history)
    assert pages.write_history_page("demo").exists()


def test_commands_show_promote_and_roll_back(checkout: Checkout) -> None:
    one, two, _ = versions()
    assert "there is no champion yet; `recast retrain demo` makes the first" in recast("champion", "demo")
    for version in (one, two):
        promotion.promote("demo", version, None, "it is better")
    printed = recast("rollback", "demo")
    assert f"version {one.version}, {one.label}, is the champion again; version {two.version} was" in printed
    with pytest.raises(RecastError, match="there is no former champion"):
        recast("rollback", "demo")
    assert aliases() == {CHAMPION: one.version}
    assert "is the champion now" in recast("promote", "demo", "3")
    # As a kill before the page was written leaves it.
    page = checkout.file("data/champion/demo/history.html")
    page.unlink()
    assert "is the champion already" in recast("promote", "demo", "3")
    assert page.exists()
    with pytest.raises(RecastError, match="MLflow has no version 9"):
        recast("promote", "demo", "9")
    printed = recast("champion", "demo", "--history")
    assert "rollback" in printed
    assert "by hand" in printed
    assert "history.html" in printed
    with pytest.raises(RecastError, match="no problem 'jena'"):
        recast("champion", "jena")
