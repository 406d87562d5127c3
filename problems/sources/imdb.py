"""IMDB reviews, positive or negative (lecture rows P2 to P5).

Maas et al. 2011, "Learning Word Vectors for Sentiment Analysis": the Large Movie Review Dataset, 25,000 reviews for
training and as many for the test; its 50,000 reviews without a label are left out. The checksum of the archive is that
in tensorflow-datasets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

from pydantic import Field

from problems.errors import RecastError
from problems.files.archive import READ_ERRORS, read_tar_gz
from problems.files.public_files import GZIP_MAGIC, PublicFile, fetch_public_files, find_local_file
from problems.files.raw_store import list_stored_files, replace_with_links
from problems.files.sequence_chunks import write_chunks
from problems.files.tables import is_parquet, scan_table
from problems.lazy_modules import pl
from problems.sequences import INPUTS_COLUMN, SPLIT_COLUMN, TARGET_COLUMN, SequenceFormat, Sequences, SequenceSource
from problems.source import PLACE_COLUMN, DownloadProgress
from problems.split import SPLITS

MIRRORS = ("https://ai.stanford.edu/~amaas/data/sentiment/",)
ARCHIVE = PublicFile(
    "aclImdb_v1.tar.gz", "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe", GZIP_MAGIC
)
CHUNK_REVIEWS = 1 << 13
_LABEL, _TEXT = "label", "text"
_REVIEW = re.compile(r"aclImdb/((train|test)/(pos|neg)/[^/]+\.txt)")
_LABELS = {"neg": 0.0, "pos": 1.0}


class ImdbSource(SequenceSource):
    """Reviews as text; the data set has its own split, train and test."""

    kind: Literal["imdb"]
    path: str | None = Field(
        None,
        description="a .parquet file with the columns split (train, validation, test), label (0, 1) and text, or the "
        "archive aclImdb_v1.tar.gz; null: that archive is downloaded",
    )
    mirrors: tuple[str, ...] = Field(
        MIRRORS,
        min_length=1,
        description="addresses of folders to download the archive from, where there is no local file",
    )

    @property
    def format(self) -> SequenceFormat:
        """One answer at the end: whether the review is positive."""
        return SequenceFormat(objective="binary", is_text=True)

    def fetch(self, store: Path, progress: DownloadProgress, attempts: int) -> None:
        """Link the local file; without one keep the archive that is in the store, or download it.

        Raises:
            Unreachable: no mirror gives the archive.
            RecastError: there is no such local file, or the download has changed since it came.
        """
        if self.path is not None:
            replace_with_links(store, [find_local_file(store, self.path, (".parquet", ".tar.gz"))])
        else:
            fetch_public_files(store, [ARCHIVE], self.mirrors, progress, attempts)

    def read_sequences(self, store: Path, scratch: Path) -> Sequences:
        """Read the reviews in the order of the file; an archive is read without unpacking it.

        Raises:
            RecastError: the file is not what it should be, or a review is empty, or its label is not 0 or 1, or its
                split is unknown.
        """
        files = list_stored_files(store)
        if len(files) != 1:
            raise RecastError(f"{store}: {len(files)} files, not one; run the ingest stage again")
        if is_parquet(files[0]):
            return Sequences(_scan_parquet(files[0]))
        return Sequences(write_chunks(_read_archive(files[0]), scratch))


def _scan_parquet(file: Path) -> pl.LazyFrame:
    """Check and scan the reviews of a Parquet file."""
    frame = scan_table(file)
    schema = frame.collect_schema()
    if missing := [name for name in (SPLIT_COLUMN, _LABEL, _TEXT) if name not in schema]:
        raise RecastError(f"{file}: there is no column {', '.join(missing)}; it must have split, label and text")
    for name in (SPLIT_COLUMN, _TEXT):
        if schema[name] not in (pl.String, pl.Categorical, pl.Enum):
            raise RecastError(f"{file}: the column {name} holds {schema[name]}, not text")
    if not (schema[_LABEL].is_numeric() or schema[_LABEL] == pl.Boolean):
        raise RecastError(f"{file}: the column {_LABEL} holds {schema[_LABEL]}, not the numbers 0 and 1")
    frame = frame.select(
        pl.col(SPLIT_COLUMN).cast(pl.String),
        pl.col(_TEXT).cast(pl.String).alias(INPUTS_COLUMN),
        pl.col(_LABEL).cast(pl.Float32),
        PLACE_COLUMN,
    )
    faults = {
        "the review is empty": ~(pl.col(INPUTS_COLUMN).str.strip_chars() != "").fill_null(False),
        "its label is not 0 or 1": ~pl.col(_LABEL).is_in([0.0, 1.0]).fill_null(False),
        f"its split is not one of {', '.join(SPLITS)}": ~pl.col(SPLIT_COLUMN).is_in(SPLITS).fill_null(False),
    }
    fault = pl.coalesce(pl.when(has_fault).then(pl.lit(fault)) for fault, has_fault in faults.items())
    try:
        first = (
            frame.filter(pl.any_horizontal(*faults.values()))
            .select(PLACE_COLUMN, fault.alias("fault"))
            .head(1)
            .collect()
        )
    except pl.exceptions.PolarsError as error:
        raise RecastError(f"{file}: cannot be read to its end: {str(error).splitlines()[0]}") from error
    if first.height:
        place, message = first.row(0)
        raise RecastError(f"{place}: {message}; correct or leave out this row")
    return frame.select(SPLIT_COLUMN, INPUTS_COLUMN, pl.concat_list(_LABEL).alias(TARGET_COLUMN), PLACE_COLUMN)


def _read_archive(file: Path) -> Iterator[pl.DataFrame]:
    """Read the reviews of the archive, in chunks."""
    rows: list[tuple[str, str, list[float], str]] = []
    splits: set[str] = set()
    for name, content in read_tar_gz(file):
        if match := _REVIEW.fullmatch(name):
            review, split, kind = match.groups()
            place = f"{file}, {review}"
            rows.append((split, _read_text(content, place), [_LABELS[kind]], place))
            splits.add(split)
        if len(rows) == CHUNK_REVIEWS:
            yield _make_frame(rows)
            rows = []
    if missing := {"train", "test"} - splits:
        raise RecastError(f"{file}: no review was found under aclImdb/{min(missing)}; fetch the archive again")
    if rows:
        yield _make_frame(rows)


def _read_text(content: IO[bytes], place: str) -> str:
    try:
        text = content.read().decode()
    except READ_ERRORS as error:
        raise RecastError(f"{place}: cut short or broken ({error}); fetch the archive again") from error
    except UnicodeDecodeError as error:
        raise RecastError(f"{place}: not UTF-8 at byte {error.start}; fetch the archive again") from error
    if not text.strip():
        raise RecastError(f"{place}: the review is empty; fetch the archive again")
    return text


def _make_frame(rows: list[tuple[str, str, list[float], str]]) -> pl.DataFrame:
    text = pl.String()
    schema = pl.Schema(
        {SPLIT_COLUMN: text, INPUTS_COLUMN: text, TARGET_COLUMN: pl.List(pl.Float32()), PLACE_COLUMN: text}
    )
    return pl.DataFrame(rows, schema=schema, orient="row")
