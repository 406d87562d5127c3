"""IMDB reviews, positive or negative (lecture rows P2 to P5).

Maas et al. 2011, "Learning Word Vectors for Sentiment Analysis": the Large Movie Review Dataset, 25,000 reviews for
training and as many for the test; its 50,000 reviews without a label are left out. The checksum of the archive is the
one that tensorflow-datasets has.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

import polars as pl
from pydantic import Field

from problems.archive import BROKEN, tar_gz_files
from problems.chunks import scanned
from problems.errors import RecastError
from problems.public import GZIP, PublicFile, fetch_public, local_file
from problems.sequences import INPUTS, SPLIT, TARGET, Asked, Sequences, SequenceSource
from problems.source import PLACE, Progress
from problems.table import is_parquet, link_only, scan, stored

MIRRORS = ("https://ai.stanford.edu/~amaas/data/sentiment/",)
ARCHIVE = PublicFile("aclImdb_v1.tar.gz", "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe", GZIP)
CHUNK_REVIEWS = 1 << 13
_LABEL, _TEXT = "label", "text"
_REVIEW = re.compile(r"aclImdb/((train|test)/(pos|neg)/[^/]+\.txt)")
_LABELS = {"neg": 0.0, "pos": 1.0}
_SPLITS = ("train", "validation", "test")


class ImdbSource(SequenceSource):
    """Reviews as text; the split is the data set's own, train and test."""

    kind: Literal["imdb"]
    path: str | None = Field(
        None,
        description="a .parquet file with the columns split (train, validation, test), label (0, 1) and text, or the "
        "archive aclImdb_v1.tar.gz; null: that archive is downloaded",
    )
    mirrors: tuple[str, ...] = Field(MIRRORS, min_length=1, description="where to download it without a local file")

    @property
    def asked(self) -> Asked:
        """Whether the review is positive."""
        return Asked(objective="binary", text=True)

    def fetch(self, store: Path, progress: Progress, attempts: int) -> None:
        """Link the local file; without one keep the archive that is there, or download it.

        Raises:
            Unreachable: no mirror gives the archive.
            RecastError: there is no such local file, or the download has changed since it came.
        """
        if self.path is not None:
            link_only(store, [local_file(store, self.path, (".parquet", ".tar.gz"))])
        else:
            fetch_public(store, [ARCHIVE], self.mirrors, progress, attempts)

    def sequences(self, store: Path, scratch: Path) -> Sequences:
        """The reviews in the order of the file; those of the archive are read from it without unpacking it.

        Raises:
            RecastError: the file is not what it should be, or a review is empty, has another label than 0 or 1, or
                another split than those known.
        """
        found = stored(store)
        if len(found) != 1:
            raise RecastError(f"{store}: {len(found)} files, not one; run the ingest stage again")
        if is_parquet(found[0]):
            return Sequences(_table(found[0]))
        return Sequences(scanned(_archive(found[0]), scratch))


def _table(file: Path) -> pl.LazyFrame:
    """The reviews of a Parquet file."""
    frame = scan(file)
    schema = frame.collect_schema()
    if missing := [name for name in (SPLIT, _LABEL, _TEXT) if name not in schema]:
        raise RecastError(f"{file}: there is no column {', '.join(missing)}; it must have split, label and text")
    for name in (SPLIT, _TEXT):
        if schema[name] not in (pl.String, pl.Categorical, pl.Enum):
            raise RecastError(f"{file}: the column {name} holds {schema[name]}, not text")
    if not (schema[_LABEL].is_numeric() or schema[_LABEL] == pl.Boolean):
        raise RecastError(f"{file}: the column {_LABEL} holds {schema[_LABEL]}, not the numbers 0 and 1")
    frame = frame.select(
        pl.col(SPLIT).cast(pl.String),
        pl.col(_TEXT).cast(pl.String).alias(INPUTS),
        pl.col(_LABEL).cast(pl.Float32),
        PLACE,
    )
    wrong = {
        "the review is empty": ~(pl.col(INPUTS).str.strip_chars() != "").fill_null(False),
        "its label is not 0 or 1": ~pl.col(_LABEL).is_in([0.0, 1.0]).fill_null(False),
        f"its split is none of {', '.join(_SPLITS)}": ~pl.col(SPLIT).is_in(_SPLITS).fill_null(False),
    }
    why = pl.coalesce(pl.when(is_so).then(pl.lit(said)) for said, is_so in wrong.items())
    try:
        first = frame.filter(pl.any_horizontal(*wrong.values())).select(PLACE, why.alias("why")).head(1).collect()
    except pl.exceptions.PolarsError as error:
        raise RecastError(f"{file}: cannot be read to its end: {str(error).splitlines()[0]}") from error
    if first.height:
        place, said = first.row(0)
        raise RecastError(f"{place}: {said}; mend or leave out this row")
    return frame.select(SPLIT, INPUTS, pl.concat_list(_LABEL).alias(TARGET), PLACE)


def _archive(file: Path) -> Iterator[pl.DataFrame]:
    """The reviews of the archive, in chunks."""
    rows: list[tuple[str, str, list[float], str]] = []
    seen: set[str] = set()
    for name, content in tar_gz_files(file):
        if named := _REVIEW.fullmatch(name):
            review, split, kind = named.groups()
            place = f"{file}, {review}"
            rows.append((split, _text(content, place), [_LABELS[kind]], place))
            seen.add(split)
        if len(rows) == CHUNK_REVIEWS:
            yield _frame(rows)
            rows = []
    if missing := {"train", "test"} - seen:
        raise RecastError(f"{file}: no review was found under aclImdb/{min(missing)}; fetch the archive anew")
    if rows:
        yield _frame(rows)


def _text(content: IO[bytes], place: str) -> str:
    try:
        text = content.read().decode()
    except BROKEN as error:
        raise RecastError(f"{place}: cut short or broken ({error}); fetch the archive anew") from error
    except UnicodeDecodeError as error:
        raise RecastError(f"{place}: not UTF-8 at byte {error.start}; fetch the archive anew") from error
    if not text.strip():
        raise RecastError(f"{place}: the review is empty; fetch the archive anew")
    return text


def _frame(rows: list[tuple[str, str, list[float], str]]) -> pl.DataFrame:
    text = pl.String()
    schema = pl.Schema({SPLIT: text, INPUTS: text, TARGET: pl.List(pl.Float32()), PLACE: text})
    return pl.DataFrame(rows, schema=schema, orient="row")
