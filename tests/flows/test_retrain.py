"""Retraining from new rows to a champion: killed anywhere it goes on, and nobody is promoted who should not be."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.lifecycle.champions.test_registry import recast
from tests.support.checkout import ROOT, SETTINGS, Checkout, write_table
from tests.support.commands import preloaded_python
from tests.support.waiting import PATIENCE_SECONDS, wait_until

PLACES = [
    "the increment is accepted",
    "the pipeline has run",
    "the version is made",
    "the decision is written",
    "the experiment is saved",
    "the promotion is written",
    "an alias is set",
    "people are told",
]
"""Where a retraining dies, in the order in which it gets there."""

PLACES_IN_THE_GATE = ["the pipeline has run", "the promotion is written", "people are told"]
"""Before the decision, while it is carried out, and after that."""


class Retraining:
    """A process that retrains `demo` of a checkout when it is asked to; see tests/support/retrain_killed.py."""

    def __init__(self, checkout: Checkout) -> None:
        self.checkout = checkout
        self.log = checkout.file("retrainings.log").open("w")
        self.process = subprocess.Popen(
            [preloaded_python(), "-m", "tests.support.retrain_killed", "demo"],
            cwd=checkout.root,
            env=checkout.environment | {"PYTHONPATH": f"{checkout.root}{os.pathsep}{ROOT}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout
        # Not that of `self.process`, which stands for it.
        self.pid = int(self.process.stdout.readline().removeprefix("process: "))

    def begin(self, place: str = "whole") -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{place}\n")
        self.process.stdin.flush()

    def end(self) -> str:
        """The name of the last state, or `killed`."""
        assert self.process.stdout
        # The stages print there too.
        for line in self.process.stdout:
            if line.startswith("answer: "):
                answer = line.removeprefix("answer: ").strip()
                assert not answer.startswith("ended"), self.checkout.file("retrainings.log").read_text()[-5000:]
                return answer
        raise AssertionError(self.checkout.file("retrainings.log").read_text()[-5000:])

    def run(self, place: str = "whole") -> str:
        self.begin(place)
        return self.end()

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.communicate(timeout=PATIENCE_SECONDS)
        self.log.close()


@contextlib.contextmanager
def prepare_retraining(finished: Checkout, root: Path) -> Iterator[Retraining]:
    """A checkout under git whose problem grows, with a grid that trains nothing: yesterday's value at the same hour.

    Persistence is half a day off there, so whatever knows the hour beats it.
    """
    checkout = finished.copy(root)
    checkout.file("incoming").mkdir()
    checkout.settings(
        problems__demo__window={"lookback": "3d", "step": "1h", "delay": "12h"},
        problems__demo__fresh={"kind": "folder", "path": "incoming"},
        retrain={"windows": 50, "slice_windows": 10, "patience": "5m"},
    )
    set_days(checkout, days=3)
    checkout.run("git", "add", "params.yaml", "dvc.yaml", "stages", ".gitignore", ".dvc")
    checkout.run("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "begin")
    process = Retraining(checkout)
    try:
        yield process
    finally:
        process.close()


@pytest.fixture(scope="module")
def retraining(finished: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Retraining]:
    """The retraining of the tests of this file, which go on from one another in their order."""
    with prepare_retraining(finished, tmp_path_factory.mktemp("retraining") / "checkout") as prepared:
        yield prepared


def set_days(checkout: Checkout, days: int) -> None:
    """A grid whose best is the mean of so many days at the same hour: the fewer, the better."""
    checkout.settings(grid={"seeds": [0], "architectures": {"seasonal_naive": {"days": [days]}}})


def read_history(checkout: Checkout) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(checkout.file("data/champion/demo/history.json").read_text())
    return entries


def read_registry(checkout: Checkout) -> tuple[list[int], dict[str, int]]:
    """The versions that MLflow has, and its aliases."""
    client = MlflowClient(f"sqlite:///{checkout.file('mlruns/mlflow.db')}")
    versions = sorted(int(version.version) for version in client.search_model_versions("name = 'demo'"))
    aliases = client.get_registered_model("demo").aliases
    return versions, {name: int(at) for name, at in aliases.items()}


@pytest.mark.long
def test_a_retraining_killed_anywhere_goes_on_to_one_champion(finished: Checkout, tmp_path: Path) -> None:
    with prepare_retraining(finished, tmp_path / "checkout") as retraining:
        promote_despite_kills(retraining, PLACES)


def test_a_retraining_that_is_killed_goes_on_to_one_champion(retraining: Retraining) -> None:
    promote_despite_kills(retraining, PLACES_IN_THE_GATE)


def promote_despite_kills(retraining: Retraining, places: list[str]) -> None:
    """Retrain to a second champion, which is killed at these places on its way."""
    checkout = retraining.checkout
    assert retraining.run() == "Promoted", "the first champion"
    assert read_registry(checkout) == ([1], {"champion": 1})

    set_days(checkout, days=1)
    write_table(checkout.file("incoming/demo.csv"), 672)
    for place in places:
        assert retraining.run(place) == "killed", place
        assert checkout.run("git", "status", "--porcelain", "--untracked-files=no") == " M params.yaml\n", place
    assert retraining.run() == "Promoted"

    assert read_registry(checkout) == ([1, 2], {"champion": 2, "previous": 1})
    assert [entry["kind"] for entry in read_history(checkout)] == ["challenge", "promotion"] * 2
    assert len(list(checkout.file("data/raw/demo/fresh").glob("*.csv"))) == 1
    assert not checkout.file("data/champion/demo/open.json").exists()
    assert "up to date" in checkout.dvc("status")
    alerts = checkout.file(".recast/alerts.log").read_text()
    assert "version 2, seasonal_naive days=1 seed=0, is promoted" in alerts
    experiments = [entry["experiment"] for entry in read_history(checkout) if entry["experiment"]]
    assert len(set(experiments)) == 2
    listed = checkout.dvc("exp", "list", "--name-only").split()
    assert set(experiments) <= set(listed)
    # What was true then is what the experiment holds.
    lock = checkout.run("git", "show", f"{find_experiment(checkout, experiments[-1])}:dvc.lock")
    assert lock == checkout.file("dvc.lock").read_text()
    assert checkout.run("git", "log", "--format=%s") == "begin\n", "the branch is as it was"


def list_experiments(checkout: Checkout) -> list[str]:
    """Git's references to DVC's experiments."""
    return checkout.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").split()


def find_experiment(checkout: Checkout, name: str) -> str:
    return next(ref for ref in list_experiments(checkout) if ref.endswith(f"/{name}"))


def test_a_person_is_asked_and_no_answer_is_a_no(retraining: Retraining, servers: dict[str, Any]) -> None:
    """The version that was promoted is rolled back, and proposed again under other rules: nothing is trained."""
    # After `flows`, which tells Prefect where to keep its things.
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        FlowFilter,
        FlowFilterName,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.flow_runs import resume_flow_run
    from prefect.settings import PREFECT_API_URL, temporary_settings

    checkout = retraining.checkout
    log, mark = checkout.file(".recast/alerts.log"), checkout.file("data/champion/demo/open.json")
    alerts = log.read_text()
    mark.write_text('{"since": "2020-01-01T00:00:00+00:00"}')
    assert retraining.run() == "Champion stays", "a run that has failed before its decision is not announced"
    assert retraining.run("rollback") == "rolled back"
    mark.write_text(json.dumps({"decision": read_history(checkout)[-2]["decision"]}))
    assert retraining.run() == "Champion stays", "what a person took back is neither promoted again nor announced"
    assert read_registry(checkout) == ([1, 2], {"champion": 1})
    assert read_history(checkout)[-1]["kind"] == "rollback"
    assert log.read_text() == alerts
    assert not mark.exists()
    checkout.settings(retrain__approval="1s", retrain__level=0.9)
    assert retraining.run("forced") == "Refused"
    assert read_history(checkout)[-1]["reason"].endswith(" But nobody has answered within 1s.")
    assert read_registry(checkout) == ([1, 2], {"champion": 1, "challenger": 2})
    checkout.settings(retrain__approval="1h", retrain__level=0.8)
    saved = list_experiments(checkout)
    # Those that are deployed are another test's.
    paused: dict[str, Any] = {
        "flow_filter": FlowFilter(name=FlowFilterName(any_=["retrain"])),
        "flow_run_filter": FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED]))
        ),
    }
    retraining.begin("forced")
    with temporary_settings({PREFECT_API_URL: servers["api"]}), get_client(sync_client=True) as client:
        (waiting,) = wait_until(
            lambda: [run for run in client.read_flow_runs(**paused) if run.deployment_id is None],
            "the question",
            retraining.process,
        )
        assert len(list_experiments(checkout)) == len(saved) + 1, (
            "it is saved before anything else can run in the checkout"
        )
        resume_flow_run(waiting.id, run_input={"promote": True})
    assert retraining.end() == "Promoted"
    assert read_registry(checkout) == ([1, 2], {"champion": 2, "previous": 1})
    checkout.settings(retrain__approval=None)


def test_nothing_new_trains_nothing_and_a_breach_stops_before_training(retraining: Retraining) -> None:
    checkout = retraining.checkout
    before, trials = read_history(checkout), sorted(checkout.file("trials/demo").iterdir())
    assert retraining.run() == "Nothing new"
    write_table(checkout.file("incoming/demo.csv"), 744, offset=60.0)
    assert retraining.run("the rows are in quarantine") == "killed"
    assert "breach: demo: new rows break the data contract" in checkout.file(".recast/alerts.log").read_text()
    assert retraining.run() == "Breach"
    assert read_history(checkout) == before
    assert sorted(checkout.file("trials/demo").iterdir()) == trials
    assert read_registry(checkout) == ([1, 2], {"champion": 2, "previous": 1})
    assert len(list(checkout.file("data/quarantine/demo").glob("*.csv"))) == 1
    assert retraining.run() == "Nothing new", "what lies in quarantine does not come again"


def test_another_grid_is_news_and_a_worse_challenger_is_refused(retraining: Retraining) -> None:
    checkout = retraining.checkout
    set_days(checkout, days=2)
    assert retraining.run() == "Refused"
    assert read_registry(checkout) == ([1, 2, 3], {"champion": 2, "previous": 1, "challenger": 3})
    assert "significantly worse than the champion at the 80" in read_history(checkout)[-1]["reason"]
    assert "is refused" in checkout.file(".recast/alerts.log").read_text()
    page = checkout.file("data/champion/demo/history.html").read_text()
    assert page.count(">refusal</td>") == 2
    assert page.count(">promotion</td>") == 3


def test_the_champion_with_other_intervals_is_another_version_that_takes_over(retraining: Retraining) -> None:
    checkout = retraining.checkout
    set_days(checkout, days=1)
    assert retraining.run() == "Champion stays", "the champion's own network is the best again"
    checkout.settings(evaluate={**SETTINGS["evaluate"], "intervals": [0.5]})
    assert retraining.run("people are told") == "killed"
    assert retraining.run() == "Promoted"
    assert read_registry(checkout) == ([1, 2, 3, 4], {"champion": 4, "previous": 2})
    assert "the same network as version 2" in read_history(checkout)[-1]["reason"]
    assert "version 4, seasonal_naive days=1 seed=0, is promoted" in checkout.file(".recast/alerts.log").read_text()
    assert retraining.run() == "Nothing new"
    checkout.recast("rollback", "demo", new_process=True)
    assert retraining.run() == "Nothing new", "what a person has rolled back stays so"
    checkout.recast("promote", "demo", "4", new_process=True)


def test_a_version_is_traced_to_raw_bytes_and_commit_and_back(
    retraining: Retraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = retraining.checkout
    monkeypatch.chdir(checkout.root)
    printed = recast("trace", "--version", "2")
    lineage = json.loads(checkout.file("data/champion/demo/versions/2.json").read_text())
    assert checkout.run("git", "rev-parse", "HEAD").strip() in printed
    assert "its dvc.lock agrees" in printed
    assert lineage["key"] in printed
    assert lineage["run"] in printed
    assert len(lineage["raw"]) == 2
    for name, digest in lineage["raw"].items():
        assert digest in printed, name
    increment = next(digest for name, digest in lineage["raw"].items() if "0001" in name)
    users = recast("trace", "--raw", increment)
    assert "version" in users
    assert lineage["label"] in users
