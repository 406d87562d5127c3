"""Addresses in params.yaml, in which ${NAME} stands for the value of an environment variable."""

import os

from problems.errors import RecastError
from problems.passwords import VARIABLE, find_password

PASSWORD_RULE = "a password must not stand in the file: write ${NAME} in its place, and set that variable"


def refuse_password(text: str) -> str:
    """The text, which holds no password.

    Raises:
        ValueError: it does.
    """
    if find_password(text) is not None:
        raise ValueError(PASSWORD_RULE)
    return text


def fill_in_variables(address: str, setting: str) -> str:
    """An address with the values of its variables. It may hold a password then, so messages show it without.

    Args:
        setting: where the address comes from, for messages.

    Raises:
        RecastError: a variable is not set.
    """
    if missing := [name for name in VARIABLE.findall(address) if name not in os.environ]:
        raise RecastError(f"{setting}: the environment has no variable {missing[0]}; set it")
    return VARIABLE.sub(lambda match: os.environ[match[1]], address)


def name_variables(text: str, address: str) -> str:
    """A text, such as a library's error, with the variables of an address in place of their values."""
    for name in VARIABLE.findall(address):
        if value := os.environ.get(name):
            text = text.replace(value, f"${{{name}}}")
    return text
