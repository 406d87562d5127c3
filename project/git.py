"""The project's only way to run git: in the checkout, with messages that say what failed."""

import logging
import os
import subprocess
from functools import cache

from problems.errors import RecastError


class GitNotInstalled(RecastError):
    """There is no program `git`."""


class NotARepository(RecastError):
    """The current folder is not in a git repository."""


def run_git(*arguments: str, environment: dict[str, str] | None = None) -> str:
    """Run git in the current folder.

    Args:
        environment: variables to set for it.

    Returns:
        What it prints.

    Raises:
        GitNotInstalled, NotARepository: there is nothing to ask.
        RecastError: git has failed.
    """
    process = _run(arguments, environment)
    if process.returncode:
        raise RecastError(f"git {arguments[0]}: {process.stderr.strip() or process.stdout.strip()}")
    return process.stdout


def find_head() -> str | None:
    """The commit that is checked out; None: there is no commit yet, or no repository.

    Raises:
        GitNotInstalled: there is no git to ask.
        RecastError: git has failed.
    """
    arguments = ("rev-parse", "--verify", "--quiet", "HEAD")
    try:
        process = _run(arguments)
    except NotARepository:
        return None
    # Without a commit, git prints nothing.
    if process.returncode and process.stderr.strip():
        raise RecastError(f"git {arguments[0]}: {process.stderr.strip()}")
    return process.stdout.strip() or None


def read_committed_file(commit: str, file: str) -> str | None:
    """A file as it is in a commit; None: the commit does not have it.

    Args:
        file: its path, relative to the current folder.

    Raises:
        RecastError: git has failed, or has no such commit.
    """
    if not run_git("ls-tree", "--name-only", commit, "--", file).strip():
        return None
    return run_git("show", f"{commit}:./{file}")


@cache
def describe_commit() -> str:
    """The commit that is checked out, with `-dirty` where tracked files differ from it.

    Empty where there is no git, no repository or no commit. Any other failure is logged, and does not stop the training
    of a trial, for which the commit is only a note.
    """
    try:
        head = find_head()
        # The pipeline itself writes dvc.lock while it runs.
        return "" if head is None else f"{head}-dirty" if _differs_from_head("dvc.lock") else head
    except (GitNotInstalled, NotARepository):
        return ""
    except RecastError as error:
        logging.getLogger(__name__).warning("the commit is not recorded: %s", error)
        return ""


def _differs_from_head(ignored: str) -> bool:
    """Whether tracked files, except one, differ from the commit that is checked out."""
    process = _run(("diff", "--quiet", "HEAD", "--", ".", f":(exclude){ignored}"))
    if process.returncode not in (0, 1):
        raise RecastError(f"git diff: {process.stderr.strip()}")
    return process.returncode == 1


def _run(arguments: tuple[str, ...], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run git, whatever its exit status.

    Raises:
        GitNotInstalled, NotARepository: there is nothing to ask.
    """
    # In English, because one of its messages is read below.
    variables = os.environ | {"LC_ALL": "C"} | (environment or {})
    try:
        process = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, env=variables)
    except FileNotFoundError:
        raise GitNotInstalled("git is not installed") from None
    if process.returncode and "not a git repository" in process.stderr:
        raise NotARepository(f"git {arguments[0]}: {process.stderr.strip()}")
    return process
