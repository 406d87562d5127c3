"""The settings in params.yaml: the sections that decide what the stages write, and all sections together.

The sections about operation are in `project.settings.operation`.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)

from learning.losses import LossName
from problems.columns import Scale
from problems.durations import Duration
from problems.errors import RecastError
from problems.problem import AnyProblem
from project.paths import PARAMS
from project.settings.operation import AlertSettings, DeploySettings, MonitorSettings, RetrainSettings, RunnerSettings
from project.settings.section import Section, reject_duplicates
from project.spelling import did_you_mean

MAX_NAME_CHARACTERS = 100
"""In the name of a problem: a file system allows 255 bytes, and names of files are made of it."""

ProblemName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$", max_length=MAX_NAME_CHARACTERS)]
"""Small letters, digits and _, because folders are named after problems."""


class IngestSettings(Section):
    """How raw files are fetched."""

    attempts: int = Field(3, ge=1, le=20, description="how often each mirror is tried")


class NormalizeSettings(Section):
    """How columns are scaled."""

    scale: Scale = Field(
        "standard",
        description="standard: mean 0 and deviation 1; range: 0 to 1; both by the training rows; none: as they are",
    )


class WindowStageSettings(Section):
    """Which windows are used."""

    stride: int = Field(1, ge=1, description="training uses every n-th window; 1: all")


class TrainSettings(Section):
    """How a trial is trained. Every key changes the result, so every key is part of a trial's key."""

    epochs: int = Field(20, ge=1)
    steps_per_epoch: int | None = Field(
        500,
        ge=1,
        description="number of batches, drawn at random, in an epoch; null: every window once, in random order",
    )
    batch_size: int = Field(128, ge=1)
    loss: LossName = Field(
        "mae",
        description="the loss where the target is a number; classes and labels have the cross-entropy. pinball: the "
        "network forecasts `quantiles`",
    )
    quantiles: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], AfterValidator(reject_duplicates)] = Field(
        (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975),
        description="the quantiles that a network forecasts if the loss is pinball",
    )
    patience: int | None = Field(
        None, ge=1, description="stop after this many epochs without a better selection measure"
    )
    clip: float | None = Field(None, gt=0, description="largest norm of the gradient; null: gradients are not clipped")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="precision of the forward pass; bfloat16 and float16 are mixed precision"
    )
    threads: int = Field(
        1, ge=1, description="CPU threads of one trial; another number changes the last bits of the result"
    )

    @model_validator(mode="after")
    def _has_a_median(self) -> "TrainSettings":
        if 0.5 not in self.quantiles or list(self.quantiles) != sorted(self.quantiles):
            raise ValueError(
                "quantiles must be in ascending order and include 0.5, the forecast whose errors are measured"
            )
        return self


class BootstrapSettings(Section):
    """The moving block bootstrap, which gives measures their confidence intervals."""

    resamples: int = Field(2000, ge=100, le=1_000_000)
    block: Duration = Field(description="length of a block: longer than the time over which errors are correlated")
    level: float = Field(0.95, gt=0.5, lt=1, description="level of the confidence intervals")


class EvaluateSettings(Section):
    """How trained networks are evaluated."""

    bootstrap: BootstrapSettings
    intervals: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], AfterValidator(reject_duplicates)] = Field(
        (0.5, 0.8, 0.95), description="shares of the targets that the intervals around forecasts should contain"
    )
    forecasts: Duration = Field(
        description="how much of the test split the report shows, with forecasts and observations"
    )


GridBlock = dict[str, Annotated[list[Any], Field(min_length=1), AfterValidator(reject_duplicates)]]
"""Values by axis; every combination of them is a configuration."""


class Grid(Section):
    """Every combination of the listed values, by architecture, with every seed.

    An architecture may have a list of blocks. Then the combinations of each block are taken.
    """

    # A seed and an epoch together seed a generator, whose seed has 64 bits.
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], AfterValidator(reject_duplicates)] = Field(
        min_length=1
    )
    architectures: dict[
        str,
        Annotated[
            Annotated[GridBlock, Tag("<block>")]
            | Annotated[tuple[GridBlock, ...], Field(min_length=1), Tag("<blocks>")],
            Discriminator(lambda value: "<blocks>" if isinstance(value, list | tuple) else "<block>"),
        ],
    ] = Field(min_length=1)

    def blocks(self, architecture: str) -> tuple[GridBlock, ...]:
        """The blocks of an architecture."""
        blocks = self.architectures[architecture]
        return (blocks,) if isinstance(blocks, dict) else blocks


class Settings(Section):
    """All settings of a project."""

    run: Annotated[tuple[str, ...], AfterValidator(reject_duplicates)] = Field(
        min_length=1, description="the problems that the pipeline runs"
    )
    problems: dict[ProblemName, AnyProblem] = Field(min_length=1)
    ingest: IngestSettings
    normalize: NormalizeSettings
    window: WindowStageSettings
    train: TrainSettings
    evaluate: EvaluateSettings
    grid: Grid
    runner: RunnerSettings
    alerts: AlertSettings = AlertSettings()
    deploy: DeploySettings = DeploySettings()
    retrain: RetrainSettings = RetrainSettings()
    monitor: MonitorSettings = MonitorSettings()

    @model_validator(mode="after")
    def _check_run(self) -> "Settings":
        for name in self.run:
            if name not in self.problems:
                raise ValueError(
                    f"run lists {name!r}, which is not declared under problems{did_you_mean(name, self.problems)}; "
                    f"the declared problems are {', '.join(self.problems)}"
                )
        return self

    def problem(self, name: str) -> AnyProblem:
        """The settings of a problem.

        Raises:
            RecastError: params.yaml declares no such problem.
        """
        if name not in self.problems:
            raise RecastError(
                f"{PARAMS}: no problem {name!r}{did_you_mean(name, self.problems)}; the declared problems are "
                f"{', '.join(self.problems)}"
            )
        return self.problems[name]
