"""The errors that a user can mend: shown without a traceback, with the place and the mend."""


class RecastError(Exception):
    """Something outside the code is wrong: a file, a setting, a server, the disk.

    The message names the place and what to do about it; commands print it and exit with status 1.
    """


class Unreachable(RecastError):
    """No mirror gave a file that has to be downloaded; later, or on another network, one may."""
