"""Filling missing values forward: the one rule of `normalize` and of the forecaster."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecasting.filling import fill_forward

COLUMNS = 2

rows_of_values = st.lists(st.tuples(*[st.just(math.nan) | st.floats(allow_nan=False)] * COLUMNS), max_size=12)


def fill_row_by_row(rows: list[tuple[float, ...]], starts: list[bool], limit: int) -> list[list[float]]:
    """The rule in plain Python: how old the last known value is decides whether it is carried."""
    filled = []
    last, age = [math.nan] * COLUMNS, [0] * COLUMNS
    for row, is_start in zip(rows, starts, strict=True):
        if is_start:
            last = [math.nan] * COLUMNS
        for column, value in enumerate(row):
            is_known = not math.isnan(value)
            age[column] = 0 if is_known else age[column] + 1
            if is_known:
                last[column] = value
        filled.append([last[column] if age[column] <= limit else math.nan for column in range(COLUMNS)])
    return filled


@given(rows=rows_of_values, limit=st.integers(0, 5), data=st.data())
def test_a_value_is_carried_over_at_most_so_many_rows_and_over_no_gap(
    rows: list[tuple[float, ...]], limit: int, data: st.DataObject
) -> None:
    starts = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    starts[:1] = [True] * len(starts[:1])
    values_NC = np.array(rows, dtype=np.float64).reshape(-1, COLUMNS)
    filled_NC = fill_forward(values_NC.copy(), np.array(starts, dtype=np.bool_), limit)
    expected_NC = np.array(fill_row_by_row(rows, starts, limit), dtype=np.float64).reshape(-1, COLUMNS)
    # Bit for bit: the digest of a table is made of its bytes.
    assert filled_NC.tobytes() == expected_NC.tobytes()


@given(rows=rows_of_values, limit=st.integers(1, 5), data=st.data())
def test_a_piece_with_as_many_rows_before_it_as_the_limit_is_filled_like_the_whole(
    rows: list[tuple[float, ...]], limit: int, data: st.DataObject
) -> None:
    """So `normalize` needs no more than that of what comes before a piece, however long the table is."""
    values_NC = np.array([*rows, (math.nan,) * COLUMNS], dtype=np.float64)
    length = len(values_NC)
    starts_N = np.array([True, *data.draw(st.lists(st.booleans(), min_size=length - 1, max_size=length - 1))])
    begin = data.draw(st.integers(0, length - 1))
    before = min(limit, begin)
    # The first row of what is read counts as the start of a stretch.
    piece_starts_N = starts_N[begin - before :].copy()
    piece_starts_N[0] = True
    piece_NC = fill_forward(values_NC[begin - before :], piece_starts_N, limit)[before:]
    np.testing.assert_array_equal(piece_NC, fill_forward(values_NC, starts_N, limit)[begin:])


@pytest.mark.parametrize("limit", [0, 3])
def test_what_needs_no_filling_is_returned_as_it_is(limit: int) -> None:
    values_NC = np.array([[1.0, 2.0], [3.0, 4.0 if limit else math.nan]])
    assert fill_forward(values_NC, np.array([True, False]), limit) is values_NC
