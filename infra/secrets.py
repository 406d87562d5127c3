"""Passwords and keys of the project's own servers: created at their first start, and readable by their owner only."""

import secrets
from collections.abc import Callable
from pathlib import Path

from project.atomic import replace_file
from project.paths import STATE

SECRETS_FOLDER = STATE / "secrets"


def new_password() -> str:
    """A new password of 256 bits, whose characters need no quotes anywhere."""
    return secrets.token_hex(32)


def load_or_create_secret(name: str, create: Callable[[], str]) -> Path:
    """The file with a secret, which only its owner may read; it is created if it does not exist.

    Args:
        name: the name of the file.
        create: returns the content of a new file.
    """
    file = SECRETS_FOLDER / name
    if not file.exists():
        SECRETS_FOLDER.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replace_file(file) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text(create(), encoding="utf-8")
    return file
