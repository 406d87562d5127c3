"""Numbers as people read them: with thousands separators, a real minus sign, units, and no needless digits."""

import math


def choose_decimals(value: float, significant: int) -> int:
    """How many digits after the decimal point show `value` with this many significant digits; at most 9."""
    return min(max(significant - 1 - math.floor(math.log10(abs(value))), 0), 9) if value else significant - 1


def format_number(value: float, digits: int) -> str:
    """A number with a minus sign and thousands separators; never minus zero."""
    return f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def format_signed(value: float, digits: int) -> str:
    """A number as `format_number` writes it, with a plus sign where it is above 0."""
    return ("+" if round(value, digits) > 0 else "") + format_number(value, digits)


def format_percent(share: float) -> str:
    """A share between 0 and 1 in percent."""
    return f"{format_number(100 * share, 1)}\N{NO-BREAK SPACE}%"


def format_quantity(value: float, digits: int, unit: str, deviation: float | None = None) -> str:
    """A number with its deviation, if there is one, and its unit; without line breaks."""
    spread = "" if deviation is None else f" ± {format_number(deviation, digits)}"
    return f"{format_number(value, digits)}{spread} {unit}".rstrip().replace(" ", "\N{NO-BREAK SPACE}")
