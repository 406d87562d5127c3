"""The files of SQLite databases: copies of them, and who uses them."""

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import psutil

SIDE_FILES = ("-journal", "-wal", "-shm")
"""The ends of the names of the files in which SQLite keeps what is not in a database yet."""


def copy_database(database: Path, target: Path) -> Path:
    """Copy a SQLite database as it is at one moment, even if others write to it, and return the copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(database)) as original, closing(sqlite3.connect(target)) as copy:
        original.backup(copy)
    return target


def remove_database(file: Path) -> None:
    """Remove a database and its side files."""
    file.unlink(missing_ok=True)
    remove_side_files(file)


def remove_side_files(file: Path) -> None:
    """Remove the files that SQLite would take for a part of the next database of this name."""
    for end in SIDE_FILES:
        file.with_name(file.name + end).unlink(missing_ok=True)


def is_locked(error: BaseException) -> bool:
    """Whether an error says that another process holds the lock of a SQLite database."""
    return "database is locked" in str(error)


def is_full(error: BaseException) -> bool:
    """Whether an error says that SQLite has found no space on the disk."""
    return "database or disk is full" in str(error)


def list_holders(file: Path) -> str:
    """The other processes of this user that have a file open, for a message; empty: none."""
    holders = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and any(
                Path(opened.path) == file.absolute() for opened in process.open_files()
            ):
                holders.append(f"process {process.pid} ({process.name()})")
    return ", ".join(holders)
