"""TODO: what stages.sequences.encode is for."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from problems.errors import RecastError
from problems.problem import SequenceProblem
from problems.sequences import INPUTS, SPLIT, TARGET, Asked
from problems.source import PLACE
from problems.split import SPLITS, GivenSplit
from project.atomic import replaced_folder, write_json
from stages.sequences.reading import SEQUENCES, VOCABULARY, Encoded

CHARACTERS = 1 << 24
"""Of text, in memory at once; of numbers as many."""


PADDING, UNKNOWN = 0, 1
"""The codes before those of tokens."""


LINE_END = "<eos>"
"""What stands for the end of a line where tokens are what stands between spaces."""


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
