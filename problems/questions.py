"""Questions about small tables, generated: what the Neural Programmer was made for (lecture row A4).

An episode is a table, a question about it and the answer, one row each hour: the table's rows, the question's words,
the answer. An hour is missing between two episodes, so a window that spans no gap holds one episode: its inputs are the
table and the question, its target is the answer. Neelakantan, Le and Sutskever 2015, "Neural Programmer: Inducing
Latent Programs with Gradient Descent", section 3, which generates its questions likewise.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from problems.source import PLACE, Progress, Rows, Source

START = datetime(2000, 1, 1)
CHUNK_EPISODES = 1 << 14
WORDS = ("sum", "count", "where", "greater", "lesser", "and", "or")
"""And one word a column. `greater` and `lesser` come with a number."""
LENGTH = 7
"""Words of the longest question; shorter ones have empty steps before them."""

Kind = Literal["sum", "count", "sum where", "count and", "count or"]
Values = NDArray[np.float64]


class QuestionsSource(Source):
    """Columns: `column 1` and so on, `number`, `row` (1 in the table's rows), `word sum` and so on, `answer`."""

    synthetic: ClassVar[bool] = True

    kind: Literal["questions"]
    episodes: int = Field(ge=8, le=100_000_000)
    rows: int = Field(6, ge=1, le=1000, description="rows of each table")
    columns: int = Field(3, ge=1, le=100, description="columns of each table")
    kinds: tuple[Kind, ...] = Field(("sum", "count"), min_length=1, description="of questions")
    seed: int = Field(0, ge=0)

    def span(self) -> timedelta:
        """From the first row to the last."""
        return timedelta(hours=self.episodes * (self.rows + LENGTH + 2) - 2)

    def fetch(self, store: Path, progress: Progress, attempts: int) -> None:
        """Nothing: the episodes are made when they are read."""

    def read(self, store: Path, scratch: Path) -> Rows:
        """The episodes, written to `scratch` in chunks, so that memory does not grow with their number."""
        for number, chunk in enumerate(self._chunks()):
            chunk.write_parquet(scratch / f"{number:06d}.parquet", compression="lz4")
        frame = pl.scan_parquet(scratch / "*.parquet", row_index_name=PLACE, row_index_offset=1)
        return Rows(frame.with_columns(pl.format("generated row {}", PLACE).alias(PLACE)), time="time")

    def _chunks(self) -> Iterator[pl.DataFrame]:
        names = column_names(self.columns)
        for number, first in enumerate(range(0, self.episodes, CHUNK_EPISODES)):
            count = min(CHUNK_EPISODES, self.episodes - first)
            episodes_NLK = episodes(
                self.kinds, count, self.rows, self.columns, np.random.default_rng([self.seed, number])
            )
            length = episodes_NLK.shape[1]
            hours = (first + np.arange(count))[:, None] * (length + 1) + np.arange(length)
            time = np.datetime64(START, "ms") + hours.ravel() * np.timedelta64(1, "h")
            values = episodes_NLK.reshape(-1, len(names))
            yield pl.DataFrame({"time": time} | {name: values[:, i] for i, name in enumerate(names)})


def column_names(columns: int) -> list[str]:
    """The names of what is known at each step, in order."""
    words = [*WORDS, *(f"column {j + 1}" for j in range(columns))]
    return [
        *(f"column {j + 1}" for j in range(columns)),
        "number",
        "row",
        *(f"word {word}" for word in words),
        "answer",
    ]


def episodes(kinds: tuple[str, ...], count: int, rows: int, columns: int, random: np.random.Generator) -> Values:
    """Episodes (N, L, K): `rows` rows of a table, LENGTH words, the answer; each kind as often as the others.

    The table's values are uniform within 1 of zero, the numbers in questions within 0.5, all with two decimals. A
    number is never 0, which stands for none.
    """
    names = column_names(columns)
    index = {name: i for i, name in enumerate(names)}
    made = np.zeros((count, rows + LENGTH + 1, len(names)))
    table_NRC = random.uniform(-1, 1, (count, rows, columns)).round(2)
    made[:, :rows, :columns] = table_NRC
    made[:, :rows, index["row"]] = 1
    kind_N = random.integers(len(kinds), size=count)
    asked_N, first_N, second_N = random.integers(columns, size=(3, count))
    numbers_N2 = random.uniform(0.01, 0.5, (count, 2)).round(2) * random.choice([-1, 1], (count, 2))
    greater_N2 = random.random((count, 2)) < 0.5

    for n in range(count):
        kind, asked = kinds[kind_N[n]], int(asked_N[n])
        compared = [
            (int(column), bool(greater_N2[n, i]), float(numbers_N2[n, i]))
            for i, column in enumerate((first_N[n], second_N[n]))
        ]
        words, answer = _question(kind, asked, compared, table_NRC[n])
        for step, (word, number) in enumerate(words, rows + LENGTH - len(words)):
            made[n, step, index[f"word {word}"]] = 1
            made[n, step, index["number"]] = number
        made[n, -1, index["answer"]] = answer
    return made


Word = tuple[str, float]
"""A word, and the number that it carries, or 0."""


def _question(
    kind: str, asked: int, compared: list[tuple[int, bool, float]], table_RC: Values
) -> tuple[list[Word], float]:
    """The words of a question and its answer."""
    conditions: list[list[Word]] = []
    rows_hold = []
    for column, greater, number in compared:
        conditions.append([(f"column {column + 1}", 0.0), ("greater" if greater else "lesser", number)])
        rows_hold.append(table_RC[:, column] > number if greater else table_RC[:, column] < number)
    of_column, where = (f"column {asked + 1}", 0.0), ("where", 0.0)
    first, second = conditions
    if kind == "sum":
        return [("sum", 0.0), of_column], float(table_RC[:, asked].sum())
    if kind == "sum where":
        return [("sum", 0.0), of_column, where, *first], float(table_RC[rows_hold[0], asked].sum())
    if kind == "count":
        return [("count", 0.0), where, *first], float(rows_hold[0].sum())
    joint, hold = {"count and": ("and", rows_hold[0] & rows_hold[1]), "count or": ("or", rows_hold[0] | rows_hold[1])}[
        kind
    ]
    return [("count", 0.0), where, *first, (joint, 0.0), *second], float(hold.sum())
