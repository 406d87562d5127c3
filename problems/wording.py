"""Parts of sentences for people: texts and lists of names from a user's files, which may be too long as they are."""

from collections.abc import Collection
from itertools import islice

MAX_CHARACTERS, MAX_NAMES = 100, 30


def shorten(text: str) -> str:
    """The beginning of a long text."""
    return text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 3]}..."


def list_names(names: Collection[str]) -> str:
    """The names, separated by commas; the first ones of many."""
    listed = ", ".join(map(shorten, islice(names, MAX_NAMES)))
    return listed if len(names) <= MAX_NAMES else f"{listed} and {len(names) - MAX_NAMES:,} more"


def capitalize(text: str) -> str:
    """The text with a capital letter at its beginning; the rest stays as it is."""
    return text[:1].upper() + text[1:]
