"""The sections of params.yaml as typed, frozen settings."""

import json
import re
import typing
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)

from problems.columns import Scale
from problems.errors import RecastError
from problems.problem import AnyProblem
from problems.source import Duration, TimeZone
from project.paths import PARAMS
from project.spelling import did_you_mean

S = TypeVar("S", bound=Sequence[Any])


def _distinct(values: S) -> S:
    """Refuse a list that names a value twice."""
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"{json.dumps(value)} is listed twice")
    return values


Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$")]
"""Small letters, digits and _: it names folders."""


class Section(BaseModel):
    """A part of params.yaml: no key that is not declared, no value that changes.

    The message of a rule about several keys begins with the key to change; the error then names it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Ingest(Section):
    attempts: int = Field(3, ge=1, le=20, description="how often each mirror is tried before it is given up")


class Normalize(Section):
    scale: Scale = Field(
        "standard", description="standard: mean 0, deviation 1; range: 0 to 1; both by the training rows"
    )


class Window(Section):
    stride: int = Field(1, ge=1, description="use every n-th window of the training split; 1: all")


class Train(Section):
    """How a trial is trained. All of it decides the result, so all of it is part of a trial's key."""

    epochs: int = Field(20, ge=1)
    steps_per_epoch: int | None = Field(
        500, ge=1, description="batches drawn at random for an epoch; null: every window once, shuffled"
    )
    batch_size: int = Field(128, ge=1)
    loss: Literal["mae", "mse", "huber", "pinball"] = Field(
        "mae",
        description="where the target is a number; of classes and labels it is the cross-entropy. pinball: the network "
        "forecasts `quantiles`",
    )
    quantiles: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], AfterValidator(_distinct)] = Field(
        (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975), description="that loss pinball makes the network forecast"
    )
    patience: int | None = Field(None, ge=1, description="stop after so many epochs without a better validation MAE")
    clip: float | None = Field(None, gt=0, description="largest norm of the gradient; null: not clipped")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of the forward pass; bfloat16 and float16 are mixed precision"
    )
    threads: int = Field(1, ge=1, description="CPU threads of one trial; another number gives other last bits")

    @model_validator(mode="after")
    def _has_a_median(self) -> "Train":
        if 0.5 not in self.quantiles or list(self.quantiles) != sorted(self.quantiles):
            raise ValueError("quantiles must rise and have 0.5 among them, which is the forecast that errors are of")
        return self


class Bootstrap(Section):
    resamples: int = Field(2000, ge=100, le=1_000_000)
    block: Duration = Field(description="length of a block; longer than the errors stay correlated")
    level: float = Field(0.95, gt=0.5, lt=1, description="of the confidence interval")


class Evaluate(Section):
    bootstrap: Bootstrap
    intervals: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], AfterValidator(_distinct)] = Field(
        (0.5, 0.8, 0.95), description="shares of the targets that intervals around the forecasts are made to hold"
    )
    forecasts: Duration = Field(description="how much of the test split the report draws, forecast against observed")


Block = dict[str, Annotated[list[Any], Field(min_length=1), AfterValidator(_distinct)]]
"""Some values of each of some axes: every combination of them is a configuration."""


class Grid(Section):
    """Every combination of the listed values, by architecture, once a seed; a list of blocks is all their own."""

    # A seed and an epoch together seed a generator, which takes 64 bits.
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], AfterValidator(_distinct)] = Field(min_length=1)
    architectures: dict[
        str,
        Annotated[
            Annotated[Block, Tag("<block>")] | Annotated[tuple[Block, ...], Field(min_length=1), Tag("<blocks>")],
            Discriminator(lambda value: "<blocks>" if isinstance(value, list | tuple) else "<block>"),
        ],
    ] = Field(min_length=1)

    def blocks(self, architecture: str) -> tuple[Block, ...]:
        """The blocks of an architecture, one where it is no list of them."""
        found = self.architectures[architecture]
        return (found,) if isinstance(found, dict) else found


def _like(pattern: str, what: str) -> AfterValidator:
    """Refuse a text that is not like `pattern`; the message says what to write."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"write {what}")
        return value

    return AfterValidator(check)


def _slots(value: Any) -> Any:
    if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError("write a whole number from 1, or auto")
    return value


Slots = Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], BeforeValidator(_slots)]
Memory = Annotated[str, _like(r"\d+(\.\d+)? ?[MG]iB", "a number and MiB or GiB, such as 2GiB")]


class Runner(Section):
    """Where trials are trained. None of it decides a result."""

    kind: Literal["local", "inline", "ray"] = Field(
        "local", description="local: processes; inline: this one, to debug; ray: the nodes of a Ray cluster"
    )
    workers: int | None = Field(None, ge=1, description="trials at once on this machine's CPU; null: one a core")
    slots_per_gpu: Slots = Field(1, description="trials at once on each GPU; auto: as many as its memory holds")
    devices: Literal["auto", "cpu"] = Field("auto", description="auto: every visible GPU, else the CPU")
    bundle: int = Field(1, ge=1, description="trials of one architecture and shape that one task trains")
    address: str | None = Field(
        None, description="of the Ray cluster: host:port, ray://host:port, auto; null: one on this machine"
    )
    memory: Memory | None = Field(
        None, description="of a trial, as Ray counts its nodes' memory, such as 2GiB; null: as much as was measured"
    )
    install: bool = Field(False, description="Ray's nodes install requirements.lock; false: they have all of it")

    @property
    def memory_bytes(self) -> int | None:
        if self.memory is None:
            return None
        return round(float(self.memory[:-3]) * (1 << {"MiB": 20, "GiB": 30}[self.memory[-3:]]))


AlertKind = Literal["failure", "breach", "promotion", "refusal", "monitor"]
"""What people are told of."""

ALERT_KINDS: tuple[AlertKind, ...] = typing.get_args(AlertKind)

AlertKinds = Annotated[tuple[AlertKind, ...], AfterValidator(_distinct)]


Address = Annotated[str, _like(r"[^@\s,]+@[^@\s,]+", "an address such as team@example.org")]


class Email(Section):
    """Alerts by SMTP. The environment has its user and password: RECAST_SMTP_USER, RECAST_SMTP_PASSWORD."""

    to: tuple[Address, ...] = Field(min_length=1)
    sender: Address = Field(description="the address that it comes from")
    server: Annotated[str, _like(r"[^\s:/]+(:\d{1,5})?", "a mail server's host, or host:port")]
    security: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="starttls: port 587; tls from the first byte: port 465; none: port 25"
    )
    kinds: AlertKinds = Field(ALERT_KINDS, description="that go there")

    @property
    def host(self) -> str:
        return self.server.partition(":")[0]

    @property
    def port(self) -> int:
        named = self.server.partition(":")[2]
        return int(named) if named else {"starttls": 587, "tls": 465, "none": 25}[self.security]


class Webhook(Section):
    """Alerts as JSON that Slack takes."""

    url: Annotated[str, _like(r"\$\{[A-Za-z_]\w*\}", "${NAME} of the environment: the address itself is a secret")]
    kinds: AlertKinds = Field(ALERT_KINDS, description="that go there")

    @property
    def variable(self) -> str:
        return self.url[2:-1]


class Alerts(Section):
    """Who is told of what."""

    log: AlertKinds = Field(ALERT_KINDS, description="that go to .recast/alerts.log and to the run's log in Prefect")
    email: Email | None = None
    webhook: Webhook | None = None


class Schedule(Section):
    """When a deployed flow runs, and for how long at most."""

    # Whether the fields are possible, Prefect says when it is deployed.
    cron: Annotated[str, _like(r"\S+( +\S+){4}", 'five fields, such as "0 3 * * *"')] | None = Field(
        None, description="minute, hour, day, month, day of the week; null: only when it is asked for"
    )
    time_limit: Duration = Field(timedelta(hours=12), description="an attempt that runs longer fails")


class Deploy(Section):
    """How `recast deploy` deploys the flows of each problem."""

    pool: Annotated[str, _like(r"[a-z0-9_-]+", "small letters, digits, _ and -")] = Field(
        "recast", description="Prefect's work pool; another one where several checkouts use one Prefect server"
    )
    time_zone: TimeZone = Field("UTC", description="of the schedules")
    on_overlap: Literal["wait", "skip"] = Field(
        "wait", description="a run that is due while another of the same flow and problem runs"
    )
    missed: Duration = Field(
        timedelta(minutes=5), description="a run so late is one of those that were missed: one of them runs"
    )
    retries: int = Field(2, ge=0, le=20, description="of a run that has failed")
    retry_delay: Duration = Field(timedelta(minutes=1), description="before the first; twice that before the next")
    retrain: Schedule = Schedule.model_validate({"cron": "0 3 * * *", "time_limit": "12h"})
    predict: Schedule = Schedule.model_validate({"cron": "15 * * * *", "time_limit": "30m"})
    monitor: Schedule = Schedule.model_validate({"cron": "0 6 * * *", "time_limit": "1h"})


class Retrain(Section):
    """When a challenger takes the champion's place."""

    level: float = Field(
        0.95, gt=0.5, lt=1, description="of the interval of the difference in MAE, all of which must be a gain"
    )
    worse: float = Field(
        0.1, ge=0, description="no season, hour of day or extreme tenth may be worse by more than this share"
    )
    windows: int = Field(200, ge=20, description="fewest windows that a comparison may rest on")
    slice_windows: int = Field(30, ge=1, description="a season, hour or extreme tenth with fewer targets is not judged")
    approval: Duration | None = Field(
        None, description="how long the flow waits for a person's yes to a promotion, and then refuses; null: no wait"
    )
    patience: Duration = Field(timedelta(minutes=10), description="how long MLflow may be out of reach")


class Monitor(Section):
    """What forecasts must be like once what they are of was observed; null switches a rule off."""

    window: Duration = Field(
        timedelta(days=14), description="over how many days figures are: whole days, which end with the day of a figure"
    )
    least: int = Field(48, ge=1, description="figures of fewer forecasts are shown but not judged")
    error: float | None = Field(1.3, gt=0, description="largest MAE, in times the test MAE of the model version")
    skill: float | None = Field(None, lt=1, description="least skill against persistence at the same moments")
    coverage: float | None = Field(
        0.1, gt=0, lt=1, description="how far below its level the coverage of an interval may be"
    )
    missing: float | None = Field(
        None, gt=0, lt=1, description="largest share of what was observed that nothing had forecast"
    )
    drift: float | None = Field(
        1.5,
        gt=0,
        description="how far the distribution of a column may be from that of the known rows of the same season, in "
        "times the farthest of as many days among these",
    )
    on_breach: Literal["alert", "retrain"] = Field(
        "alert", description="retrain: also start a retraining; each once when a rule begins to be broken"
    )

    @model_validator(mode="after")
    def _whole_days(self) -> "Monitor":
        if self.window % timedelta(days=1):
            raise ValueError("window must be a whole number of days, such as 14d")
        return self


class Settings(Section):
    """All that a user changes."""

    run: Annotated[tuple[str, ...], AfterValidator(_distinct)] = Field(
        min_length=1, description="the problems that the pipeline runs; dvc.yaml's matrix"
    )
    problems: dict[Name, AnyProblem] = Field(min_length=1)
    ingest: Ingest
    normalize: Normalize
    window: Window
    train: Train
    evaluate: Evaluate
    grid: Grid
    runner: Runner
    alerts: Alerts = Alerts()
    deploy: Deploy = Deploy()
    retrain: Retrain = Retrain()
    monitor: Monitor = Monitor()

    @model_validator(mode="after")
    def _run_what_is_declared(self) -> "Settings":
        for name in self.run:
            if name not in self.problems:
                raise ValueError(
                    f"run lists {name!r}, which is not declared under problems{did_you_mean(name, self.problems)}; "
                    f"declared are {', '.join(self.problems)}"
                )
        return self

    def problem(self, name: str) -> AnyProblem:
        """
        Raises:
            RecastError: params.yaml declares no such problem.
        """
        if name not in self.problems:
            raise RecastError(
                f"{PARAMS}: no problem {name!r}{did_you_mean(name, self.problems)}; declared are "
                f"{', '.join(self.problems)}"
            )
        return self.problems[name]
