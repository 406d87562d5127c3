"""Columns of text in a sample of rows, and numbers with commas in them."""

from collections.abc import Iterator

import polars as pl

GROUPED_NUMBER = r"^[-+]?[1-9][0-9]{0,2}([., '\x{a0}\x{202f}][0-9]{3})+([.,][0-9]+)?$"
"""A number with separators between its thousands."""


def list_text_columns(sample: pl.DataFrame) -> Iterator[tuple[str, pl.Series]]:
    """The columns of text, each with its cells that are not empty."""
    for name in sample.columns:
        if sample[name].dtype == pl.String:
            cells = sample[name].str.strip_chars()
            yield name, cells.filter(cells != "")


def has_decimal_commas(sample: pl.DataFrame, separator: str, questions: list[str]) -> bool:
    """Whether numbers are written with a comma before their decimals; where that is unsure, `questions` gets one."""

    def find_cells(pattern: str, mark: str) -> list[pl.Series]:
        """The cells that contain the mark, of every column that often fits the pattern."""
        fitting = [
            cells for _, cells in list_text_columns(sample) if cells.str.contains(pattern).sum() > 0.3 * len(cells)
        ]
        return [cells.filter(cells.str.contains(mark, literal=True)) for cells in fitting]

    commas, points = find_cells(r"^[-+]?[0-9]+,[0-9]+$", ","), find_cells(r"^[-+]?[0-9]*\.[0-9]+$", ".")
    if not commas or not all(cells.str.contains(GROUPED_NUMBER).all() for cells in points):
        return False
    if all(cells.str.contains(GROUPED_NUMBER).all() for cells in commas):
        # Where the comma separates the columns, it is not the decimal mark too.
        if separator == ",":
            return False
        questions.append(f"Is the comma in {commas[0][0]} a decimal comma? (source.decimal)")
    return True
