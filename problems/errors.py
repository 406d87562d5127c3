"""The errors that a user can fix. They are shown without a traceback, and say where the fault is and how to fix it."""

from problems.passwords import hide_passwords


class RecastError(Exception):
    """Something outside the code is wrong: a file, a setting, a server, the disk.

    The message says where the fault is and what to do about it. Commands print it and exit with status 1. It contains
    no passwords, whatever it was made of.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(hide_passwords(message))


class Unreachable(RecastError):
    """A file, a server or a database that is needed cannot be reached now; later, or on another network, it may be."""
