"""Generated questions about small tables: the task that the Neural Programmer was made for (lecture row A4).

An episode is a table, a question about it and the answer. It has a row for each hour: the rows of the table, the words
of the question, the answer. An hour is missing between two episodes, so that a window without a gap holds one episode:
its inputs are the table and the question, its target is the answer. Neelakantan, Le and Sutskever 2015, "Neural
Programmer: Inducing Latent Programs with Gradient Descent", section 3, generates questions in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from pydantic import Field, model_validator

from problems.lazy_modules import np, pl
from problems.source import PLACE_COLUMN, DownloadProgress, Rows, Source

if TYPE_CHECKING:
    from numpy.typing import NDArray

START = datetime(2000, 1, 1)
CHUNK_EPISODES = 1 << 14
QUESTION_WORDS = ("sum", "count", "where", "greater", "lesser", "and", "or")
"""The words of questions, to which each column adds one. `greater` and `lesser` come with a number."""
QUESTION_LENGTH = 7
"""The number of words of the longest question; shorter questions have empty steps before them."""

QuestionKind = Literal["sum", "count", "sum where", "count and", "count or"]
Floats: TypeAlias = "NDArray[np.float64]"
Word = tuple[str, float]
"""A word, and the number that comes with it, or 0."""


class QuestionsSource(Source):
    """Columns: `column 1` and so on, `number`, `row` (1 in the table's rows), `word sum` and so on, `answer`."""

    synthetic: ClassVar[bool] = True

    kind: Literal["questions"]
    episodes: int = Field(ge=8, le=100_000_000, description="number of questions")
    rows: int = Field(6, ge=1, le=1000, description="number of rows of each table")
    columns: int = Field(3, ge=1, le=100, description="number of columns of each table")
    kinds: tuple[QuestionKind, ...] = Field(
        ("sum", "count"), min_length=1, description="the kinds of questions, each as frequent as the others"
    )
    seed: int = Field(0, ge=0, description="of the random numbers")

    @model_validator(mode="after")
    def _check_length(self) -> QuestionsSource:
        try:
            START + self.longest_span
        except OverflowError:
            raise ValueError("episodes times rows is too large: the last row would be after the year 9999") from None
        return self

    @property
    def longest_span(self) -> timedelta:
        """The time from the first row to the last."""
        return timedelta(hours=self.episodes * (self.rows + QUESTION_LENGTH + 2) - 2)

    def fetch(self, store: Path, progress: DownloadProgress, attempts: int) -> None:
        """Do nothing: the episodes are generated when they are read."""

    def read(self, store: Path, scratch: Path) -> Rows:
        """Generate the episodes into `scratch`, in chunks, so that memory does not grow with their number."""
        for number, chunk in enumerate(self._generate_chunks()):
            chunk.write_parquet(scratch / f"{number:06d}.parquet", compression="lz4")
        frame = pl.scan_parquet(scratch / "*.parquet", row_index_name=PLACE_COLUMN, row_index_offset=1)
        return Rows(frame.with_columns(pl.format("generated row {}", PLACE_COLUMN).alias(PLACE_COLUMN)), time="time")

    def _generate_chunks(self) -> Iterator[pl.DataFrame]:
        names = question_columns(self.columns)
        for number, first in enumerate(range(0, self.episodes, CHUNK_EPISODES)):
            count = min(CHUNK_EPISODES, self.episodes - first)
            episodes_NLK = generate_episodes(
                self.kinds, count, self.rows, self.columns, np.random.default_rng([self.seed, number])
            )
            length = episodes_NLK.shape[1]
            hours = (first + np.arange(count))[:, None] * (length + 1) + np.arange(length)
            time = np.datetime64(START, "ms") + hours.ravel() * np.timedelta64(1, "h")
            values = episodes_NLK.reshape(-1, len(names))
            yield pl.DataFrame({"time": time} | {name: values[:, i] for i, name in enumerate(names)})


def question_columns(columns: int) -> list[str]:
    """The names of the values at each step, in order."""
    words = [*QUESTION_WORDS, *(f"column {j + 1}" for j in range(columns))]
    return [
        *(f"column {j + 1}" for j in range(columns)),
        "number",
        "row",
        *(f"word {word}" for word in words),
        "answer",
    ]


def generate_episodes(
    kinds: tuple[str, ...], count: int, rows: int, columns: int, random: np.random.Generator
) -> Floats:
    """Generate episodes (N, L, K): `rows` rows of a table, `QUESTION_LENGTH` words, the answer.

    All kinds of questions are equally likely. The values of the table are uniform between -1 and 1, the numbers in
    questions between -0.5 and 0.5, all with two decimals. A number is never 0, which means that there is none.
    """
    names = question_columns(columns)
    index = {name: i for i, name in enumerate(names)}
    episodes_NLK = np.zeros((count, rows + QUESTION_LENGTH + 1, len(names)))
    table_NRC = random.uniform(-1, 1, (count, rows, columns)).round(2)
    episodes_NLK[:, :rows, :columns] = table_NRC
    episodes_NLK[:, :rows, index["row"]] = 1
    kind_N = random.integers(len(kinds), size=count)
    summed_N, first_N, second_N = random.integers(columns, size=(3, count))
    numbers_N2 = random.uniform(0.01, 0.5, (count, 2)).round(2) * random.choice([-1, 1], (count, 2))
    greater_N2 = random.random((count, 2)) < 0.5

    for n in range(count):
        kind, summed = kinds[kind_N[n]], int(summed_N[n])
        compared = [
            (int(column), bool(greater_N2[n, i]), float(numbers_N2[n, i]))
            for i, column in enumerate((first_N[n], second_N[n]))
        ]
        words, answer = _make_question(kind, summed, compared, table_NRC[n])
        for step, (word, number) in enumerate(words, rows + QUESTION_LENGTH - len(words)):
            episodes_NLK[n, step, index[f"word {word}"]] = 1
            episodes_NLK[n, step, index["number"]] = number
        episodes_NLK[n, -1, index["answer"]] = answer
    return episodes_NLK


def _make_question(
    kind: str, summed: int, compared: list[tuple[int, bool, float]], table_RC: Floats
) -> tuple[list[Word], float]:
    """Make the words of a question, and its answer.

    Args:
        summed: the column whose sum the question may ask for.
        compared: two conditions on the rows: the column, whether its value is to be greater than the number or lesser,
            and the number.
        table_RC: the table that the question is about.
    """
    conditions: list[list[Word]] = []
    conditions_hold = []
    for column, greater, number in compared:
        conditions.append([(f"column {column + 1}", 0.0), ("greater" if greater else "lesser", number)])
        conditions_hold.append(table_RC[:, column] > number if greater else table_RC[:, column] < number)
    summed_column, where = (f"column {summed + 1}", 0.0), ("where", 0.0)
    first, second = conditions
    if kind == "sum":
        return [("sum", 0.0), summed_column], float(table_RC[:, summed].sum())
    if kind == "sum where":
        return [("sum", 0.0), summed_column, where, *first], float(table_RC[conditions_hold[0], summed].sum())
    if kind == "count":
        return [("count", 0.0), where, *first], float(conditions_hold[0].sum())
    joins = {
        "count and": ("and", conditions_hold[0] & conditions_hold[1]),
        "count or": ("or", conditions_hold[0] | conditions_hold[1]),
    }
    join, both_hold = joins[kind]
    return [("count", 0.0), where, *first, (join, 0.0), *second], float(both_hold.sum())
