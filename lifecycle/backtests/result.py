"""The result of a backtest, as `backtest.json` stores it and as its page and tables show it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lifecycle.backtests.plan import Plan
from problems.durations import format_duration
from problems.problem import Problem
from project import paths
from project.atomic import replace_file, write_json
from project.records import read_record
from stages.evaluation.leaderboard import MeasureInfo, Spread

CHOSEN = "chosen by validation"
"""The name of the row of a backtest for the configuration that validation selected at each origin."""


@dataclass(frozen=True)
class OriginScore:
    """The errors of a configuration at an origin by the selection measure, over seeds, and its skill scores on test.

    Attributes:
        skill: by the selection measure; None where persistence cannot answer the problem.
        mae_skill: by MAE; None as for `skill`. Backtests of earlier versions of Recast do not have it.
    """

    validation: Spread
    test: Spread
    skill: float | None
    mae_skill: float | None = None


@dataclass(frozen=True)
class ConfigurationResult:
    """A configuration at all origins.

    Attributes:
        parameters: the number of weights; None where no trial finished.
        by_origin: its scores, in the order of the origins; None where a seed has failed.
        times_chosen: the number of origins at which it was the best on validation.
        test: over origins, the mean test error over seeds; None where it has no scores.
        skill, mae_skill: over origins, the skill score by the selection measure and by MAE; None where it has none.
    """

    configuration: str
    architecture: str
    parameters: int | None
    by_origin: list[OriginScore | None]
    times_chosen: int
    test: Spread | None
    skill: Spread | None
    mae_skill: Spread | None = None

    @classmethod
    def of(
        cls,
        configuration: str,
        architecture: str,
        parameters: int | None,
        by_origin: list[OriginScore | None],
        times_chosen: int,
    ) -> "ConfigurationResult":
        """The result of a configuration with these scores."""
        scores = [score for score in by_origin if score]
        skills, mae_skills = (
            [skill for skill in of_scores if skill is not None]
            for of_scores in ([score.skill for score in scores], [score.mae_skill for score in scores])
        )
        return cls(
            configuration,
            architecture,
            parameters,
            by_origin,
            times_chosen,
            Spread.of([score.test.mean for score in scores]) if scores else None,
            Spread.of(skills) if skills else None,
            Spread.of(mae_skills) if mae_skills else None,
        )


@dataclass(frozen=True)
class OriginInfo:
    """An origin in the result of a backtest.

    Attributes:
        train_from: the time of the first training row.
        windows: the number of windows by split.
        persistence, persistence_mae: the test error of persistence by the selection measure, and by MAE.
        best: the configuration that validation selected; None where no configuration is complete.
        failed: the failed trials, with the reasons.
    """

    name: str
    train_from: str
    validation_from: str
    test_from: str
    test_until: str
    windows: dict[str, int]
    persistence: float | None
    best: str | None
    failed: list[str]
    persistence_mae: float | None = None


@dataclass(frozen=True)
class Backtest:
    """The result of a backtest.

    Attributes:
        plan: the number of origins, and the lengths of time as text.
        measure: the selection measure.
        configurations: first those with the most complete origins; of these, those with lower mean validation errors.
        chosen: at each origin, the configuration that validation selected there; its name is CHOSEN.
    """

    problem: str
    title: str
    target: str
    unit: str
    synthetic: bool
    plan: dict[str, Any]
    measure: MeasureInfo
    origins: list[OriginInfo]
    configurations: list[ConfigurationResult]
    chosen: ConfigurationResult

    @property
    def failures(self) -> list[str]:
        """The failed trials, each with its origin and the reason."""
        return [f"{self.problem} at {origin.name}: {failure}" for origin in self.origins for failure in origin.failed]


@dataclass(frozen=True)
class OriginResult:
    """All results at one origin.

    Attributes:
        scores: of the complete configurations.
        networks: the architecture and the number of weights of every configuration; None where no trial finished.
    """

    origin: OriginInfo
    scores: dict[str, OriginScore]
    networks: dict[str, tuple[str, int | None]]


def summarize_backtest(
    name: str, problem: Problem, plan: Plan, measure: MeasureInfo, origin_results: Sequence[OriginResult]
) -> Backtest:
    """The results of all origins as one."""
    best = [result.origin.best for result in origin_results]
    # The number of weights is that of the first origin at which a seed finished.
    networks: dict[str, tuple[str, int | None]] = {}
    for result in origin_results:
        for label, (architecture, parameters) in result.networks.items():
            networks[label] = architecture, networks.get(label, (architecture, None))[1] or parameters
    configurations = [
        ConfigurationResult.of(
            label,
            architecture,
            parameters,
            [result.scores.get(label) for result in origin_results],
            best.count(label),
        )
        for label, (architecture, parameters) in networks.items()
    ]

    def rank(configuration: ConfigurationResult) -> tuple[int, float]:
        errors = [score.validation.mean for score in configuration.by_origin if score]
        return -len(errors), sum(errors) / max(len(errors), 1)

    chosen_scores = [
        result.scores[label] if label else None for result, label in zip(origin_results, best, strict=True)
    ]
    times_chosen = sum(score is not None for score in chosen_scores)
    return Backtest(
        problem=name,
        title=problem.title,
        target=problem.target,
        unit=problem.unit,
        synthetic=problem.source.synthetic,
        plan={
            "origins": plan.origins,
            "every": format_duration(plan.every),
            "test": format_duration(plan.test),
            "validation": format_duration(plan.validation),
            "train": format_duration(plan.train) if plan.train else None,
        },
        measure=measure,
        origins=[result.origin for result in origin_results],
        configurations=sorted(configurations, key=rank),
        chosen=ConfigurationResult.of(CHOSEN, "", None, chosen_scores, times_chosen),
    )


def result_folder(problem: str) -> Path:
    """The folder of the result and its page."""
    return paths.backtest_folder(problem) / "result"


def write_backtest(result: Backtest, page: str, out: Path) -> None:
    """Write the result and its page into the folder `out`."""
    write_json(out / "backtest.json", asdict(result))
    with replace_file(out / "backtest.html") as temporary:
        temporary.write_text(page, encoding="utf-8")


def read_backtest(out: Path) -> Backtest | None:
    """The result in the folder `out`; None where there is none.

    Raises:
        RecastError: another version of Recast wrote the file, or it is damaged.
    """
    try:
        return read_record(out / "backtest.json", Backtest, fix="run `recast backtest` again")
    except FileNotFoundError:
        return None
