"""Processes that a file names, by their id and by when they began, because the system gives the same ids again; and
processes that listen on a port.
"""

import psutil

from problems.passwords import hide_passwords
from problems.wording import shorten

SAME_PROCESS_SECONDS = 2
"""How far apart two readings of when one process began may be: the system's clock is adjusted now and then."""


def creation_time(pid: int | None = None) -> float:
    """When a process began, in seconds of the system's clock.

    Args:
        pid: the id of the process; None: this process.
    """
    return psutil.Process(pid).create_time()


def find_process(pid: int, created: float) -> psutil.Process | None:
    """The process with this id that began at this time, or None where it has ended.

    Args:
        created: see `creation_time`.
    """
    try:
        process = psutil.Process(pid)
        return process if abs(process.create_time() - created) < SAME_PROCESS_SECONDS else None
    except psutil.NoSuchProcess:
        return None


def describe_listener(port: int) -> str | None:
    """The process that listens on a port of this machine, for people; None: there is none, or it is not known."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return None
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
            return "a process of another user" if connection.pid is None else _describe_process(connection.pid)
    return None


def _describe_process(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        return f"process {pid} (`{shorten(hide_passwords(' '.join(process.cmdline())))}` in {process.cwd()})"
    except psutil.Error:
        return f"process {pid}"
