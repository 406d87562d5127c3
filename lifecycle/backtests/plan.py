"""The plan of a backtest: the grid is trained at several origins in the past, with the data that existed then.

At an origin, the rows before it are for training and validation, the rows after it for test, and later rows do not
exist. What validation selects at each origin is what a scheduled retraining would have served from then on.

Tashman 2000, "Out-of-sample tests of forecasting accuracy: an analysis and review", International Journal of
Forecasting 16: rolling origins, with a window of training rows that grows or rolls.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl

from problems.problem import Problem
from problems.split import DateSplit, RecentSplit
from stages.tables.ingested import read_cadence

ORIGIN_EPOCH = datetime(2001, 1, 1)
"""A Monday. All origins are a multiple of `every` after it, so that a backtest next month has most origins of today's,
and only the new ones have to be trained."""


@dataclass(frozen=True)
class Plan:
    """Which origins a backtest has, and which rows belong to them.

    Attributes:
        origins: how many.
        every: the time from one origin to the next.
        test: the length of the test rows, which begin at the origin.
        validation: the length of the validation rows, which end at the origin.
        train: the length of the training rows, which end where the validation rows begin; None: all earlier rows.
        until: the latest end of the test rows of the last origin; None: the end of the data.
    """

    origins: int
    every: timedelta
    test: timedelta
    validation: timedelta
    train: timedelta | None
    until: datetime | None

    @classmethod
    def of(
        cls,
        problem: Problem,
        origins: int,
        every: timedelta,
        test: timedelta | None = None,
        validation: timedelta | None = None,
        train: timedelta | None = None,
        until: datetime | None = None,
    ) -> "Plan":
        """A plan with defaults for the lengths that are None.

        The test rows reach to the next origin. The lengths of validation and training are those of the problem's split
        if it is `recent`; otherwise validation is three times as long as test, and all earlier rows are for training.
        """
        recent = problem.split if isinstance(problem.split, RecentSplit) else None
        return cls(
            origins,
            every,
            test or every,
            validation or (recent.validation if recent else 3 * (test or every)),
            train or (recent.train if recent else None),
            until,
        )


@dataclass(frozen=True)
class Origin:
    """A moment in the past at which the grid is trained as if it were the present.

    Attributes:
        name: the moment, for people and as the name of a folder.
        split: the rows for training, validation and test.
    """

    name: str
    split: DateSplit


def place_origins(plan: Plan, end: datetime) -> list[Origin]:
    """The origins, the oldest first.

    Args:
        end: the end of the data, one cadence after the last row.
    """
    until = min(end, plan.until or end)
    last = ORIGIN_EPOCH + (until - plan.test - ORIGIN_EPOCH) // plan.every * plan.every
    moments = [last - back * plan.every for back in reversed(range(plan.origins))]
    are_midnights = all(moment.time() == datetime.min.time() for moment in moments)
    return [
        Origin(
            f"{moment:%Y-%m-%d}" if are_midnights else f"{moment:%Y-%m-%dT%H%M%S}",
            DateSplit(
                train_from=moment - plan.validation - plan.train if plan.train else None,
                validation_from=moment - plan.validation,
                test_from=moment,
                test_until=moment + plan.test,
            ),
        )
        for moment in moments
    ]


def find_data_end(ingested: Path) -> datetime:
    """The end of the series that ends first: one cadence after its last row."""
    cadence = read_cadence(ingested)
    last = pl.scan_parquet(ingested / "table.parquet").group_by("series").agg(pl.col("time").max())
    end: datetime = last.collect(engine="streaming")["time"].min()  # type: ignore[assignment]
    return end + cadence


def set_origin(problem: Problem, origin: Origin) -> Problem:
    """The problem with the split of an origin."""
    return problem.model_copy(update={"split": origin.split})
