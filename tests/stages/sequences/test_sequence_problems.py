"""Every shape of problem by the real commands: from a source to a leaderboard, a report and a model that is served."""

import json
import re
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import polars as pl
import pytest
from scipy.io import savemat

from stages.array_files import open_array
from tests.support.checkout import Checkout

PROBLEMS: dict[str, dict[str, Any]] = {
    "sums": {
        "title": "Sums of two marked numbers",
        "source": {"kind": "adding", "length": 4, "train": 400, "validation": 50, "test": 50},
        "table": {},
        "split": "given",
        "window": {},
    },
    "reviews": {
        "title": "Short reviews",
        "source": {"kind": "imdb", "path": "reviews.parquet"},
        "table": {"tokens": "words", "vocabulary": 50},
        "split": {"kind": "given", "validation": 0.2},
        "window": {"length": 6},
    },
    "text": {
        "title": "A text that repeats itself",
        "source": {"kind": "language", "path": "text.txt"},
        "table": {"tokens": "characters"},
        "split": {"train": 0.8, "validation": 0.1},
        "window": {"length": 16, "carry": True},
    },
    "chords": {
        "title": "Two chords in turn",
        "source": {"kind": "music", "path": "chords.mat"},
        "table": {},
        "split": "given",
        "window": {},
    },
}
SELECTS = {"sums": "mae", "reviews": "cross_entropy", "text": "bits", "chords": "nll"}
ANSWERS = {"sums": (), "reviews": (), "text": (16, 30), "chords": (12, 88)}
"""What a model gives for one window, after its first dimension."""


def write_sources(checkout: Checkout) -> None:
    good, bad = "a good and moving film", "a bad and boring film"
    labels = [i % 2 for i in range(120)]
    reviews = pl.DataFrame(
        {
            "split": ["train"] * 80 + ["test"] * 40,
            "label": labels,
            "text": [f"{good if label else bad} no {i}" for i, label in enumerate(labels)],
        }
    )
    reviews.write_parquet(checkout.file("reviews.parquet"))
    checkout.file("text.txt").write_text("the quick brown fox jumps over a lazy dog\n" * 60)
    rolls = np.zeros((13, 88))
    rolls[::2, [40, 44, 47]] = 1
    rolls[1::2, [42, 45, 49]] = 1
    pieces = np.empty((1, 10), dtype=object)
    pieces[0, :] = [rolls] * 10
    savemat(checkout.file("chords.mat"), {"traindata": pieces, "validdata": pieces[:, :2], "testdata": pieces[:, :2]})


@pytest.fixture(scope="module")
def trained(servers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout in which `recast run` has trained two networks on each kind of problem."""
    from tests.support import checkout

    made = checkout.make_checkout(
        tmp_path_factory.mktemp("sequences") / "checkout", servers["mlflow_db"], PREFECT_API_URL=servers["api"]
    )
    write_sources(made)
    made.settings(
        run=list(PROBLEMS),
        problems=PROBLEMS,
        train__epochs=4,
        train__steps_per_epoch=None,
        train__batch_size=8,
        grid__seeds=[0],
        grid__architectures={
            "constant": {"optimizer": ["adam"], "learning_rate": [0.01], "embedding": [0]},
            "gru": {"units": [24], "optimizer": ["adam"], "learning_rate": [0.01], "embedding": [8]},
        },
    )
    made.recast("run")
    return made


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_network_learns_what_a_constant_cannot(problem: str, trained: Checkout) -> None:
    board = json.loads(trained.file(f"data/evaluate/{problem}/leaderboard.json").read_text())
    first, second = board["rows"]
    assert first["configuration"].startswith("gru units=24")
    assert second["configuration"].startswith("constant")
    for split in ("validation", "test"):
        better, worse = (row[split][SELECTS[problem]]["mean"] for row in (first, second))
        assert better < 0.9 * worse, split
    assert board["persistence_test"] is None
    printed = trained.recast("leaderboard", problem)
    assert PROBLEMS[problem]["title"] in printed
    assert re.search(r"1 │ gru", printed)
    page = trained.file(f"data/evaluate/{problem}/report.html").read_text()
    assert PROBLEMS[problem]["title"] in page
    assert ("Answers by class" in page) == (problem == "reviews")


def test_dvc_finds_all_of_it_up_to_date(trained: Checkout) -> None:
    assert "up to date" in trained.dvc("status")


@pytest.mark.parametrize("problem", PROBLEMS)
def test_its_models_answer_as_the_problem_asks(problem: str, trained: Checkout) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{trained.file('mlruns/mlflow.db')}")
    (run,) = [
        run
        for run in mlflow.search_runs(experiment_names=[problem], output_format="list")
        if run.data.params.get("architecture") == "gru"
    ]
    model = mlflow.pyfunc.load_model(run.data.tags["recast.model"])
    answers = np.asarray(model.predict(model.input_example))
    assert answers.shape[1:] == ANSWERS[problem]
    if problem == "text":
        np.testing.assert_allclose(answers.sum(axis=-1), 1)
    elif problem != "sums":
        assert ((answers >= 0) & (answers <= 1)).all()


def test_an_array_is_written_as_numpy_writes_it(tmp_path: Path) -> None:
    numbers = np.arange(12, dtype=np.float32).reshape(6, 2)
    with open_array(tmp_path / "written.npy", np.float32, (6, 2)) as out:
        out.write(numbers.tobytes())
    np.save(tmp_path / "saved.npy", numbers)
    assert (tmp_path / "written.npy").read_bytes() == (tmp_path / "saved.npy").read_bytes()
