"""The stages ingest, normalize and window of a problem of whole sequences: checked, made into numbers, cut in pieces.

All steps of all sequences lie in one memory-mapped array, one after the other, as the rows of a table do; a piece is a
range of them.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import TypeAdapter

from architectures.shape import WindowShape
from problems.errors import RecastError
from problems.problem import SequenceProblem
from problems.sequences import INPUTS, SPLIT, TARGET, Asked, Objective
from problems.source import PLACE
from problems.split import GivenSplit
from stages.atomic import replaced_folder, write_json

SPLITS = ("train", "validation", "test")
WINDOWS = "windows.json"
SEQUENCES, VOCABULARY = "sequences.parquet", "vocabulary.json"

CHARACTERS = 1 << 24
"""Of text, in memory at once; of numbers as many."""
PADDING, UNKNOWN = 0, 1
"""The codes before those of tokens."""
LINE_END = "<eos>"
"""What stands for the end of a line where tokens are what stands between spaces."""
LISTED_CLASSES = 1000


# Ingest


@dataclass(frozen=True)
class SequenceQuality:
    """What was read; the same sequences give the same report.

    Attributes:
        files: sha256 of each raw file.
        sequences: how many, by the source's split; under `all` where it has none.
        length: the shortest, the mean and the longest: in characters, of text, and else in steps.
        counted: what a length counts.
        answers: how often each answer is given, where it is one of a class, by class.
    """

    synthetic: bool
    files: dict[str, str]
    sequences: dict[str, int]
    length: tuple[int, float, int]
    counted: str
    answers: dict[str, int]

    @property
    def described(self) -> str:
        """For people: how many there are, and how long."""
        number, (shortest, mean, longest) = sum(self.sequences.values()), self.length
        lengths = f"{longest:,} {self.counted}"
        if shortest < longest:
            lengths = f"{shortest:,} to {lengths}, {mean:,.4g} on average"
        simulated = "simulated " if self.synthetic else ""
        return f"{number:,} {simulated}{'sequence' if number == 1 else 'sequences'} of {lengths}"


def ingest_sequences(problem: SequenceProblem, store: Path, out: Path, files: dict[str, str]) -> SequenceQuality:
    """Read the raw files in `store` into `out`: `sequences.parquet` and `quality.json`, both or neither.

    Args:
        files: sha256 of each raw file.

    Raises:
        RecastError: a sequence is not what the source says it is; the message says where it stands.
    """
    asked = problem.source.asked
    with replaced_folder(out) as folder:
        scratch = folder / "scratch"
        scratch.mkdir()
        found = problem.source.sequences(store, scratch).frame
        columns = [SPLIT, INPUTS, *([] if asked.shifted else [TARGET]), PLACE]
        found.select(columns).sink_parquet(folder / SEQUENCES, row_group_size=1 << 8)
        for file in sorted(scratch.glob("*")):
            file.unlink()
        scratch.rmdir()
        frame = pl.scan_parquet(folder / SEQUENCES)
        for wrong, said in _wrong(asked):
            places = frame.filter(wrong).select(PLACE).head(1).collect()
            if places.height:
                raise RecastError(f"{places.item()}: {said}; mend or leave out this sequence")
        length = pl.col(INPUTS).str.len_chars() if asked.text else pl.col(INPUTS).list.len() // asked.features
        least, mean, most = (
            frame.select(length.min().alias("least"), length.mean().alias("mean"), length.max().alias("most"))
            .collect(engine="streaming")
            .row(0)
        )
        if least is None:
            raise RecastError(f"{store}: no sequence was found there; run the ingest stage again")
        by_split = frame.group_by(pl.col(SPLIT).fill_null("all")).len().collect(engine="streaming").sort(SPLIT)
        quality = SequenceQuality(
            synthetic=problem.source.synthetic,
            files=files,
            sequences=dict(by_split.iter_rows()),
            length=(least, float(f"{mean:.6g}"), most),
            counted="characters" if asked.text else "steps",
            answers=_answers(frame, asked),
        )
        write_json(folder / "quality.json", asdict(quality))
    return quality


def _wrong(asked: Asked) -> Iterator[tuple[pl.Expr, str]]:
    """What no sequence may be, and how it is said."""
    yield pl.col(INPUTS).is_null(), "the sequence is missing"
    if asked.text:
        yield pl.col(INPUTS).str.strip_chars() == "", "the text is empty"
    else:
        size = pl.col(INPUTS).list.len()
        yield (size == 0) | (size % asked.features != 0), f"its numbers are not {asked.features} a step"
        whole = pl.col(INPUTS).list.eval(pl.element().is_finite().fill_null(False)).list.all()
        yield ~whole, "one of its numbers is missing or infinite"
        if asked.codes is not None:
            codes = pl.col(INPUTS).list
            yield (codes.min() < 0) | (codes.max() >= asked.codes), f"a code is not one of 0 to {asked.codes - 1}"
        if asked.each:
            yield size < (1 + asked.shifted) * asked.features, "it has no step with an answer"
    if asked.shifted:
        return
    target, answers = pl.col(TARGET).list, asked.answers or 1
    if asked.each:
        steps = pl.col(INPUTS).list.len() // asked.features
        yield target.len() != steps * (answers if asked.objective == "labels" else 1), "its answers are not one a step"
    else:
        yield target.len() != (answers if asked.objective == "labels" else 1), "it has not one answer"
    yield ~pl.col(TARGET).list.eval(pl.element().is_finite().fill_null(False)).list.all(), "an answer is missing"
    most = {"value": None, "binary": 1, "labels": 1, "classes": answers - 1}[asked.objective]
    if most is not None:
        whole = pl.col(TARGET).list.eval(pl.element() == pl.element().round()).list.all()
        yield ~whole | (target.min() < 0) | (target.max() > most), f"an answer is not one of 0 to {most}"


def _answers(frame: pl.LazyFrame, asked: Asked) -> dict[str, int]:
    """How often each class is the answer of a sequence; nothing where answers are no classes, or come step by step."""
    if asked.each or asked.objective not in ("binary", "classes"):
        return {}
    counts = frame.select(pl.col(TARGET).list.first().cast(pl.Int64)).group_by(TARGET).len().sort(TARGET)
    return {str(name): count for name, count in counts.head(LISTED_CLASSES).collect(engine="streaming").iter_rows()}


# Normalize


@dataclass(frozen=True)
class Encoded:
    """What there is to know about encoded sequences beside their steps.

    Attributes:
        features: numbers a step.
        codes: steps are codes below this number; None: they are numbers.
        answers: outputs that an answer needs.
        sequences: how many each split has.
        unknown: the share of each split's tokens that are not in the vocabulary.
        sha256: of steps, targets and vocabulary: the identity of the data for a trial's key.
    """

    features: int
    codes: int | None
    answers: int
    sequences: dict[str, int]
    unknown: dict[str, float]
    synthetic: bool
    sha256: str

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What `encode` wrote into `folder`."""
        return TypeAdapter(cls).validate_json((folder / "table.json").read_bytes())


def steps_of(folder: Path) -> NDArray[Any]:
    """The steps of all sequences, (N, F) float32, or (N, 1) int32 where they are codes; memory-mapped."""
    steps: NDArray[Any] = np.load(folder / "steps.npy", mmap_mode="c", allow_pickle=False)
    return steps


def targets_of(folder: Path) -> NDArray[np.float32] | None:
    """The targets, (M, K): a row a sequence, or with an answer at each step a row a step; None: the next step is it."""
    file = folder / "targets.npy"
    return np.load(file, mmap_mode="c", allow_pickle=False) if file.exists() else None


def bounds_of(folder: Path) -> NDArray[np.int64]:
    """Of each sequence (Q, 3): its first step, the one after its last, and its split, as `SPLITS` counts them."""
    bounds: NDArray[np.int64] = np.load(folder / "sequences.npy", allow_pickle=False)
    return bounds


def vocabulary_of(folder: Path) -> list[str]:
    """The tokens of the vocabulary by code; padding and unknown ones have names in angle brackets."""
    words: list[str] = json.loads((folder / VOCABULARY).read_text(encoding="utf-8"))
    return words


def encode(problem: SequenceProblem, ingested: Path, out: Path) -> Encoded:
    """Write the steps, the targets and where each sequence begins into the folder `out`, split after split.

    A text's tokens become codes by a vocabulary of the training split alone. Numbers stay as they are.

    Args:
        out: its last part is the problem's name, which messages say.

    Raises:
        RecastError: a split has no sequence, or a text no token.
    """
    asked = problem.source.asked
    frame = pl.scan_parquet(ingested / SEQUENCES)
    parts = _split(problem, frame, out.name)
    tokens = problem.table.tokens
    words: list[str] = []
    if tokens:
        words = _vocabulary(problem, frame, [part for part in parts if part.split == 0])
    codes = len(words) if tokens else asked.codes
    digest = hashlib.sha256(json.dumps(words).encode())
    seen, unknown = [0] * len(SPLITS), [0] * len(SPLITS)
    with replaced_folder(out) as folder:
        lengths: list[tuple[int, int]] = []
        with (folder / "steps.raw").open("wb") as steps, (folder / "targets.raw").open("wb") as targets:
            for split, rows in _batches(frame, parts):
                if tokens:
                    flat, sizes = _codes(rows, tokens, words, out.name)
                    unknown[split] += int((flat == UNKNOWN).sum())
                    seen[split] += flat.size
                else:
                    flat, sizes = _numbers(rows[INPUTS], asked)
                lengths += [(split, size) for size in sizes]
                steps.write(flat.tobytes())
                digest.update(flat.tobytes())
                if not asked.shifted:
                    answers = rows[TARGET].explode().to_numpy().astype(np.float32)
                    targets.write(answers.tobytes())
                    digest.update(answers.tobytes())
        dtype, features = (np.int32, 1) if codes is not None else (np.float32, asked.features)
        _as_array(folder / "steps.raw", folder / "steps.npy", dtype, features)
        labels = (asked.answers or 1) if asked.objective == "labels" else 1
        if not asked.shifted:
            _as_array(folder / "targets.raw", folder / "targets.npy", np.float32, labels)
        (folder / "targets.raw").unlink(missing_ok=True)
        bounds = _bounds(lengths, asked.stream)
        digest.update(bounds.tobytes())
        np.save(folder / "sequences.npy", bounds, allow_pickle=False)
        write_json(folder / VOCABULARY, words)
        about = Encoded(
            features=features,
            codes=codes,
            answers=codes if asked.answers is None and codes is not None else asked.answers or 1,
            sequences={name: int((bounds[:, 2] == i).sum()) for i, name in enumerate(SPLITS)},
            unknown={name: unknown[i] / seen[i] for i, name in enumerate(SPLITS) if seen[i]},
            synthetic=problem.source.synthetic,
            sha256=digest.hexdigest(),
        )
        write_json(folder / "table.json", asdict(about))
    return about


@dataclass(frozen=True)
class _Part:
    """A row of the ingested sequences, or so many characters of one that is cut, and its split."""

    row: int
    split: int
    begin: int
    end: int


def _split(problem: SequenceProblem, frame: pl.LazyFrame, name: str) -> list[_Part]:
    """The sequences in the order of their splits; within a split in their own.

    Raises:
        RecastError: the source has no split and none is declared, or a split is empty.
    """
    asked, rule = problem.source.asked, problem.split
    length = pl.col(INPUTS).str.len_chars() if asked.text else pl.col(INPUTS).list.len()
    rows = frame.select(SPLIT, length.alias("length")).collect(engine="streaming")
    sizes = rows["length"].to_list()
    given = [None if each is None else SPLITS.index(each) for each in rows[SPLIT]]
    setting = f"problems.{name}.split"
    parts: list[_Part] = []
    if isinstance(rule, GivenSplit):
        if None in given:
            raise RecastError(f"{setting}: the source has no split of its own; write {{train: 0.8, validation: 0.1}}")
        of = [split for split in given if split is not None]
        if 1 not in of and rule.validation is not None:
            training = np.flatnonzero(np.array(of) == 0)
            drawn = np.random.default_rng(0).permutation(training)[: round(len(training) * rule.validation)]
            for row in drawn.tolist():
                of[row] = 1
        parts = [_Part(row, split, 0, size) for row, (split, size) in enumerate(zip(of, sizes, strict=True))]
    elif asked.stream:
        total, before = sum(sizes), 0
        cuts = [0, int(rule.train * total), int((rule.train + rule.validation) * total), total]
        for row, size in enumerate(sizes):
            for split in range(len(SPLITS)):
                begin, end = max(cuts[split] - before, 0), min(cuts[split + 1] - before, size)
                if begin < end:
                    parts.append(_Part(row, split, begin, end))
            before += size
    else:
        cuts = [int(rule.train * len(sizes)), int((rule.train + rule.validation) * len(sizes))]
        of = np.searchsorted(cuts, np.arange(len(sizes)), side="right").tolist()
        parts = [_Part(row, split, 0, size) for row, (split, size) in enumerate(zip(of, sizes, strict=True))]
    for split, each in enumerate(SPLITS):
        if not any(part.split == split for part in parts):
            hint = "; {kind: given, validation: 0.2} takes a share of the training sequences" if split == 1 else ""
            raise RecastError(f"{setting}: no sequence is left for {each}{hint}")
    return sorted(parts, key=lambda part: part.split)


def _batches(frame: pl.LazyFrame, parts: list[_Part]) -> Iterator[tuple[int, pl.DataFrame]]:
    """The parts in their order, as many at once as fit in memory, all of one split."""
    begin = 0
    while begin < len(parts):
        end, size = begin, 0
        while end < len(parts) and parts[end].split == parts[begin].split and (size < CHARACTERS or end == begin):
            size += parts[end].end - parts[end].begin
            end += 1
        some = parts[begin:end]
        first, last = min(part.row for part in some), max(part.row for part in some)
        rows = frame.slice(first, last - first + 1).collect()[[part.row - first for part in some]]
        if rows.schema[INPUTS] == pl.String:
            cut = {"begin": [part.begin for part in some], "length": [part.end - part.begin for part in some]}
            whole = pl.col(INPUTS).str.slice(pl.col("begin"), pl.col("length"))
            rows = rows.with_columns(pl.DataFrame(cut)).with_columns(whole)
        yield parts[begin].split, rows
        begin = end


_PUNCTUATION = r"""[!"#$%&()*+,\-./:;<=>?@\[\\\]^_`{|}~\t\n\r]"""
"""What Keras's tokeniser takes for a space."""


def _tokens(how: str) -> pl.Expr:
    """The tokens of each text, a list."""
    text = pl.col(INPUTS)
    if how == "characters":
        return text.str.split("")
    if how == "words":
        text = text.str.to_lowercase().str.replace_all(_PUNCTUATION, " ")
    else:
        text = text.str.replace_all("\n", f" {LINE_END} ", literal=True)
    return text.str.extract_all(r"\S+")


def _vocabulary(problem: SequenceProblem, frame: pl.LazyFrame, training: list[_Part]) -> list[str]:
    """The tokens of the training split by code: the most frequent first, those as frequent in the alphabet's order."""
    assert problem.table.tokens
    counts: Counter[str] = Counter()
    for _, rows in _batches(frame, training):
        found = rows.select(_tokens(problem.table.tokens).explode().alias("token")).drop_nulls()
        counts.update(dict(found.group_by("token").len().iter_rows()))
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    room = None if problem.table.vocabulary is None else problem.table.vocabulary - 2
    return ["<padding>", "<unknown>", *ranked[:room]]


def _codes(rows: pl.DataFrame, how: str, words: list[str], name: str) -> tuple[NDArray[np.int32], list[int]]:
    """The codes of texts, one after the other, and how many each has.

    Raises:
        RecastError: a text has no token.
    """
    lists = rows.select(PLACE, _tokens(how).alias("tokens"))
    sizes = lists["tokens"].list.len()
    if (sizes == 0).any():
        place = lists.filter(sizes == 0)[PLACE][0]
        raise RecastError(f"{place}: the text has no token; mend it, or change problems.{name}.table.tokens")
    tokens = lists["tokens"].explode()
    known = pl.Series(words[2:], dtype=pl.String)
    codes = pl.Series(np.arange(2, len(words), dtype=np.int32))
    flat = tokens.replace_strict(known, codes, default=UNKNOWN, return_dtype=pl.Int32)
    return flat.to_numpy(), sizes.to_list()


def _numbers(inputs: pl.Series, asked: Asked) -> tuple[NDArray[Any], list[int]]:
    """The numbers of sequences, or their codes, one after the other, and how many steps each has."""
    flat = inputs.explode().to_numpy().astype(np.float32 if asked.codes is None else np.int32)
    return flat, (inputs.list.len() // asked.features).to_list()


def _as_array(raw: Path, file: Path, dtype: type[Any], columns: int) -> None:
    """Numbers that were written one after the other, as a file that NumPy maps; memory does not grow with them."""
    item = np.dtype(dtype).itemsize
    rows = raw.stat().st_size // (item * columns)
    array = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=(rows, columns))
    flat = array.reshape(-1)
    with raw.open("rb") as numbers:
        for begin in range(0, flat.size, CHARACTERS):
            count = min(CHARACTERS, flat.size - begin)
            flat[begin : begin + count] = np.frombuffer(numbers.read(count * item), dtype=dtype)
    array.flush()
    raw.unlink()


def _bounds(lengths: list[tuple[int, int]], stream: bool) -> NDArray[np.int64]:
    """Where each sequence begins and ends, and its split; of a stream, one a split."""
    splits, sizes = (np.array(column, dtype=np.int64) for column in zip(*lengths, strict=True))
    if stream:
        sizes = np.bincount(splits, weights=sizes, minlength=len(SPLITS)).astype(np.int64)
        splits = np.arange(len(SPLITS))
    ends = np.cumsum(sizes)
    return np.stack([ends - sizes, ends, splits], axis=1)


# Window


@dataclass(frozen=True)
class Piecing:
    """What a piece of a sequence is, in steps; the numbers of a piece stand in `<split>.npy`.

    A piece (K, 4) is the first step that is read, the first that is scored, the one after the last, and the sequence
    that it is of, all counted over all sequences.

    Attributes:
        windows: how many there are, by split.
        left_out: steps that no piece has, by split: of one answer a sequence, those before the last `length`.
        table: sha256 of the sequences that they are of.
        shape: what a network is told of them.
        objective: what an answer is.
        token: what a class is, where it is one of a text.
    """

    length: int | None
    context: int
    scored: int | None
    carry: bool
    windows: dict[str, int]
    left_out: dict[str, int]
    table: str
    objective: Objective
    token: Literal["characters", "words"] | None
    shape: WindowShape

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What `cut` wrote into `folder`."""
        return TypeAdapter(cls).validate_json((folder / WINDOWS).read_bytes())


def cut(problem: SequenceProblem, encoded: Path, out: Path) -> Piecing:
    """Write the pieces of each split, and what a piece is, into the folder `out`.

    Args:
        out: its last part is the problem's name, which messages say.

    Raises:
        RecastError: a split has too few steps for a piece.
    """
    asked, rule, about, bounds = problem.source.asked, problem.window, Encoded.read(encoded), bounds_of(encoded)
    sizes = bounds[:, 1] - bounds[:, 0]
    length = rule.length or int(sizes[bounds[:, 2] == 0].max())
    pieces: dict[str, NDArray[np.int64]] = {}
    left_out = {}
    for i, split in enumerate(SPLITS):
        chosen = np.flatnonzero(bounds[:, 2] == i)
        found = [
            piece
            for sequence in chosen.tolist()
            for piece in _pieces(problem, int(bounds[sequence, 0]), int(bounds[sequence, 1]), length, sequence)
        ]
        if not found:
            raise RecastError(f"{split}: no step has an answer; give problems.{out.name}.split more sequences for it")
        pieces[split] = np.array(found, dtype=np.int64)
        read = (pieces[split][:, 2] - pieces[split][:, 0]).sum()
        left_out[split] = 0 if asked.each else int(sizes[chosen].sum() - read)
    tokens = problem.table.tokens
    longest = max(int((each[:, 2] - each[:, 0]).max()) for each in pieces.values())
    windowing = Piecing(
        length=rule.length,
        context=rule.context,
        scored=rule.scored,
        carry=rule.carry,
        windows={split: len(each) for split, each in pieces.items()},
        left_out=left_out,
        table=about.sha256,
        objective=asked.objective,
        token=None if not asked.shifted or tokens is None else "characters" if tokens == "characters" else "words",
        shape=WindowShape(
            steps=longest if asked.each else length,
            features=about.features,
            target=None,
            horizon=1,
            day=0,
            codes=about.codes,
            each=asked.each,
            outputs=about.answers if asked.objective in ("classes", "labels") else 1,
            carried=rule.carry,
        ),
    )
    with replaced_folder(out) as folder:
        for split, each in pieces.items():
            np.save(folder / f"{split}.npy", each, allow_pickle=False)
        write_json(folder / WINDOWS, asdict(windowing))
    return windowing


def _pieces(problem: SequenceProblem, begin: int, end: int, length: int, sequence: int) -> Iterator[tuple[int, ...]]:
    """The pieces of one sequence of so many steps; none where no step has an answer."""
    asked, rule = problem.source.asked, problem.window
    if not asked.each:
        yield max(begin, end - length), end - 1, end, sequence
        return
    # The last step of a shifted sequence has no next one.
    last = end - 1 if asked.shifted else end
    from_here = begin if rule.scored is None else max(begin, last - rule.scored)
    if rule.length is None:
        if from_here < last:
            yield begin, from_here, last, sequence
        return
    for first in range(begin, last, length):
        until = min(first + length, last)
        if until > from_here:
            yield max(begin, first - rule.context), max(first, from_here), until, sequence
