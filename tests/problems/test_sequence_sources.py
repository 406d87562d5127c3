"""Sources of whole sequences: generated tasks, the user's files, downloads from a real local server."""

import gzip
import hashlib
import io
import struct
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.io import loadmat, savemat
from tenacity import wait_none

from problems.errors import RecastError, Unreachable
from problems.files import download as downloading
from problems.files import text_blocks
from problems.files.download import checksum_file
from problems.files.matlab import read_cells as matlab_cells
from problems.files.public_files import PublicFile
from problems.files.text_blocks import split_into_blocks
from problems.sequences import INPUTS_COLUMN, SPLIT_COLUMN, TARGET_COLUMN, SequenceSource
from problems.source import PLACE_COLUMN
from problems.sources import imdb, language, mnist, music
from problems.sources.adding import AddingSource
from problems.sources.copy_memory import CopyMemorySource
from problems.sources.digits import DigitsSource
from problems.sources.imdb import ImdbSource
from problems.sources.language import LanguageSource
from problems.sources.mnist import MnistSource
from problems.sources.music import MusicSource
from problems.split import SPLITS

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
"""Real files, where they exist."""


def ignore_progress(received: int, total: int | None) -> None:
    """A progress that nobody watches."""


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(downloading, "RETRY_WAIT", wait_none())


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "raw" / "texts"
    folder.mkdir(parents=True)
    return folder


class Mirror:
    """A local web server that serves the given files by name."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.asked.append(self.path)
                body = mirror.files.get(self.path.rsplit("/", 1)[-1])
                if body is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Keep the test's output clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/data/"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    running = Mirror()
    yield running
    running.server.shutdown()
    running.server.server_close()


def publish(file: PublicFile, content: bytes) -> PublicFile:
    """Declare the same public file with other content."""
    return PublicFile(file.name, hashlib.sha256(content).hexdigest(), file.magic)


def read_frame(source: SequenceSource, store: Path, scratch: Path) -> pl.DataFrame:
    """Read the sequences of a source whose files are in the store."""
    scratch.mkdir(exist_ok=True)
    return source.read_sequences(store, scratch).frame.collect()


def fetch_and_read(source: SequenceSource, store: Path) -> pl.DataFrame:
    """Fetch the files and read the sequences, as `ingest` does."""
    source.fetch(store, ignore_progress, 1)
    return read_frame(source, store, store.parent / "scratch")


def steps(column: pl.Series, features: int = 1) -> np.ndarray:
    """Sequences of one length as an array (N, L, F)."""
    return np.array(column.to_list(), dtype=np.float32).reshape(len(column), -1, features)


# Generated


GENERATED = {"adding": AddingSource, "copy_memory": CopyMemorySource}

counts = st.fixed_dictionaries({name: st.integers(1, 40) for name in ("train", "validation", "test")})
kinds = st.sampled_from(sorted(GENERATED))
lengths, seeds = st.integers(2, 60), st.integers(0, 2**32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    return lambda: tmp_path_factory.mktemp("scratch")


def generate(folders: Callable[[], Path], kind: str, **settings: Any) -> pl.DataFrame:
    source = GENERATED[kind](kind=kind, **settings)
    return read_frame(source, Path("nowhere"), folders())


@given(counts, lengths, seeds)
@settings(max_examples=25)
def test_the_answer_to_addition_is_the_sum_of_the_two_marked_numbers(
    folders: Callable[[], Path], counts: dict[str, int], length: int, seed: int
) -> None:
    frame = generate(folders, "adding", length=length, seed=seed, **counts)
    inputs_NT2 = steps(frame[INPUTS_COLUMN], 2)
    numbers_NT, marks_NT = inputs_NT2[..., 0], inputs_NT2[..., 1]
    assert inputs_NT2.shape == (sum(counts.values()), length, 2)
    assert ((numbers_NT >= 0) & (numbers_NT < 1)).all()
    assert np.isin(marks_NT, (0, 1)).all()
    assert (marks_NT.sum(axis=1) == 2).all()
    np.testing.assert_allclose(steps(frame[TARGET_COLUMN])[:, 0, 0], (numbers_NT * marks_NT).sum(axis=1), rtol=1e-6)


def test_any_two_steps_may_be_marked_and_answering_one_is_a_sixth_off(folders: Callable[[], Path]) -> None:
    frame = generate(folders, "adding", length=10, train=20_000)
    marked_T = steps(frame[INPUTS_COLUMN], 2)[..., 1].mean(axis=0)
    np.testing.assert_allclose(marked_T, 0.2, atol=0.015)
    assert np.mean((steps(frame[TARGET_COLUMN]) - 1) ** 2) == pytest.approx(1 / 6, rel=0.03)


@given(counts, st.integers(1, 60), seeds)
@settings(max_examples=25)
def test_the_ten_digits_are_to_be_said_again_after_the_blank(
    folders: Callable[[], Path], counts: dict[str, int], length: int, seed: int
) -> None:
    frame = generate(folders, "copy_memory", length=length, seed=seed, **counts)
    inputs_NL, answers_NL = steps(frame[INPUTS_COLUMN])[..., 0], steps(frame[TARGET_COLUMN])[..., 0]
    assert inputs_NL.shape == answers_NL.shape == (sum(counts.values()), length + 20)
    digits_ND = inputs_NL[:, :10]
    assert np.isin(digits_ND, range(1, 9)).all()
    assert (inputs_NL[:, 10 : 10 + length - 1] == 0).all()
    assert (inputs_NL[:, 10 + length - 1 :] == 9).all()
    assert (answers_NL[:, : length + 10] == 0).all()
    np.testing.assert_array_equal(answers_NL[:, -10:], digits_ND)


def test_every_digit_is_as_likely_at_every_place(folders: Callable[[], Path]) -> None:
    digits_ND = steps(generate(folders, "copy_memory", length=1, train=8_000)[INPUTS_COLUMN])[:, :10, 0]
    for digit in range(1, 9):
        np.testing.assert_allclose((digits_ND == digit).mean(axis=0), 1 / 8, atol=0.02)


@given(kinds, counts, lengths, seeds)
@settings(max_examples=20)
def test_generated_sequences_are_counted_by_split_and_no_two_are_the_same(
    folders: Callable[[], Path], kind: str, counts: dict[str, int], length: int, seed: int
) -> None:
    frame = generate(folders, kind, length=length, seed=seed, **counts)
    assert dict(frame.group_by(SPLIT_COLUMN).len().iter_rows()) == counts
    assert frame[SPLIT_COLUMN].to_list() == [split for split in SPLITS for _ in range(counts[split])]
    assert len({tuple(row) for row in frame[INPUTS_COLUMN].to_list()}) == frame.height
    assert frame[PLACE_COLUMN].to_list()[-1] == f"generated test sequence {counts['test']}"


@given(kinds, lengths, seeds)
@settings(max_examples=10)
def test_the_same_seed_makes_the_same_bytes_and_another_seed_others(
    folders: Callable[[], Path], kind: str, length: int, seed: int
) -> None:
    written = []
    for used in (seed, seed, seed + 1):
        scratch = folders()
        source = GENERATED[kind](kind=kind, length=length, seed=used, train=5, validation=5, test=5)
        source.read_sequences(Path("nowhere"), scratch)
        written.append([file.read_bytes() for file in sorted(scratch.iterdir())])
    assert written[0] == written[1] != written[2]


def test_the_number_of_other_sequences_changes_no_split_of_the_adding_problem(folders: Callable[[], Path]) -> None:
    few, many = (generate(folders, "adding", length=5, train=train, test=9) for train in (3, 30))
    assert few.filter(pl.col(SPLIT_COLUMN) == "test")[INPUTS_COLUMN].equals(
        many.filter(pl.col(SPLIT_COLUMN) == "test")[INPUTS_COLUMN]
    )


@pytest.mark.parametrize("kind", sorted(GENERATED))
def test_generated_sequences_are_said_to_be_and_lie_in_chunks(
    kind: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("problems.files.sequence_chunks.CHUNK_NUMBERS", 100)
    source = GENERATED[kind](kind=kind, length=20, train=40, validation=1, test=1)
    assert source.synthetic
    source.fetch(store, ignore_progress, 1)
    assert not list(store.iterdir())
    frame = read_frame(source, store, tmp_path / "scratch")
    assert frame.height == 42
    assert len(list((tmp_path / "scratch").iterdir())) >= 22


@pytest.mark.parametrize("kind", sorted(GENERATED))
@pytest.mark.parametrize("wrong", [{"train": 0}, {"length": 0}, {"seed": -1}, {"sequences": 5}])
def test_a_setting_that_makes_no_sense_is_refused(kind: str, wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        GENERATED[kind](kind=kind, **wrong)


def test_more_sequences_than_can_all_differ_are_refused() -> None:
    with pytest.raises(ValidationError, match="together must be 10,000,000 at most"):
        CopyMemorySource(kind="copy_memory", train=9_999_999)


# Digits


def test_digits_are_read_pixel_by_pixel_from_the_installed_package(store: Path) -> None:
    frame = fetch_and_read(DigitsSource(kind="digits"), store)
    known_NC = np.loadtxt(store / "digits.csv.gz", delimiter=",")
    np.testing.assert_allclose(steps(frame[INPUTS_COLUMN])[..., 0], known_NC[:, :64] / 16)
    assert frame[TARGET_COLUMN].list.first().to_list() == known_NC[:, 64].tolist()
    assert set(known_NC[:, 64]) == set(range(10))
    assert frame[SPLIT_COLUMN].null_count() == frame.height == 1797
    assert (store / "digits.csv.gz").is_symlink()
    assert frame[PLACE_COLUMN][9].endswith("digits.csv.gz, line 10")


def test_permuted_digits_have_their_pixels_in_one_other_order(store: Path) -> None:
    plain, shuffled, same, other = (
        steps(fetch_and_read(DigitsSource(kind="digits", permuted=permuted, seed=seed), store)[INPUTS_COLUMN])[..., 0]
        for permuted, seed in ((False, 3), (True, 3), (True, 3), (True, 4))
    )
    np.testing.assert_array_equal(shuffled, same)
    assert (shuffled != plain).any()
    assert (shuffled != other).any()
    order = np.random.default_rng(3).permutation(64)
    np.testing.assert_array_equal(shuffled, plain[:, order])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("16," * 64 + "10", "line 2: not 64 whole numbers from 0 to 16 and a class from 0 to 9"),
        ("17," + "0," * 63 + "1", "line 2"),
        ("1.5," + "0," * 63 + "1", "line 2"),
        ("x," + "0," * 63 + "1", "line 2"),
        ("0,1", "line 2"),
    ],
    ids=["class", "bright", "fraction", "text", "short"],
)
def test_a_wrong_line_of_digits_is_named(line: str, message: str, store: Path, tmp_path: Path) -> None:
    (store / "digits.csv.gz").write_bytes(gzip.compress(f"{'0,' * 64}9\n{line}\n".encode()))
    with pytest.raises(RecastError, match=message):
        read_frame(DigitsSource(kind="digits"), store, tmp_path / "scratch")


@pytest.mark.parametrize("content", [b"", b"\x1f\x8bno", gzip.compress(b"1,2,3\n")], ids=["empty", "broken", "narrow"])
def test_a_file_that_holds_no_digits_is_refused(content: bytes, store: Path, tmp_path: Path) -> None:
    (store / "digits.csv.gz").write_bytes(content)
    with pytest.raises(RecastError, match=r"digits\.csv\.gz: (not a readable table|3 columns)"):
        read_frame(DigitsSource(kind="digits"), store, tmp_path / "scratch")


def test_without_the_package_digits_say_what_to_install(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("problems.sources.digits.find_spec", lambda name: None)
    with pytest.raises(RecastError, match="pip install scikit-learn"):
        DigitsSource(kind="digits").fetch(store, ignore_progress, 1)


# MNIST


def make_idx(values: np.ndarray, count: int | None = None, magic: int | None = None) -> bytes:
    """Make a packed idx file, whose header need not agree with what follows."""
    sizes = [len(values) if count is None else count, *values.shape[1:]]
    header = struct.pack(f">{1 + len(sizes)}I", magic or 0x800 + len(sizes), *sizes)
    return gzip.compress(header + values.astype(np.uint8).tobytes(), mtime=0)


def make_digits(train: int = 7, test: int = 4) -> dict[str, bytes]:
    """Make the four files of MNIST with other pictures."""
    random = np.random.default_rng(0)
    files = {}
    for count, (images, labels) in zip((train, test), mnist.FILES.values(), strict=True):
        files[images.name] = make_idx(random.integers(256, size=(count, 28, 28)))
        files[labels.name] = make_idx(np.arange(count) % 10)
    return files


IMAGES, LABELS = (file.name for file in mnist.FILES["train"])


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_mnist_is_read_pixel_by_pixel_with_its_own_split(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("problems.files.sequence_chunks.CHUNK_NUMBERS", 3 * 784)
    files = make_digits()
    folder = write_files(tmp_path / "mine", files)
    frame = fetch_and_read(MnistSource(kind="mnist", path=str(folder)), store)
    assert frame[SPLIT_COLUMN].to_list() == ["train"] * 7 + ["test"] * 4
    pixels = np.frombuffer(gzip.decompress(files[IMAGES])[16:], dtype=np.uint8).reshape(7, 784)
    np.testing.assert_allclose(steps(frame[INPUTS_COLUMN])[:7, :, 0], pixels / 255, rtol=1e-6)
    assert frame[TARGET_COLUMN].list.first().to_list() == [*range(7), *range(4)]
    assert frame[PLACE_COLUMN][8].endswith("t10k-images-idx3-ubyte.gz, image 2")
    permuted = fetch_and_read(MnistSource(kind="mnist", path=str(folder), permuted=True, seed=5), store)
    order = np.random.default_rng(5).permutation(784)
    np.testing.assert_array_equal(steps(permuted[INPUTS_COLUMN])[..., 0], steps(frame[INPUTS_COLUMN])[:, order, 0])


def test_mnist_is_downloaded_once_and_what_is_missing_again(
    mirror: Mirror, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.files = make_digits()
    known = {
        split: tuple(publish(file, mirror.files[file.name]) for file in pair) for split, pair in mnist.FILES.items()
    }
    monkeypatch.setattr(mnist, "FILES", known)
    source = MnistSource(kind="mnist", mirrors=(mirror.url + "empty", mirror.url))
    del mirror.files[IMAGES]
    with pytest.raises(Unreachable, match=r"(?s)train-images.*404.*problems\.texts\.source\.path"):
        source.fetch(store, ignore_progress, 1)
    mirror.files = make_digits()
    assert fetch_and_read(source, store).height == 11
    mirror.asked.clear()
    (store / LABELS).unlink()
    source.fetch(store, ignore_progress, 1)
    assert {path.rsplit("/", 1)[-1] for path in mirror.asked} == {LABELS}
    (store / IMAGES).write_bytes(b"changed")
    with pytest.raises(RecastError, match="the file is not what was downloaded"):
        source.fetch(store, ignore_progress, 1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (LABELS, make_idx(np.array([1, 2, 10, 3, 4, 5, 6])), r"labels.*label 3: 10 is not a digit from 0 to 9"),
        (LABELS, make_idx(np.arange(6)), "7 images, but there are 6 labels"),
        (LABELS, make_idx(np.arange(7), count=8), "labels.*cut short"),
        (LABELS, make_idx(np.arange(7), count=6), "labels.*more than its header says"),
        (LABELS, make_idx(np.arange(0)), "labels.*no label"),
        (LABELS, make_idx(np.arange(7), magic=0x803), "labels.*not an idx file of labels"),
        (IMAGES, make_idx(np.zeros((7, 28, 28)), magic=0x801), "images.*not an idx file of images"),
        (IMAGES, make_idx(np.zeros((7, 28, 27))), "images.*28 x 27 pixels, not 28 x 28"),
        (IMAGES, gzip.compress(b"\0\0\x08\x03\0\0"), "images.*cut short in its header"),
        (IMAGES, gzip.compress(b""), "images.*not an idx file"),
        (IMAGES, make_idx(np.zeros((7, 28, 28)))[:-9], "images.*not a whole gzip file"),
        (IMAGES, b"no gzip", "images.*not a whole gzip file"),
    ],
    ids=["label", "count", "short", "long", "none", "magic", "images", "size", "header", "empty", "cut", "gzip"],
)
def test_a_broken_file_of_mnist_is_named(name: str, content: bytes, message: str, store: Path, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "mine", {**make_digits(), name: content})
    with pytest.raises(RecastError, match=message):
        fetch_and_read(MnistSource(kind="mnist", path=str(folder)), store)


def test_a_folder_that_lacks_a_file_of_mnist_is_refused(store: Path, tmp_path: Path) -> None:
    files = make_digits()
    del files[LABELS]
    with pytest.raises(RecastError, match=f"problems.texts.source.path: .* lacks {LABELS}"):
        fetch_and_read(MnistSource(kind="mnist", path=str(write_files(tmp_path / "mine", files))), store)
    with pytest.raises(RecastError, match="there is no folder"):
        fetch_and_read(MnistSource(kind="mnist", path=str(tmp_path / "none")), store)


# IMDB


def reviews(**columns: list[Any]) -> pl.DataFrame:
    rows = {"split": ["train", "test", "train"], "label": [0, 1, 1], "text": ["bad", "good", "fine <br /> film"]}
    return pl.DataFrame({**rows, **columns})


def test_reviews_are_read_from_a_parquet_file_in_its_order(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.parquet"
    reviews().write_parquet(file)
    frame = fetch_and_read(ImdbSource(kind="imdb", path=str(file)), store)
    assert frame.select(SPLIT_COLUMN, INPUTS_COLUMN, TARGET_COLUMN).rows() == [
        ("train", "bad", [0.0]),
        ("test", "good", [1.0]),
        ("train", "fine <br /> film", [1.0]),
    ]
    assert frame[PLACE_COLUMN][1].endswith("mine.parquet, row 2")
    assert frame.schema[TARGET_COLUMN] == pl.List(pl.Float32)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [0, 2, 1]}, "row 2: its label is not 0 or 1"),
        ({"label": [0, 1, None]}, "row 3: its label is not 0 or 1"),
        ({"label": [0.0, 0.5, 1.0]}, "row 2: its label is not 0 or 1"),
        ({"label": ["0", "1", "1"]}, "column label holds String, not the numbers 0 and 1"),
        ({"text": ["bad", "good", " \n"]}, "row 3: the review is empty"),
        ({"text": [None, "good", "fine"]}, "row 1: the review is empty"),
        ({"text": [1, 2, 3]}, "column text holds Int64, not text"),
        ({"split": ["train", "test", "dev"]}, "row 3: its split is not one of train, validation, test"),
        ({"split": [None, "test", "dev"]}, "row 1: its split is not one of"),
    ],
)
def test_a_wrong_review_is_named(columns: dict[str, list[Any]], message: str, store: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.parquet"
    reviews(**columns).write_parquet(file)
    with pytest.raises(RecastError, match=rf"mine\.parquet.*{message}"):
        fetch_and_read(ImdbSource(kind="imdb", path=str(file)), store)


def test_a_file_that_holds_no_reviews_is_refused(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.parquet"
    source = ImdbSource(kind="imdb", path=str(file))
    with pytest.raises(RecastError, match=r"problems\.texts\.source\.path: there is no file"):
        fetch_and_read(source, store)
    reviews().drop("label", "text").write_parquet(file)
    with pytest.raises(RecastError, match="there is no column label, text; it must have split, label and text"):
        fetch_and_read(source, store)
    file.write_text("split,label,text\ntrain,0,bad\n")
    with pytest.raises(RecastError, match=r"mine\.parquet: not a readable table"):
        fetch_and_read(source, store)
    with pytest.raises(RecastError, match=r"is not a \.parquet or \.tar\.gz file; give it the right name"):
        fetch_and_read(ImdbSource(kind="imdb", path=str(file.rename(tmp_path / "mine.csv"))), store)


def pack_tar(files: Mapping[str, bytes], mode: str = "w:gz") -> bytes:
    """Pack files into a tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


ACL = {
    "aclImdb/README": b"not a review",
    "aclImdb/test/neg/0_2.txt": b"dull",
    "aclImdb/train/pos/0_9.txt": "caf\u00e9, good".encode(),
    "aclImdb/train/unsup/0_0.txt": b"nobody knows",
    "aclImdb/train/pos/../../../outside.txt": b"evil",
}


def test_reviews_are_downloaded_and_read_from_the_archive(
    mirror: Mirror, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.files = {imdb.ARCHIVE.name: pack_tar(ACL)}
    source = ImdbSource(kind="imdb", mirrors=(mirror.url,))
    with pytest.raises(Unreachable, match="answered with another file: its sha256 is"):
        source.fetch(store, ignore_progress, 1)
    monkeypatch.setattr(imdb, "ARCHIVE", publish(imdb.ARCHIVE, mirror.files[imdb.ARCHIVE.name]))
    monkeypatch.setattr(imdb, "CHUNK_REVIEWS", 1)
    frame = fetch_and_read(source, store)
    assert frame.select(SPLIT_COLUMN, INPUTS_COLUMN, TARGET_COLUMN).rows() == [
        ("test", "dull", [0.0]),
        ("train", "café, good", [1.0]),
    ]
    assert frame[PLACE_COLUMN][1].endswith("aclImdb_v1.tar.gz, train/pos/0_9.txt")
    assert not list(tmp_path.rglob("outside.txt"))
    asked = len(mirror.asked)
    source.fetch(store, ignore_progress, 1)
    assert len(mirror.asked) == asked, "what is there was downloaded again"
    local = ImdbSource(kind="imdb", path=str((store / imdb.ARCHIVE.name).rename(tmp_path / "mine.tar.gz")))
    checksum_file(store / imdb.ARCHIVE.name).unlink()
    assert fetch_and_read(local, store).height == 2


def test_a_local_file_and_a_download_take_each_others_place(
    mirror: Mirror, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.files = {imdb.ARCHIVE.name: pack_tar(ACL)}
    monkeypatch.setattr(imdb, "ARCHIVE", publish(imdb.ARCHIVE, mirror.files[imdb.ARCHIVE.name]))
    reviews().write_parquet(tmp_path / "mine.parquet")
    local, public = (
        ImdbSource(kind="imdb", path=str(tmp_path / "mine.parquet")),
        ImdbSource(kind="imdb", mirrors=(mirror.url,)),
    )
    for source, height in ((local, 3), (public, 2), (local, 3), (public, 2)):
        assert fetch_and_read(source, store).height == height


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pack_tar({**ACL, "aclImdb/test/pos/1_8.txt": b" "}), r"test/pos/1_8\.txt: the review is empty"),
        (pack_tar({**ACL, "aclImdb/test/pos/1_8.txt": b"ab\xff"}), r"test/pos/1_8\.txt: not UTF-8 at byte 2"),
        (pack_tar({"aclImdb/train/pos/0_9.txt": b"good"}), "no review was found under aclImdb/test"),
        (pack_tar(ACL)[:-30], "cut short or not a tar.gz archive"),
        (b"<html>", "cut short or not a tar.gz archive"),
    ],
    ids=["empty", "encoding", "one split", "cut", "page"],
)
def test_a_broken_archive_of_reviews_is_named(content: bytes, message: str, store: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.tar.gz"
    file.write_bytes(content)
    with pytest.raises(RecastError, match=rf"mine\.tar\.gz.*{message}"):
        fetch_and_read(ImdbSource(kind="imdb", path=str(file)), store)


@pytest.mark.skipif(not (SHARED / "imdb.parquet").exists(), reason="the real file is not here")
def test_the_real_reviews_are_fifty_thousand(store: Path) -> None:
    source = ImdbSource(kind="imdb", path=str(SHARED / "imdb.parquet"))
    source.fetch(store, ignore_progress, 1)
    frame = source.read_sequences(store, store.parent).frame
    counted = frame.group_by(SPLIT_COLUMN, pl.col(TARGET_COLUMN).list.first()).len().collect()
    assert sorted(counted.rows()) == [(split, label, 12_500) for split in ("test", "train") for label in (0.0, 1.0)]


# Music


def piece(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, size=(length, 88), dtype=np.uint8)


def cells(*pieces: Any) -> np.ndarray:
    """A row of cells."""
    row = np.empty((1, len(pieces)), dtype=object)
    for i, item in enumerate(pieces):
        row[0, i] = item
    return row


def collection() -> dict[str, Any]:
    return {"traindata": cells(piece(5), piece(7, 1)), "validdata": cells(piece(4, 2)), "testdata": cells(piece(2, 3))}


def make_matlab(content: dict[str, Any], packed: bool = True) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, content, do_compression=packed)
    return buffer.getvalue()


def test_pieces_are_their_steps_of_88_keys(store: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.mat").write_bytes(make_matlab(collection() | {"more": "ignored"}))
    frame = fetch_and_read(MusicSource(kind="music", path=str(tmp_path / "mine.mat")), store)
    assert frame[SPLIT_COLUMN].to_list() == ["train", "train", "validation", "test"]
    assert frame[INPUTS_COLUMN].list.len().to_list() == [88 * length for length in (5, 7, 4, 2)]
    np.testing.assert_array_equal(np.array(frame[INPUTS_COLUMN][1]).reshape(7, 88), piece(7, 1))
    assert frame.schema[INPUTS_COLUMN] == pl.List(pl.Float32)
    assert TARGET_COLUMN not in frame.columns
    assert frame[PLACE_COLUMN][1].endswith("mine.mat, traindata, piece 2")


def test_a_collection_is_downloaded(mirror: Mirror, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = music.FILES["nottingham"]
    mirror.files = {known.name: make_matlab(collection())}
    source = MusicSource(kind="music", name="nottingham", mirrors=(mirror.url,))
    monkeypatch.setitem(music.FILES, "nottingham", publish(known, mirror.files[known.name]))
    assert fetch_and_read(source, store).height == 4
    assert mirror.asked == ["/data/Nottingham.mat"]
    with pytest.raises(Unreachable, match=r"JSB_Chorales\.mat could not be downloaded"):
        MusicSource(kind="music", name="jsb_chorales", mirrors=(mirror.url,)).fetch(store, ignore_progress, 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"testdata": None}, "there is no testdata"),
        ({"validdata": piece(5)}, "validdata: not one row of cells"),
        ({"validdata": cells(piece(4), piece(4)[:, :87])}, r"validdata, piece 2: its shape is \(4, 87\), not"),
        ({"validdata": cells(piece(4), "tune")}, "validdata, piece 2: not an array of numbers"),
        ({"traindata": cells(piece(5), piece(1))}, "traindata, piece 2: shorter than two steps"),
        (
            {"traindata": cells(piece(5), piece(5) * 0 + np.eye(5, 88, k=3) * 2)},
            "traindata, piece 2, step 1, key 4: 2.0 is not",
        ),
        ({"traindata": cells(np.full((3, 88), np.nan))}, "traindata, piece 1, step 1, key 1: nan is not 0 or 1"),
    ],
    ids=["key", "cells", "shape", "text", "short", "value", "nan"],
)
def test_a_wrong_piece_is_named(wrong: dict[str, Any], message: str, store: Path, tmp_path: Path) -> None:
    content = {key: value for key, value in (collection() | wrong).items() if value is not None}
    (tmp_path / "mine.mat").write_bytes(make_matlab(content))
    with pytest.raises(RecastError, match=rf"mine\.mat.*{message}"):
        fetch_and_read(MusicSource(kind="music", path=str(tmp_path / "mine.mat")), store)


WHOLE, PLAIN = (make_matlab(collection(), packed) for packed in (True, False))


@given(st.sampled_from([WHOLE, PLAIN]), st.data())
@settings(max_examples=100)
def test_a_broken_matlab_file_is_refused_or_read_but_never_crashes(
    folders: Callable[[], Path], whole: bytes, data: st.DataObject
) -> None:
    folder, broken = folders(), bytearray(whole)
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=4)):
        broken[place] = data.draw(st.integers(0, 255))
    (folder / "mine.mat").write_bytes(broken[: data.draw(st.integers(len(whole) // 2, len(whole)))])
    try:
        frame = read_frame(MusicSource(kind="music", path="mine.mat"), folder, folder / "scratch")
    except RecastError as error:  # a broken file may still be readable
        assert str(error).startswith(str(folder / "mine.mat"))  # noqa: PT017
    else:
        assert frame.height == 4


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8", "i8"])
def test_cells_are_read_as_scipy_reads_them(packed: bool, dtype: str, tmp_path: Path) -> None:
    arrays = [piece(3).astype(dtype) * 7, piece(1).astype(dtype), np.zeros((0, 88), dtype)]
    (tmp_path / "mine.mat").write_bytes(make_matlab({"other": "text", "column": cells(*arrays).T, "b": 3.0}, packed))
    result = matlab_cells(tmp_path / "mine.mat", ["column", "none"])
    known = loadmat(tmp_path / "mine.mat")["column"][:, 0]
    assert list(result) == ["column"]
    for array, expected in zip(result["column"], known, strict=True):
        np.testing.assert_array_equal(array, expected)


def test_a_cut_matlab_file_and_a_pickle_are_refused(store: Path, tmp_path: Path) -> None:
    source = MusicSource(kind="music", path=str(tmp_path / "mine.mat"))
    (tmp_path / "mine.mat").write_bytes(WHOLE[: len(WHOLE) // 2])
    with pytest.raises(RecastError, match=r"mine\.mat: not a whole MATLAB file"):
        fetch_and_read(source, store)
    (tmp_path / "mine.mat").write_bytes(b"\x80\x04\x95" + bytes(200))
    with pytest.raises(RecastError, match=r"mine\.mat: not a MATLAB 5 file"):
        fetch_and_read(source, store)


@pytest.mark.parametrize("kind", ["music", "imdb", "mnist", "digits", "language"])
def test_an_empty_store_is_no_traceback(kind: str, store: Path, tmp_path: Path) -> None:
    generate = {
        "music": MusicSource(kind="music", name="nottingham"),
        "imdb": ImdbSource(kind="imdb"),
        "mnist": MnistSource(kind="mnist"),
        "digits": DigitsSource(kind="digits"),
        "language": LanguageSource(kind="language", corpus="ptb"),
    }
    with pytest.raises(RecastError, match=str(store)):
        read_frame(generate[kind], store, tmp_path / "scratch")


def test_music_needs_a_name_or_a_path(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="give name, jsb_chorales or nottingham, or path"):
        MusicSource(kind="music")
    with pytest.raises(RecastError, match="there is no file"):
        MusicSource(kind="music", path=str(tmp_path / "none.mat")).fetch(store, ignore_progress, 1)


@pytest.mark.skipif(not (SHARED / "JSB_Chorales.mat").exists(), reason="the real file is not here")
def test_the_real_chorales_are_the_public_ones(store: Path) -> None:
    file = SHARED / "JSB_Chorales.mat"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == music.FILES["jsb_chorales"].sha256
    frame = fetch_and_read(MusicSource(kind="music", path=str(file)), store)
    assert dict(frame.group_by(SPLIT_COLUMN).len().iter_rows()) == {"train": 229, "validation": 76, "test": 77}


# Language


def language_source(**settings: Any) -> LanguageSource:
    return LanguageSource(kind="language", **settings)


@given(
    st.lists(st.text(st.sampled_from("ab é漢\n\t\u00a0\U0001f600"), max_size=30), max_size=8),
    st.integers(1, 40),
)
def test_blocks_are_the_text_and_cut_no_word(parts: list[str], size: int) -> None:
    text = "".join(parts)
    content = text.encode()
    result = list(split_into_blocks((content[i : i + size] for i in range(0, len(content), size)), "x"))
    assert "".join(result) == (text if text.strip() else "")
    assert all(block.strip() for block in result)
    assert all(block[0] in " \n\t" for block in result[1:])


def test_a_block_without_a_space_is_cut_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_blocks, "BLOCK_BYTES", 4)
    assert list(split_into_blocks([b"abcdef", b"ghij", b"k"], "x")) == ["abcdef", "ghij", "k"]


def test_a_text_file_comes_in_blocks_in_its_order(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_blocks, "BLOCK_BYTES", 50)
    monkeypatch.setattr(text_blocks, "CHUNK_BLOCKS", 3)
    text = "".join(f"Wort {i} weiß ß\n" for i in range(100))
    (tmp_path / "mine.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    frame = fetch_and_read(language_source(path=str(tmp_path / "mine.txt")), store)
    assert "".join(frame[INPUTS_COLUMN]) == text
    assert frame.height > 20
    assert frame[SPLIT_COLUMN].null_count() == frame.height
    first = len(frame[INPUTS_COLUMN][0])
    assert frame[PLACE_COLUMN][1].endswith(f"mine.txt, from character {first + 1}")
    (tmp_path / "mine.txt.gz").write_bytes(gzip.compress(text.encode()))
    assert "".join(fetch_and_read(language_source(path=str(tmp_path / "mine.txt.gz")), store)[INPUTS_COLUMN]) == text


def test_three_text_files_are_the_three_splits(store: Path, tmp_path: Path) -> None:
    files = {}
    for split in ("test", "train", "validation"):
        (tmp_path / f"{split}.txt").write_text(f"the words of {split}\n", encoding="utf-8")
        files[split] = str(tmp_path / f"{split}.txt")
    frame = fetch_and_read(language_source(path=files), store)
    assert frame.select(SPLIT_COLUMN, INPUTS_COLUMN).rows() == [
        (split, f"the words of {split}\n") for split in ("train", "validation", "test")
    ]
    (tmp_path / "link.txt").symlink_to(tmp_path / "train.txt")
    with pytest.raises(RecastError, match="train and test are the same file"):
        fetch_and_read(language_source(path=files | {"test": str(tmp_path / "link.txt")}), store)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine.txt", b"", "the file is empty"),
        ("mine.txt", b" \n\n", "the file is empty"),
        ("mine.txt", "naïve".encode("latin-1"), "not UTF-8 at byte 2"),
        ("mine.txt", b"\xef\xbb\xbfabc\xff", "not UTF-8 at byte 6"),
        ("mine.txt", b"a " * 70_000 + b"\xe6\xbc" + b"b", "not UTF-8 at byte 140000"),
        ("mine.txt", "漢".encode()[:2], "not UTF-8 at byte 0"),
        ("mine.txt.gz", gzip.compress(b"a text " * 99)[:-9], "cut short or broken"),
        ("mine.txt.gz", b"a text", "cut short or broken"),
    ],
    ids=["empty", "blank", "latin", "mark", "far", "end", "cut", "packed"],
)
def test_a_file_that_is_no_text_is_named(name: str, content: bytes, message: str, store: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecastError, match=rf"{name}: .*{message}"):
        fetch_and_read(language_source(path=str(tmp_path / name)), store)


def test_the_byte_of_an_error_is_counted_over_all_pieces() -> None:
    content = "aé漢".encode() + b" b\xff c"
    for size in range(1, len(content) + 1):
        with pytest.raises(RecastError, match="x: not UTF-8 at byte 8;"):
            list(split_into_blocks((content[i : i + size] for i in range(0, len(content), size)), "x"))


def test_settings_that_name_no_text_are_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="path must name a text file"):
        language_source()
    with pytest.raises(ValidationError, match="path must name a folder with the files of ptb"):
        language_source(corpus="ptb", path={"train": "a", "validation": "b", "test": "c"})
    with pytest.raises(ValidationError, match="mirrors must be left out"):
        language_source(path="a.txt", mirrors=("http://127.0.0.1/",))
    with pytest.raises(RecastError, match=r"problems\.texts\.source\.path: there is no file"):
        language_source(path=str(tmp_path / "none.txt")).fetch(store, ignore_progress, 1)


def pack_zip(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


NOVELS = {
    "train-novels/Romance/one.txt": b"It was late .\n",
    "train-novels/Romance/._one.txt": b"\0\1",
    "train-novels/Horror/blank.txt": b"\n",
    "train-novels/Horror/two.txt": b"It was dark .\n",
}
PASSAGES = {
    "./lambada_development_plain_text.txt": b"who is there\n",
    "train-novels.tar": pack_tar(NOVELS, "w"),
    "lambada_test_plain_text.txt": b"it is me\n",
    "lambada-vocab-2.txt": b"no text",
}
TOKENS = {f"wikitext-103/wiki.{name}.tokens": f" = {name} = \n".encode() for name in ("train", "valid", "test")}
TEXT8 = b" the cat sat on the mat and"

CORPORA: dict[str, tuple[dict[str, bytes], dict[str, str]]] = {
    "ptb": (
        {f"ptb.{name}.txt": f" no it was {name} <unk> \n".encode() for name in ("train", "valid", "test")},
        {
            "train": " no it was train <unk> \n",
            "validation": " no it was valid <unk> \n",
            "test": " no it was test <unk> \n",
        },
    ),
    "wikitext_103": (
        {"wikitext-103-v1.zip": pack_zip(TOKENS | {"../outside.txt": b"evil"})},
        {"train": " = train = \n", "validation": " = valid = \n", "test": " = test = \n"},
    ),
    "lambada": (
        {"lambada-dataset.tar.gz": pack_tar(PASSAGES)},
        {"train": "It was late .\nIt was dark .\n", "validation": "who is there\n", "test": "it is me\n"},
    ),
    "text8": (
        {"text8.zip": pack_zip({"text8": TEXT8})},
        {"train": " the cat sat on th", "validation": "e mat", "test": " and"},
    ),
}
"""The files of each corpus in the form in which they are published, but short; and the text of its splits."""


@pytest.fixture
def small_corpora(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "TEXT8_SIZES", (18, 5, 4))
    for name, (files, _) in CORPORA.items():
        public = tuple(publish(file, files[file.name]) for file in language.CORPORA[name].files)
        monkeypatch.setitem(language.CORPORA, name, replace(language.CORPORA[name], files=public))


@pytest.mark.usefixtures("small_corpora")
@pytest.mark.parametrize("name", CORPORA)
def test_a_public_corpus_is_downloaded_and_read_without_unpacking_it(
    name: str, mirror: Mirror, store: Path, tmp_path: Path
) -> None:
    mirror.files, texts = CORPORA[name]
    source = language_source(corpus=name, mirrors=(mirror.url,))
    frame = fetch_and_read(source, store)
    result = {split: "".join(frame.filter(pl.col(SPLIT_COLUMN) == split)[INPUTS_COLUMN]) for split in texts}
    assert result == texts
    assert {file.name for file in store.iterdir()} == {*mirror.files, *(f"{file}.sha256" for file in mirror.files)}
    assert not list(tmp_path.rglob("outside.txt"))
    folder = write_files(tmp_path / "mine", mirror.files)
    again = fetch_and_read(language_source(corpus=name, path=str(folder)), tmp_path / "raw" / "texts")
    assert again.select(SPLIT_COLUMN, INPUTS_COLUMN).equals(frame.select(SPLIT_COLUMN, INPUTS_COLUMN))
    mirror.files = {}
    with pytest.raises(Unreachable, match=r"(?s)could not be downloaded.*404.*problems\.texts\.source\.path"):
        fetch_and_read(source, store)


def test_every_public_file_has_a_checksum_and_an_address() -> None:
    for corpus in language.CORPORA.values():
        assert all(address.startswith("http") and address.endswith("/") for address in corpus.mirrors)
        for file in corpus.files:
            assert len(bytes.fromhex(file.sha256)) == 32
    assert sum(language.TEXT8_SIZES) == 100_000_000


@pytest.mark.usefixtures("small_corpora")
@pytest.mark.parametrize(
    ("corpus", "name", "content", "message"),
    [
        ("text8", "text8.zip", pack_zip({"text8": TEXT8[:-1]}), "test: 3 of 4 characters"),
        ("text8", "text8.zip", pack_zip({"text8": TEXT8 + b"x"}), "longer than 27 characters"),
        ("text8", "text8.zip", pack_zip({"text9": TEXT8}), "the archive has no text8"),
        ("text8", "text8.zip", b"PK\x03\x04", "cut short or not a zip archive"),
        ("wikitext_103", "wikitext-103-v1.zip", pack_zip({}), r"no wikitext-103/wiki\.train\.tokens"),
        ("lambada", "lambada-dataset.tar.gz", pack_tar({}), "the archive has no lambada_dev"),
        (
            "lambada",
            "lambada-dataset.tar.gz",
            pack_tar(PASSAGES | {"train-novels.tar": pack_tar(NOVELS, "w")[:700]}),
            "cut short or",
        ),
        ("lambada", "lambada-dataset.tar.gz", pack_tar(PASSAGES)[:-40], "cut short or"),
    ],
    ids=["short", "long", "member", "head", "tokens", "none", "novels", "cut"],
)
def test_a_broken_archive_of_text_is_named(
    corpus: str, name: str, content: bytes, message: str, store: Path, tmp_path: Path
) -> None:
    folder = write_files(tmp_path / "mine", {name: content})
    with pytest.raises(RecastError, match=rf"{name}.*{message}"):
        fetch_and_read(language_source(corpus=corpus, path=str(folder)), store)


def test_a_member_whose_bytes_have_changed_is_named(store: Path, tmp_path: Path) -> None:
    content = bytearray(pack_zip({"text8": bytes(range(97, 123)) * 4000}))
    content[60] ^= 0xFF
    folder = write_files(tmp_path / "mine", {"text8.zip": bytes(content)})
    with pytest.raises(RecastError, match=r"text8\.zip, text8, train: cut short or broken"):
        fetch_and_read(language_source(corpus="text8", path=str(folder)), store)
