"""Stage normalize for whole sequences: tokens become codes, numbers stay as they are, all steps in one array."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from learning.answers import ANSWER_KINDS
from problems.errors import RecastError
from problems.problem import SequenceProblem
from problems.sequences import INPUTS_COLUMN, SPLIT_COLUMN, TARGET_COLUMN, SequenceFormat
from problems.source import PLACE_COLUMN
from problems.split import SPLITS, GivenSplit
from project.atomic import replace_folder, write_json
from stages.array_files import open_array
from stages.sequences.reading import DESCRIPTION_FILE, SEQUENCES_FILE, VOCABULARY_FILE, EncodedSequences

BATCH_SIZE = 1 << 24
"""Characters of text, or numbers, that are held in memory at once."""

SPECIAL_TOKENS = ("<padding>", "<unknown>")
"""The tokens with the first codes; codes of the vocabulary's tokens follow."""

UNKNOWN_CODE = SPECIAL_TOKENS.index("<unknown>")

LINE_END = "<eos>"
"""The token for the end of a line, where spaces separate tokens."""

_PUNCTUATION = r"""[!"#$%&()*+,\-./:;<=>?@\[\\\]^_`{|}~\t\n\r]"""
"""The characters that Keras's tokeniser replaces by a space."""


def encode_sequences(problem: SequenceProblem, ingested: Path, out: Path) -> EncodedSequences:
    """Write the steps, the targets and the bounds of all sequences into the folder `out`, split after split.

    Tokens of a text become codes by a vocabulary of the training split alone. Numbers stay as they are.

    Args:
        out: a folder whose last part is the problem's name, which messages mention.

    Raises:
        RecastError: a split has no sequence, or a text has no token.
    """
    sequence_format = problem.source.format
    frame = pl.scan_parquet(ingested / SEQUENCES_FILE)
    parts = _split_sequences(problem, frame, out.name)
    tokens = problem.table.tokens
    vocabulary: list[str] = []
    if tokens:
        training = [part for part in parts if part.split == 0]
        vocabulary = _build_vocabulary(tokens, problem.table.vocabulary, frame, training)
    codes = len(vocabulary) if tokens else sequence_format.codes
    digest = hashlib.sha256(json.dumps(vocabulary).encode())
    seen, unknown = [0] * len(SPLITS), [0] * len(SPLITS)
    with replace_folder(out) as folder:
        lengths: list[tuple[int, int]] = []
        with (folder / "steps.raw").open("wb") as steps, (folder / "targets.raw").open("wb") as targets:
            for split, rows in _read_batches(frame, parts):
                if tokens:
                    values, sizes = _encode_texts(rows, tokens, vocabulary, out.name)
                    unknown[split] += int((values == UNKNOWN_CODE).sum())
                    seen[split] += values.size
                else:
                    values, sizes = _flatten_numbers(rows[INPUTS_COLUMN], sequence_format)
                lengths += [(split, size) for size in sizes]
                steps.write(values.tobytes())
                digest.update(values.tobytes())
                if not sequence_format.is_shifted:
                    answers = rows[TARGET_COLUMN].explode().to_numpy().astype(np.float32)
                    targets.write(answers.tobytes())
                    digest.update(answers.tobytes())
        dtype, features = (np.int32, 1) if codes is not None else (np.float32, sequence_format.features)
        _write_array(folder / "steps.raw", folder / "steps.npy", dtype, features)
        width = ANSWER_KINDS[sequence_format.objective].count_target_values(sequence_format.answers or 1)
        if not sequence_format.is_shifted:
            _write_array(folder / "targets.raw", folder / "targets.npy", np.float32, width)
        (folder / "targets.raw").unlink(missing_ok=True)
        bounds_Q3 = _compute_bounds(lengths, sequence_format.is_stream)
        digest.update(bounds_Q3.tobytes())
        np.save(folder / "sequences.npy", bounds_Q3, allow_pickle=False)
        write_json(folder / VOCABULARY_FILE, vocabulary)
        about = EncodedSequences(
            features=features,
            codes=codes,
            answers=codes if sequence_format.answers is None and codes is not None else sequence_format.answers or 1,
            sequences={name: int((bounds_Q3[:, 2] == i).sum()) for i, name in enumerate(SPLITS)},
            unknown={name: unknown[i] / seen[i] for i, name in enumerate(SPLITS) if seen[i]},
            synthetic=problem.source.synthetic,
            sha256=digest.hexdigest(),
        )
        write_json(folder / DESCRIPTION_FILE, asdict(about))
    return about


@dataclass(frozen=True)
class _Part:
    """A sequence or, where a text is cut, some of its characters; and the split that it belongs to.

    Attributes:
        row: the row of the ingested sequences.
        split: an index of `SPLITS`.
        begin, end: the range of characters, or of the list's values.
    """

    row: int
    split: int
    begin: int
    end: int


def _split_sequences(problem: SequenceProblem, frame: pl.LazyFrame, name: str) -> list[_Part]:
    """The sequences in the order of their splits, and within a split in the source's order.

    Raises:
        RecastError: the source has no split and none is declared, or a split is empty.
    """
    sequence_format, rule = problem.source.format, problem.split
    length = pl.col(INPUTS_COLUMN).str.len_chars() if sequence_format.is_text else pl.col(INPUTS_COLUMN).list.len()
    rows = frame.select(SPLIT_COLUMN, length.alias("length")).collect(engine="streaming")
    sizes = rows["length"].to_list()
    given = [None if split is None else SPLITS.index(split) for split in rows[SPLIT_COLUMN]]
    setting = f"problems.{name}.split"
    parts: list[_Part] = []
    if isinstance(rule, GivenSplit):
        if None in given:
            raise RecastError(f"{setting}: the source has no split of its own; write {{train: 0.8, validation: 0.1}}")
        splits = [split for split in given if split is not None]
        if 1 not in splits and rule.validation is not None:
            training = np.flatnonzero(np.array(splits) == 0)
            drawn = np.random.default_rng(0).permutation(training)[: round(len(training) * rule.validation)]
            for row in drawn.tolist():
                splits[row] = 1
        parts = [_Part(row, split, 0, size) for row, (split, size) in enumerate(zip(splits, sizes, strict=True))]
    elif sequence_format.is_stream:
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
        splits = np.searchsorted(cuts, np.arange(len(sizes)), side="right").tolist()
        parts = [_Part(row, split, 0, size) for row, (split, size) in enumerate(zip(splits, sizes, strict=True))]
    for split, split_name in enumerate(SPLITS):
        if not any(part.split == split for part in parts):
            hint = "; {kind: given, validation: 0.2} takes a share of the training sequences" if split == 1 else ""
            raise RecastError(f"{setting}: no sequence is left for {split_name}{hint}")
    return sorted(parts, key=lambda part: part.split)


def _read_batches(frame: pl.LazyFrame, parts: list[_Part]) -> Iterator[tuple[int, pl.DataFrame]]:
    """The parts in their order, as many at a time as fit in memory, with the split that all of them belong to."""
    begin = 0
    while begin < len(parts):
        end, size = begin, 0
        while end < len(parts) and parts[end].split == parts[begin].split and (size < BATCH_SIZE or end == begin):
            size += parts[end].end - parts[end].begin
            end += 1
        batch = parts[begin:end]
        first, last = min(part.row for part in batch), max(part.row for part in batch)
        rows = frame.slice(first, last - first + 1).collect()[[part.row - first for part in batch]]
        if rows.schema[INPUTS_COLUMN] == pl.String:
            ranges = {"begin": [part.begin for part in batch], "length": [part.end - part.begin for part in batch]}
            characters = pl.col(INPUTS_COLUMN).str.slice(pl.col("begin"), pl.col("length"))
            rows = rows.with_columns(pl.DataFrame(ranges)).with_columns(characters)
        yield parts[begin].split, rows
        begin = end


def _tokenize(tokens: str) -> pl.Expr:
    """The list of tokens of each text; `tokens` is what they are in the problem's settings."""
    text = pl.col(INPUTS_COLUMN)
    if tokens == "characters":
        return text.str.split("")
    if tokens == "words":
        text = text.str.to_lowercase().str.replace_all(_PUNCTUATION, " ")
    else:
        text = text.str.replace_all("\n", f" {LINE_END} ", literal=True)
    return text.str.extract_all(r"\S+")


def _build_vocabulary(tokens: str, size: int | None, frame: pl.LazyFrame, training: list[_Part]) -> list[str]:
    """The tokens of the training split by code: the most frequent first, and in alphabetical order of equal frequency.

    Args:
        size: of the vocabulary, special tokens included; None: every token.
    """
    counts: Counter[str] = Counter()
    for _, rows in _read_batches(frame, training):
        texts = rows.select(_tokenize(tokens).explode().alias("token")).drop_nulls()
        counts.update(dict(texts.group_by("token").len().iter_rows()))
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    limit = None if size is None else size - len(SPECIAL_TOKENS)
    return [*SPECIAL_TOKENS, *ranked[:limit]]


def _encode_texts(
    rows: pl.DataFrame, tokens: str, vocabulary: list[str], name: str
) -> tuple[NDArray[np.int32], list[int]]:
    """The codes of texts, one text after the other, and the number of codes of each.

    Raises:
        RecastError: a text has no token.
    """
    lists = rows.select(PLACE_COLUMN, _tokenize(tokens).alias("tokens"))
    sizes = lists["tokens"].list.len()
    if (sizes == 0).any():
        place = lists.filter(sizes == 0)[PLACE_COLUMN][0]
        raise RecastError(f"{place}: the text has no token; fix it, or change problems.{name}.table.tokens")
    first = len(SPECIAL_TOKENS)
    known = pl.Series(vocabulary[first:], dtype=pl.String)
    codes = pl.Series(np.arange(first, len(vocabulary), dtype=np.int32))
    flat = lists["tokens"].explode().replace_strict(known, codes, default=UNKNOWN_CODE, return_dtype=pl.Int32)
    return flat.to_numpy(), sizes.to_list()


def _flatten_numbers(inputs: pl.Series, sequence_format: SequenceFormat) -> tuple[NDArray[Any], list[int]]:
    """The numbers or codes of sequences, one sequence after the other, and the number of steps of each."""
    flat = inputs.explode().to_numpy().astype(np.float32 if sequence_format.codes is None else np.int32)
    return flat, (inputs.list.len() // sequence_format.features).to_list()


def _write_array(raw: Path, file: Path, dtype: type[Any], columns: int) -> None:
    """Turn a file of bare numbers into one that NumPy can map into memory, with a fixed amount of memory.

    It is not written through such a map: on a full disk, that would kill the process instead of raising an error.
    """
    rows = raw.stat().st_size // (np.dtype(dtype).itemsize * columns)
    with raw.open("rb") as numbers, open_array(file, dtype, (rows, columns)) as array:
        shutil.copyfileobj(numbers, array)
    raw.unlink()


def _compute_bounds(lengths: list[tuple[int, int]], is_stream: bool) -> NDArray[np.int64]:
    """The bounds of the sequences, (Q, 3): first step, step after the last, and split; a stream has one per split.

    Args:
        lengths: split and length of each sequence, in order.
    """
    splits, sizes = (np.array(column, dtype=np.int64) for column in zip(*lengths, strict=True))
    if is_stream:
        sizes = np.bincount(splits, weights=sizes, minlength=len(SPLITS)).astype(np.int64)
        splits = np.arange(len(SPLITS))
    ends = np.cumsum(sizes)
    return np.stack([ends - sizes, ends, splits], axis=1)
