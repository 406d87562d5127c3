"""The JSON that the service returns, as its OpenAPI document describes it."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field


class Interval(BaseModel):
    level: float = Field(description="the share of observations that it should contain")
    low: float
    high: float


class Forecast(BaseModel):
    forecast_id: str = Field(description="equal for the same window and model version", examples=["0f3a59c2d17be684"])
    series: str
    origin: datetime = Field(description="the time of the last row that it is made from")
    target_time: datetime
    lead: str = Field(description="the time from the origin to the target", examples=["24h"])
    forecast: float
    intervals: list[Interval]


class Answer(BaseModel):
    problem: str
    unit: str = Field(description="the unit of the forecasts and the intervals")
    model_version: int
    forecasts: list[Forecast] = Field(description="in the order of the windows, and by lead")


class LoggedForecast(Forecast):
    problem: str
    model_version: int
    unit: str
    made: datetime = Field(description="when it was made for the first time")
    age_seconds: float = Field(description="how old its newest input row was at that time")


class ColumnRange(BaseModel):
    low: float = Field(description="the smallest value in the training rows")
    high: float = Field(description="the largest value in the training rows")


class NewestRow(BaseModel):
    time: datetime | None = Field(description="of the series whose newest row is the oldest; null: not known")
    age_seconds: float | None
    max_age_seconds: float | None = Field(description="how old it may be; null: the source does not grow")
    stale: bool | None = Field(description="whether it is older than it may be")
    reason: str | None = Field(description="why it is not known")


class ServedModel(BaseModel):
    problem: str
    model_version: int
    since: datetime = Field(description="when this service began to answer with it")
    key: str = Field(description="the key of its trial, whose files are in trials/<problem>/<key>")
    run: str = Field(description="the id of its trial's run in MLflow")
    uri: str = Field(description="the address by which MLflow loads it")
    architecture: str
    hyperparameters: dict[str, Any]
    commit: str = Field(description="the git commit that it was trained at; empty if it is not known")
    code: str = Field(description="the hash of the source code that trained it")
    data: str = Field(description="the hash of the data that it was trained on")
    synthetic: bool
    unit: str
    cadence: str = Field(description="the time between rows")
    rows: int = Field(description="the number of rows in a window, up to its last input")
    leads: list[str]
    levels: list[float]
    series: list[str]
    columns: dict[str, ColumnRange]
    known: list[str] = Field(
        description="columns that are known in advance; a request gives them up to the last target"
    )
    newest_row: NewestRow = Field(description="of the rows that the project has taken in; requests bring their own")


class Reason(BaseModel):
    detail: str = Field(description="why the request was refused")


class Status(BaseModel):
    status: str
    model_version: int | None = None
