"""Passwords and keys of the project's own servers: made at their first start, and read by their owner alone."""

import secrets
from collections.abc import Callable
from pathlib import Path

from project.atomic import replaced_file
from project.paths import STATE

FOLDER = STATE / "secrets"


def password() -> str:
    """A new one, of 256 bits, in letters that need no quotes anywhere."""
    return secrets.token_hex(32)


def kept(name: str, made: Callable[[], str]) -> Path:
    """The file of that name with a secret in it, made where it is not there yet. No one else may read it."""
    file = FOLDER / name
    if not file.exists():
        FOLDER.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replaced_file(file) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text(made(), encoding="utf-8")
    return file
