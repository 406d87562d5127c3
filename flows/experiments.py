"""Each retraining as a DVC experiment: a commit beside the branch, which `dvc exp` lists, compares and restores.

`dvc exp save` stashes the checkout, detaches HEAD and puts both back when it is done: a kill in between would leave
somebody's work in a stash. What it makes is a commit whose name is that of an experiment. Here git makes the same from
an index of its own, and neither checkout, index nor branch is touched: the experiment is there, or it is not.
"""

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lifecycle.champions.lineage import LOCK, reference
from problems.errors import RecastError
from project import paths

_IDENTITY = {"NAME": "Recast", "EMAIL": "recast@localhost"}


def save(name: str, problem: str, message: str) -> bool:
    """Save the present state as an experiment of this name, unless there is one; False where git has no commit yet.

    Raises:
        RecastError: git refuses.
    """
    from dvc.repo.experiments.refs import ExpRefInfo

    head = _git("rev-parse", "--verify", "--quiet", "HEAD", check=False).strip()
    if not head:
        return False
    if reference(name):
        return True
    with tempfile.TemporaryDirectory() as folder:
        environment = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        environment |= {f"GIT_{who}_{what}": to for who in ("AUTHOR", "COMMITTER") for what, to in _IDENTITY.items()}
        _git("read-tree", "HEAD", environment=environment)
        _git("add", "--update", "--", ".", environment=environment)
        _git("add", "--force", "--", *_untracked(problem), environment=environment)
        tree = _git("write-tree", environment=environment).strip()
        commit = _git("commit-tree", tree, "-p", head, "-m", message, environment=environment).strip()
    _git("update-ref", str(ExpRefInfo(head, name)), commit)
    return True


def _untracked(problem: str) -> Sequence[str]:
    """The files that belong to the state though git may not track them: what DVC has noted, and the settings."""
    pointers = [str(file) for file in sorted(paths.raw(problem).glob("*.dvc"))]
    return [*(name for name in (*paths.FILES, LOCK) if Path(name).exists()), *pointers]


def _git(*arguments: str, check: bool = True, environment: dict[str, str] | None = None) -> str:
    """What git prints.

    Raises:
        RecastError: it refuses, or is not there.
    """
    try:
        ended = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=False, env=os.environ | (environment or {})
        )
    except FileNotFoundError:
        raise RecastError("git is not installed, so the retraining cannot be recorded as a DVC experiment") from None
    if check and ended.returncode:
        raise RecastError(f"git {arguments[0]}: {ended.stderr.strip() or ended.stdout.strip()}")
    return ended.stdout
