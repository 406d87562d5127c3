"""Which of the forecast quantiles are the ends of an interval."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecasting.quantiles import find_interval_outputs


@given(percent=st.integers(1, 99))
def test_quantiles_written_as_decimals_are_the_ends_of_their_interval(percent: int) -> None:
    """In whatever way the numbers were rounded: (1 - 0.9) / 2 is not 0.05 to the last digit."""
    quantiles = tuple(q / 200 for q in range(1, 200))
    outputs = find_interval_outputs(quantiles, percent / 100)
    assert outputs == (100 - percent - 1, 100 + percent - 1)


@pytest.mark.parametrize("quantiles", [(), (0.5,), (0.05, 0.5), (0.5, 0.95), (0.05001, 0.5, 0.95)])
def test_an_interval_needs_both_of_its_ends(quantiles: tuple[float, ...]) -> None:
    assert find_interval_outputs(quantiles, 0.9) is None


def test_quantiles_that_lie_close_together_are_not_confused() -> None:
    assert find_interval_outputs((0.02499, 0.025, 0.5, 0.975, 0.97501), 0.95) == (1, 3)
    assert find_interval_outputs((0.025, 0.5, 0.97501), 0.95) is None


def test_quantiles_are_the_same_to_nine_digits() -> None:
    assert find_interval_outputs((0.1 + 4e-10, 0.5, 0.9), 0.8) == (0, 2)
