"""Stage ingest for whole sequences: the source's sequences in one file, checked, with a report on their quality."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

from learning.answers import ANSWER_KINDS
from problems.errors import RecastError
from problems.problem import SequenceProblem
from problems.sequences import INPUTS_COLUMN, SPLIT_COLUMN, TARGET_COLUMN, SequenceFormat
from problems.source import PLACE_COLUMN
from project.atomic import replace_folder, write_json
from stages.sequences.reading import SEQUENCES_FILE

LISTED_CLASSES = 1000
"""Classes whose answers the report counts, at most."""


@dataclass(frozen=True)
class SequenceQuality:
    """What was read; the same sequences give the same report.

    Attributes:
        synthetic: the sequences are simulated.
        files: sha256 of each raw file, by its name in the store.
        sequences: number of sequences by the source's split; under `all` where the source has no split.
        length: of the shortest sequence, the mean, and of the longest, in the unit `counted`.
        counted: characters for text, otherwise steps.
        answers: number of answers by class, where a sequence has one answer and it is a class.
    """

    synthetic: bool
    files: dict[str, str]
    sequences: dict[str, int]
    length: tuple[int, float, int]
    counted: str
    answers: dict[str, int]

    @property
    def described(self) -> str:
        """A description for people: how many sequences there are, and how long they are."""
        number, (shortest, mean, longest) = sum(self.sequences.values()), self.length
        lengths = f"{longest:,} {self.counted}"
        if shortest < longest:
            lengths = f"{shortest:,} to {lengths}, {mean:,.4g} on average"
        simulated = "simulated " if self.synthetic else ""
        return f"{number:,} {simulated}{'sequence' if number == 1 else 'sequences'} of {lengths}"


def ingest_sequences(problem: SequenceProblem, store: Path, out: Path, files: dict[str, str]) -> SequenceQuality:
    """Read the raw files in `store` into `out`: `sequences.parquet` and `quality.json`, both or neither.

    Args:
        files: sha256 of each raw file, by its name in the store.

    Raises:
        RecastError: a sequence is not what the source says it is; the message names its place.
    """
    sequence_format = problem.source.format
    with replace_folder(out) as folder:
        scratch = folder / "scratch"
        scratch.mkdir()
        sequences = problem.source.read_sequences(store, scratch).frame
        columns = [SPLIT_COLUMN, INPUTS_COLUMN, *([] if sequence_format.is_shifted else [TARGET_COLUMN]), PLACE_COLUMN]
        sequences.select(columns).sink_parquet(folder / SEQUENCES_FILE, row_group_size=1 << 8)
        for file in sorted(scratch.glob("*")):
            file.unlink()
        scratch.rmdir()
        frame = pl.scan_parquet(folder / SEQUENCES_FILE)
        for is_wrong, fault in _list_faults(sequence_format):
            places = frame.filter(is_wrong).select(PLACE_COLUMN).head(1).collect()
            if places.height:
                raise RecastError(f"{places.item()}: {fault}; fix or leave out this sequence")
        length = (
            pl.col(INPUTS_COLUMN).str.len_chars()
            if sequence_format.is_text
            else pl.col(INPUTS_COLUMN).list.len() // sequence_format.features
        )
        shortest, mean, longest = (
            frame.select(length.min().alias("least"), length.mean().alias("mean"), length.max().alias("most"))
            .collect(engine="streaming")
            .row(0)
        )
        if shortest is None:
            raise RecastError(f"{store}: there is no sequence in this folder; run the ingest stage again")
        by_split = (
            frame.group_by(pl.col(SPLIT_COLUMN).fill_null("all")).len().collect(engine="streaming").sort(SPLIT_COLUMN)
        )
        quality = SequenceQuality(
            synthetic=problem.source.synthetic,
            files=files,
            sequences=dict(by_split.iter_rows()),
            length=(shortest, float(f"{mean:.6g}"), longest),
            counted="characters" if sequence_format.is_text else "steps",
            answers=_count_answers(frame, sequence_format),
        )
        write_json(folder / "quality.json", asdict(quality))
    return quality


def _list_faults(sequence_format: SequenceFormat) -> Iterator[tuple[pl.Expr, str]]:
    """Everything that can be wrong with a sequence, as a test for it and as a message."""
    yield pl.col(INPUTS_COLUMN).is_null(), "the sequence is missing"
    if sequence_format.is_text:
        yield pl.col(INPUTS_COLUMN).str.strip_chars() == "", "the text is empty"
    else:
        size = pl.col(INPUTS_COLUMN).list.len()
        yield (
            (size == 0) | (size % sequence_format.features != 0),
            f"the number of its values is not a multiple of {sequence_format.features}, the values of a step",
        )
        are_finite = pl.col(INPUTS_COLUMN).list.eval(pl.element().is_finite().fill_null(False)).list.all()
        yield ~are_finite, "one of its numbers is missing or infinite"
        if sequence_format.codes is not None:
            codes = pl.col(INPUTS_COLUMN).list
            yield (
                (codes.min() < 0) | (codes.max() >= sequence_format.codes),
                f"a code is not a number from 0 to {sequence_format.codes - 1}",
            )
        if sequence_format.per_step:
            yield size < (1 + sequence_format.is_shifted) * sequence_format.features, "it has no step with an answer"
    if sequence_format.is_shifted:
        return
    target, answers = pl.col(TARGET_COLUMN).list, sequence_format.answers or 1
    answer_kind = ANSWER_KINDS[sequence_format.objective]
    width = answer_kind.count_target_values(answers)
    if sequence_format.per_step:
        steps = pl.col(INPUTS_COLUMN).list.len() // sequence_format.features
        yield target.len() != steps * width, "it does not have one answer per step"
    else:
        yield target.len() != width, "it does not have exactly one answer"
    yield ~pl.col(TARGET_COLUMN).list.eval(pl.element().is_finite().fill_null(False)).list.all(), "an answer is missing"
    largest = answer_kind.largest_target(answers)
    if largest is not None:
        are_whole = pl.col(TARGET_COLUMN).list.eval(pl.element() == pl.element().round()).list.all()
        is_wrong = ~are_whole | (target.min() < 0) | (target.max() > largest)
        yield is_wrong, f"an answer is not a whole number from 0 to {largest}"


def _count_answers(frame: pl.LazyFrame, sequence_format: SequenceFormat) -> dict[str, int]:
    """The number of answers by class; empty where answers are not classes, or where every step has an answer."""
    if sequence_format.per_step or not ANSWER_KINDS[sequence_format.objective].has_classes:
        return {}
    counts = (
        frame.select(pl.col(TARGET_COLUMN).list.first().cast(pl.Int64))
        .group_by(TARGET_COLUMN)
        .len()
        .sort(TARGET_COLUMN)
    )
    return {str(name): count for name, count in counts.head(LISTED_CLASSES).collect(engine="streaming").iter_rows()}
