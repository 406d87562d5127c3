"""How a CSV file is written: its encoding, its separator, the line of its header."""

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from charset_normalizer import from_bytes

from problems.errors import RecastError
from problems.files.tables import explain_gzip_errors, open_unpacked
from problems.wording import shorten

SAMPLE_BYTES = 1 << 20

SEPARATORS = (",", ";", "\t", "|")

COMMENT = "#"
"""The beginning of lines that are not rows, such as the units below a header."""

HEADER_LINES = 50
"""The lines among which the header is looked for."""

MOST_LINES = 0.8
"""The share of the lines that must have equally many columns for spaces to be the separator."""

DATE_PATTERN = re.compile(r"[0-9]{1,4}[-./][0-9]{1,2}[-./][0-9]{1,4}")


def detect_layout(file: Path, questions: list[str]) -> dict[str, Any]:
    """How a CSV file is written, as settings of its source; defaults are left out.

    Args:
        questions: what could not be decided for certain is added to them.

    Raises:
        RecastError: the file is empty, is not text, or is not a table with a header.
    """
    with open_unpacked(file) as content, explain_gzip_errors(file):
        head = content.read(SAMPLE_BYTES)
    if not head.strip():
        raise RecastError(f"{file}: the file is empty")
    if head.startswith(b"PK\x03\x04"):
        raise RecastError(f"{file}: a spreadsheet or a zip archive, not text; save the table as CSV")
    encoding = _detect_encoding(head)
    text = codecs.getincrementaldecoder(encoding)("replace").decode(head)
    if "\r" in text and "\n" not in text:
        raise RecastError(f"{file}: its lines end with a carriage return alone; save it with line feeds")
    # The last line of a sample may be incomplete.
    lines = text.splitlines()[: -1 if len(head) == SAMPLE_BYTES else None]
    if not lines:
        raise RecastError(
            f"{file}: its first line has more than {SAMPLE_BYTES:,} bytes; a table has a header, and a row on each line"
        )
    if not any(line.strip() for line in lines):
        raise RecastError(f"{file}: its first {len(lines):,} lines are empty; a table begins with a header")
    separator, width = _detect_separator(file, lines)
    header = _find_header(file, lines, separator, width)
    if encoding not in ("utf-8", "utf-8-sig") and not text.isascii():
        words = [word for line in lines for word in re.split(rf"[{separator}\s]+", line) if not word.isascii()]
        examples = ", ".join(dict.fromkeys(words[:5]))
        questions.append(f"Is {encoding} the right encoding? It reads words such as {examples} (source.encoding)")
    layout: dict[str, Any] = {}
    if separator != ",":
        layout["separator"] = separator
    if encoding != "utf-8":
        layout["encoding"] = encoding
    if header:
        layout["skip_lines"] = header
    below_header = lines[header + 1 :]
    if 0 < sum(line.startswith(COMMENT) for line in below_header) < len(below_header) / 2:
        layout["comment"] = COMMENT
    return layout


def _find_header(file: Path, lines: Sequence[str], separator: str, width: int) -> int:
    """The index of the line that names the columns.

    Raises:
        RecastError: there is no such line.
    """
    all_wide = (i for i, line in enumerate(lines) if len(_split_cells(line, separator)) == width)
    wide = [*islice(all_wide, HEADER_LINES)]
    first = wide[0]
    if _is_header(_split_cells(lines[first], separator)):
        return first
    # A spreadsheet writes as many cells in the lines above the header as in the header.
    for i in wide:
        cells = _split_cells(lines[i], separator)
        if _is_header(cells) and not any(map(_begins_like_number, cells)):
            return i
    header = shorten(", ".join(_split_cells(lines[first], separator)))
    hint = f"; line {first} has fewer cells than most lines, which have {width}" if first else ""
    raise RecastError(
        f"{file}, line {first + 1}: not a header, which names every column once: {header}; add or fix the header{hint}"
    )


def _detect_encoding(head: bytes) -> str:
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if head.startswith(mark):
            return name
    for name, high_bytes in (("utf-16-be", head[::2]), ("utf-16-le", head[1::2])):
        if high_bytes.count(0) > len(high_bytes) / 2:
            return name
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        # Letters of Western Europe are by far the most frequent, and too few of them are left for a guess.
        try:
            western = head.decode("cp1252")
            if sum(not character.isascii() for character in western) < 0.05 * len(western):
                return "cp1252"
        except UnicodeDecodeError:
            pass
        best = from_bytes(head).best()
        return codecs.lookup(best.encoding).name if best else "latin-1"
    return "utf-8"


def _detect_separator(file: Path, lines: Sequence[str]) -> tuple[str, int]:
    """The separator between columns, and the number of columns that most lines have with it.

    Raises:
        RecastError: there is only one column, whatever the separator.
    """
    best = (0.0, 0, "")
    for separator in SEPARATORS:
        counts = Counter(len(_split_cells(line, separator)) for line in lines if line.strip())
        width, frequency = counts.most_common(1)[0]
        if width > 1:
            best = max(best, (frequency / counts.total(), width, separator))
    share, width, separator = best
    if not share:
        counts = Counter(len(_split_cells(line, " ")) for line in lines if line.strip())
        width, frequency = counts.most_common(1)[0]
        if width > 1 and frequency > MOST_LINES * counts.total():
            return " ", width
        raise RecastError(
            f"{file}: no columns: none of the separators , ; tab | and space is in most lines, such as "
            f"{shorten(lines[0])!r}"
        )
    return separator, width


def _split_cells(line: str, separator: str) -> list[str]:
    if separator == " ":
        line = " ".join(line.split())
    try:
        cells = next(csv.reader(io.StringIO(line), delimiter=separator), [])
    except csv.Error:
        # Of more than 128 KiB, which no name, time or number has: the separator is not in this line.
        cells = [line]
    return [cell.strip() for cell in cells]


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[-+]?[0-9]*[.,]?[0-9]+([eE][-+]?[0-9]+)?", cell) is not None


def _is_header(cells: Sequence[str]) -> bool:
    """Whether the cells may be names of columns: all different, not all numbers, and none of them a date."""
    return (
        len(set(cells)) == len(cells)
        and not all(_is_number(cell) or not cell for cell in cells)
        and not any(DATE_PATTERN.match(cell) for cell in cells)
    )


def _begins_like_number(cell: str) -> bool:
    return re.match(r"[-+.]?[0-9]", cell) is not None
