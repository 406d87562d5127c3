"""Long texts in blocks of about a megabyte, so that memory does not grow with a text."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO

from problems.errors import RecastError
from problems.files.archive import READ_ERRORS
from problems.lazy_modules import pl
from problems.sequences import INPUTS_COLUMN, SPLIT_COLUMN
from problems.source import PLACE_COLUMN

BLOCK_BYTES = 1 << 20
"""About how many bytes of text a row of the frame has."""

CHUNK_BLOCKS = 16
"""How many blocks are in memory at once."""


@dataclass(frozen=True)
class Text:
    """A part of a corpus, which must be read before the next part is asked for.

    Attributes:
        split: the split that it belongs to; None where the corpus has no split of its own.
        name: what messages call it.
        content: its bytes, in pieces.
        may_be_empty: it is not an error if the text is empty.
    """

    split: str | None
    name: str
    content: Iterable[bytes]
    may_be_empty: bool = False


def make_text(
    split: str | None, name: str, content: IO[bytes], size: int | None = None, may_be_empty: bool = False
) -> Text:
    """Make a text of what is left of `content`, or of its next `size` bytes."""
    return Text(split, name, _read_pieces(content, name, size), may_be_empty)


def _read_pieces(content: IO[bytes], name: str, size: int | None) -> Iterator[bytes]:
    """Read the bytes that are left, or the next `size` of them, in pieces.

    Raises:
        RecastError: the bytes cannot be read, or there are fewer than `size`.
    """
    received = 0
    try:
        while piece := content.read(BLOCK_BYTES if size is None else min(BLOCK_BYTES, size - received)):
            received += len(piece)
            yield piece
    except READ_ERRORS as error:
        raise RecastError(f"{name}: cut short or broken ({error}); delete the file and fetch it again") from error
    if size is not None and received < size:
        raise RecastError(f"{name}: {received:,} of {size:,} characters; delete the file and fetch it again")


def read_blocks(texts: Iterable[Text]) -> Iterator[pl.DataFrame]:
    """Read the blocks of all texts, `CHUNK_BLOCKS` at once, as frames like `Sequences.frame`."""
    schema = pl.Schema({SPLIT_COLUMN: pl.String, INPUTS_COLUMN: pl.String, PLACE_COLUMN: pl.String})
    rows: list[tuple[str | None, str, str]] = []
    for text in texts:
        character = 1
        for block in split_into_blocks(text.content, text.name):
            rows.append((text.split, block, f"{text.name}, from character {character:,}"))
            character += len(block)
            if len(rows) == CHUNK_BLOCKS:
                yield pl.DataFrame(rows, schema=schema, orient="row")
                rows = []
        if character == 1 and not text.may_be_empty:
            raise RecastError(f"{text.name}: the file is empty; name one with text in it")
    if rows:
        yield pl.DataFrame(rows, schema=schema, orient="row")


def split_into_blocks(content: Iterable[bytes], name: str) -> Iterator[str]:
    """Split a text into blocks that end before whitespace; no block consists of whitespace alone.

    Args:
        name: what messages call the text.

    Raises:
        RecastError: the bytes are not UTF-8; the message says at which byte.
    """
    block = ""
    for piece in _cut_before_whitespace(_decode(content, name)):
        # A piece of whitespace alone is added to the block before it.
        if block.strip() and piece.strip():
            yield block
            block = piece
        else:
            block += piece
    if block.strip():
        yield block


def _cut_before_whitespace(texts: Iterable[str]) -> Iterator[str]:
    """Cut each piece of a text before its last whitespace, and add what follows to the next piece."""
    rest = ""
    for text in filter(None, texts):
        cut = max(rest.rfind(" "), rest.rfind("\n"), rest.rfind("\t"))
        if cut <= 0 and len(rest) >= BLOCK_BYTES:
            cut = len(rest)
        if cut > 0:
            yield rest[:cut]
            rest = rest[cut:]
        rest += text
    yield rest


def _decode(content: Iterable[bytes], name: str) -> Iterator[str]:
    """Decode UTF-8 bytes into text whose lines all end in a line feed."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
    received = 0
    try:
        for piece in content:
            received += len(piece)
            yield decoder.decode(piece)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        # What the decoder had to decode ends where the bytes end that have been read.
        offset = received - len(error.object) + error.start
        raise RecastError(f"{name}: not UTF-8 at byte {offset}; save it as UTF-8") from error
