"""The OpenAPI document of the service, with the columns of the model that answers."""

from datetime import timedelta
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from forecasting.about import About
from forecasting.forecaster import Forecaster
from lifecycle.serving.service import Service
from problems.durations import format_duration


def make_openapi(app: FastAPI, service: Service) -> dict[str, Any]:
    """The document for the model that answers now; without a model, any object is a valid request."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    model = service.champion.current
    body: dict[str, Any] = {"type": "object"}
    example: dict[str, Any] = {}
    if model is not None:
        about = model.forecaster.about
        window = _window_schema(about)
        window_list = {
            "type": "object",
            "additionalProperties": False,
            "required": ["windows"],
            "properties": {"windows": {"type": "array", "minItems": 1, "items": window}},
        }
        body, example = {"oneOf": [window, window_list]}, {"example": _request_example(model.forecaster)}
    document["paths"]["/forecast"]["post"]["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": body, **example}},
    }
    return document


def _window_schema(about: About) -> dict[str, Any]:
    """The schema of one window."""
    numbers = {"type": "array", "minItems": about.window_rows, "items": {"type": ["number", "null"]}}
    cadence = format_duration(timedelta(seconds=about.cadence))
    ranges = {name: f"{low:g} to {high:g} in the training rows" for name, (low, high) in about.ranges.items()}
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["time", "columns", *(["series"] if len(about.series) > 1 else [])],
        "properties": {
            "time": {
                "type": "array",
                "minItems": about.window_rows,
                "items": {"type": "string", "format": "date-time"},
                "description": f"one every {cadence}; the forecast is made at the last one",
            },
            "series": {"type": "string", "description": f"such as {', '.join(about.series[:3])}"},
            "columns": {
                "type": "object",
                "additionalProperties": False,
                "required": list(about.columns),
                "properties": {name: {**numbers, "description": ranges[name]} for name in about.columns},
            },
        },
    }


def _request_example(forecaster: Forecaster) -> dict[str, Any]:
    """A request with the example that is stored with the model."""
    rows = forecaster.example
    return {
        "time": [f"{moment.isoformat()}Z" for moment in rows["time"]],
        "series": rows["series"][0],
        "columns": {name: rows[name].to_list() for name in forecaster.about.columns},
    }
