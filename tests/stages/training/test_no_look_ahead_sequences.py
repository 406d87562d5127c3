"""Nothing later in a sequence reaches an answer, and only training sequences make up a vocabulary."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor

from architectures import REGISTRY
from problems.problem import SequenceProblem
from stages.sequences.cut import cut_sequences
from stages.sequences.encode import encode_sequences
from stages.sequences.ingest import ingest_sequences
from stages.sequences.reading import VOCABULARY_FILE, read_steps
from stages.training import reading
from stages.training.fit import initialize_network
from stages.training.sequence_batches import SequenceBatches
from tests.stages.sequences.test_sequence_problems import PROBLEMS, write_sources

CPU = torch.device("cpu")
ALL: dict[str, dict[str, Any]] = {
    # Without carried state, so that the pieces of a text are given in the text's order.
    **{
        name: {**section, "window": {"length": 16}} if name == "text" else section for name, section in PROBLEMS.items()
    },
    "copies": {
        "title": "Digits said again",
        "source": {"kind": "copy_memory", "length": 5, "train": 20, "validation": 10, "test": 10, "seed": 0},
        "table": {},
        "split": "given",
        "window": {},
    },
    "digits": {
        "title": "Digits, pixel by pixel",
        "source": {"kind": "digits"},
        "table": {},
        "split": {"train": 0.6, "validation": 0.2},
        "window": {},
    },
}


@pytest.fixture(autouse=True)
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the problems name, in the current folder."""
    monkeypatch.chdir(tmp_path)
    write_sources(SimpleNamespace(file=lambda name: tmp_path / name))  # type: ignore[arg-type]


def prepare(section: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The stages up to `window`: the batches of each split, and the folder of the steps."""
    problem = SequenceProblem.model_validate(section)
    store, ingested, encoded, windowed = (folder / part / "problem" for part in ("raw", "ingest", "encode", "cut"))
    store.mkdir(parents=True)
    problem.source.fetch(store, lambda done, total: None, 1)
    ingest_sequences(problem, store, ingested, {})
    encode_sequences(problem, ingested, encoded)
    piecing = cut_sequences(problem, encoded, windowed)
    return {"data": reading.read_batches(encoded, windowed, CPU), "encoded": encoded, "shape": piecing.shape}


def answer_piece(network: Any, data: SequenceBatches, position: int) -> tuple[Tensor, Tensor]:
    """The answers to one piece (T or 1, O), and the targets (T or 1, K)."""
    batch = data.select(torch.tensor([position]))
    with torch.no_grad():
        return network(batch.x_BTF)[0], batch.y_BSK[0]


@pytest.mark.parametrize("architecture", ["gru", "tcn"])
@pytest.mark.parametrize("problem", ALL)
def test_what_comes_later_moves_the_target_alone(problem: str, architecture: str, tmp_path: Path) -> None:
    stages = prepare(ALL[problem], tmp_path)
    data, shape = stages["data"]["test"], stages["shape"]
    axes = REGISTRY[architecture].Hyperparameters(embedding=4 if shape.codes else 0)
    network = initialize_network(architecture, axes, shape, seed=0).eval()
    middle = len(data) // 2
    begin, _, end, _ = (int(step) for step in data.pieces_K4[middle])
    row = (begin + end) // 2
    before = [answer_piece(network, data, position) for position in (0, middle - 1, middle)]
    original = data.steps_NF
    changed = original.clone()
    later = changed[row:]
    changed[row:] = later % (shape.codes - 1) + 1 if shape.codes else 1 - later
    assert not torch.equal(changed, original)
    data.steps_NF = changed
    after = [answer_piece(network, data, position) for position in (0, middle - 1, middle)]
    for (y_SO, target_SK), (other_SO, other_target_SK) in zip(before[:-1], after[:-1], strict=True):
        assert torch.equal(y_SO, other_SO)
        if problem not in ("text", "chords"):
            assert torch.equal(target_SK, other_target_SK)
    (y_SO, target_SK), (other_SO, other_target_SK) = before[-1], after[-1]
    if shape.each:
        unchanged = row - begin
        assert torch.equal(y_SO[:unchanged], other_SO[:unchanged])
        assert not torch.equal(y_SO[unchanged:], other_SO[unchanged:]), "the steps that are read count"
        if data.targets_MK is None:
            assert torch.equal(target_SK[: unchanged - 1], other_target_SK[: unchanged - 1])
            assert not torch.equal(target_SK[unchanged - 1], other_target_SK[unchanged - 1]), (
                "the target is the next step"
            )
    else:
        assert not torch.equal(y_SO, other_SO), "its own steps count"


def test_a_vocabulary_is_of_the_training_split_alone(tmp_path: Path) -> None:
    section = {**ALL["text"], "split": "given"}
    (tmp_path / "train.txt").write_text("the quick brown fox jumps over a lazy dog\n" * 30)
    prepared_stages = []
    for name, later in (("one", "a fox, a dog\n"), ("other", "ÄÖÜ 0123456789 zzz zzz zzz\n")):
        (tmp_path / name).mkdir()
        files = {"train": str(tmp_path / "train.txt")}
        for split in ("validation", "test"):
            files[split] = str(tmp_path / name / f"{split}.txt")
            Path(files[split]).write_text(later * 30, encoding="utf-8")
        prepared_stages.append(
            prepare(section | {"source": {"kind": "language", "path": files}}, tmp_path / f"{name}.stages")
        )
    one, other = prepared_stages
    assert (one["encoded"] / VOCABULARY_FILE).read_text() == (other["encoded"] / VOCABULARY_FILE).read_text()
    train = int(one["data"]["train"].pieces_K4[:, 2].max())
    assert (read_steps(one["encoded"])[:train] == read_steps(other["encoded"])[:train]).all()


def test_words_of_test_reviews_get_no_code(tmp_path: Path) -> None:
    prepared_stages = []
    for name in ("one", "other"):
        reviews = pl.read_parquet("reviews.parquet")
        if name == "other":
            strange = pl.when(pl.col("split") == "test").then(pl.lit("zebra xylophone zebra")).otherwise(pl.col("text"))
            reviews = reviews.with_columns(strange.alias("text"))
        reviews.write_parquet(f"{name}.parquet")
        source = {"kind": "imdb", "path": f"{name}.parquet"}
        prepared_stages.append(prepare(ALL["reviews"] | {"source": source}, tmp_path / name))
    words = [json.loads((stages["encoded"] / VOCABULARY_FILE).read_text()) for stages in prepared_stages]
    assert words[0] == words[1]
    assert "zebra" not in words[1]
