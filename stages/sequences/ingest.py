"""TODO: what stages.sequences.ingest is for."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

from problems.errors import RecastError
from problems.problem import SequenceProblem
from problems.sequences import INPUTS, SPLIT, TARGET, Asked
from problems.source import PLACE
from project.atomic import replaced_folder, write_json
from stages.sequences.reading import SEQUENCES

LISTED_CLASSES = 1000


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
