"""The sections of params.yaml about operation: where trials run, alerts, deployed flows, promotion, monitoring.

None of them decides what a stage of the pipeline writes.
"""

import typing
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from learning.choices import Choice
from problems.durations import Duration
from problems.source import TimeZone
from project.settings.runners import RUNNERS
from project.settings.section import Section, reject_duplicates, require_pattern


def check_slots(value: Any) -> Any:
    """Refuse everything but a whole number from 1, and auto."""
    if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError("write a whole number from 1, or auto")
    return value


Slots = Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], BeforeValidator(check_slots)]

Memory = Annotated[str, require_pattern(r"\d+(\.\d+)? ?[MG]iB", "a number and MiB or GiB, such as 2GiB")]


class RunnerSettings(Section):
    """Where trials are trained. Nothing in this section changes a result."""

    kind: Annotated[str, Choice(RUNNERS)] = Field(
        "local", description="; ".join(f"{name}: {runner.description}" for name, runner in RUNNERS.items())
    )
    workers: int | None = Field(None, ge=1, description="trials at once on this machine's CPU; null: one per core")
    slots_per_gpu: Slots = Field(1, description="trials at once on each GPU; auto: as many as its memory holds")
    devices: Literal["auto", "cpu"] = Field("auto", description="auto: every visible GPU, else the CPU")
    bundle: int = Field(1, ge=1, description="trials of one architecture and shape that one task trains")
    address: str | None = Field(
        None,
        description="address of the Ray cluster: host:port, ray://host:port or auto; null: the project's own head if "
        "it runs, else one that is started on this machine",
    )
    memory: Memory | None = Field(
        None, description="memory of a trial, such as 2GiB, which Ray reserves on a node; null: as much as was measured"
    )
    install: bool = Field(
        False, description="true: Ray's nodes install requirements.lock; false: they have all of its packages"
    )

    @property
    def memory_bytes(self) -> int | None:
        """The memory of a trial, in bytes."""
        if self.memory is None:
            return None
        return round(float(self.memory[:-3]) * (1 << {"MiB": 20, "GiB": 30}[self.memory[-3:]]))


AlertKind = Literal["failure", "breach", "promotion", "refusal", "monitor"]
"""What alerts are sent about."""

ALERT_KINDS: tuple[AlertKind, ...] = typing.get_args(AlertKind)

AlertKinds = Annotated[tuple[AlertKind, ...], AfterValidator(reject_duplicates)]

EmailAddress = Annotated[str, require_pattern(r"[^@\s,]+@[^@\s,]+", "an address such as team@example.org")]


class EmailSettings(Section):
    """Alerts by SMTP.

    The user name and the password come from the environment: RECAST_SMTP_USER, RECAST_SMTP_PASSWORD.
    """

    to: tuple[EmailAddress, ...] = Field(min_length=1)
    sender: EmailAddress = Field(description="the address that alerts are sent from")
    server: Annotated[str, require_pattern(r"[^\s:/]+(:\d{1,5})?", "a mail server's host, or host:port")]
    security: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="starttls: port 587; tls from the first byte: port 465; none: port 25"
    )
    kinds: AlertKinds = Field(ALERT_KINDS, description="that go there")

    @property
    def host(self) -> str:
        """The mail server's host."""
        return self.server.partition(":")[0]

    @property
    def port(self) -> int:
        """The mail server's port, by default the usual one for its security."""
        port = self.server.partition(":")[2]
        return int(port) if port else {"starttls": 587, "tls": 465, "none": 25}[self.security]


class WebhookSettings(Section):
    """Alerts as JSON, in the form that Slack accepts."""

    url: Annotated[
        str,
        require_pattern(
            r"\$\{[A-Za-z_]\w*\}", "${NAME}, a variable of the environment: the address itself is a secret"
        ),
    ]
    kinds: AlertKinds = Field(ALERT_KINDS, description="that go there")

    @property
    def variable(self) -> str:
        """The environment variable that holds the address."""
        return self.url[2:-1]


class AlertSettings(Section):
    """Where alerts go, by kind."""

    log: AlertKinds = Field(
        ALERT_KINDS, description="alerts that go to .recast/alerts.log and to the run's log in Prefect"
    )
    email: EmailSettings | None = None
    webhook: WebhookSettings | None = None


class FlowSchedule(Section):
    """When a deployed flow runs, and for how long at most."""

    # Prefect checks the values of the fields when the flow is deployed.
    cron: Annotated[str, require_pattern(r"\S+( +\S+){4}", 'five fields, such as "0 3 * * *"')] | None = Field(
        None, description="minute, hour, day, month, day of the week; null: the flow runs only on request"
    )
    time_limit: Duration = Field(timedelta(hours=12), description="an attempt that takes longer fails")


class DeploySettings(Section):
    """How `recast deploy` deploys the flows of each problem."""

    pool: Annotated[str, require_pattern(r"[a-z0-9_-]+", "small letters, digits, _ and -")] = Field(
        "recast", description="Prefect's work pool; each checkout that uses the same Prefect server needs its own"
    )
    time_zone: TimeZone = Field("UTC", description="time zone of the schedules")
    on_overlap: Literal["wait", "skip"] = Field(
        "wait", description="what a run does that is due while another one of the same flow and problem is running"
    )
    missed: Duration = Field(
        timedelta(minutes=5), description="runs that are later than this were missed; of all missed runs, only one runs"
    )
    retries: int = Field(2, ge=0, le=20, description="how often a failed run is tried again")
    retry_delay: Duration = Field(
        timedelta(minutes=1), description="before the first new try; it doubles with every further one"
    )
    retrain: FlowSchedule = FlowSchedule.model_validate({"cron": "0 3 * * *", "time_limit": "12h"})
    predict: FlowSchedule = FlowSchedule.model_validate({"cron": "15 * * * *", "time_limit": "30m"})
    monitor: FlowSchedule = FlowSchedule.model_validate({"cron": "0 6 * * *", "time_limit": "1h"})


class RetrainSettings(Section):
    """When a challenger replaces the champion."""

    level: float = Field(
        0.95,
        gt=0.5,
        lt=1,
        description="confidence level; the whole confidence interval of the difference in error must be an improvement",
    )
    worse: float = Field(
        0.1, ge=0, description="no season, hour of the day or extreme tenth may be worse by more than this share"
    )
    windows: int | None = Field(
        None,
        ge=20,
        description="least number of windows for a comparison; null: seven blocks of `evaluate.bootstrap.block`, or of "
        "the horizon if that is longer",
    )
    slice_windows: int = Field(
        30, ge=1, description="seasons, hours and extreme tenths with fewer targets are not judged"
    )
    approval: Duration | None = Field(
        None,
        description="how long the flow waits for a person to approve a promotion before it refuses; null: do not ask",
    )
    patience: Duration = Field(timedelta(minutes=10), description="how long to wait for MLflow while it is unreachable")


class MonitorSettings(Section):
    """The rules for forecasts, which are checked when their targets have been observed; null switches a rule off."""

    window: Duration = Field(
        timedelta(days=14), description="the days over which a figure is computed, up to its own day; whole days"
    )
    least: int = Field(
        48,
        ge=1,
        description="figures of fewer forecasts are shown but not judged; at most half as many as `window` covers rows",
    )
    error: float | None = Field(
        1.3,
        gt=0,
        description="largest error by the problem's selection measure, as a multiple of the version's error on the "
        "test rows",
    )
    skill: float | None = Field(
        None,
        lt=1,
        description="least skill score, by the problem's selection measure, against persistence at the same moments",
    )
    coverage: float | None = Field(
        0.1, gt=0, lt=1, description="how far the coverage of an interval may be below its level"
    )
    missing: float | None = Field(
        None, gt=0, lt=1, description="largest share of the observations that no forecast was made for"
    )
    drift: float | None = Field(
        1.5,
        gt=0,
        description="how far the distribution of a column may be from that of the known rows of the same season, as a "
        "multiple of the largest distance among equally many days of these rows",
    )
    on_breach: Literal["alert", "retrain"] = Field(
        "alert", description="what follows once when a rule begins to be broken; retrain: an alert and a retraining"
    )

    @model_validator(mode="after")
    def _whole_days(self) -> "MonitorSettings":
        if self.window % timedelta(days=1):
            raise ValueError("window must be a whole number of days, such as 14d")
        return self
