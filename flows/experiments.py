"""Each retraining as a DVC experiment: a commit beside the branch, which `dvc exp` lists, compares and restores.

`dvc exp save` stashes the checkout, detaches HEAD and restores both when it is done: a kill in between would leave
somebody's work in a stash. What it makes is a commit with a reference that DVC takes for an experiment. Here git makes
the same commit from a temporary index. It touches neither the checkout nor the index nor the branch, so the experiment
either exists or does not.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from flows.dag import experiment_reference
from lifecycle.champions.lineage import find_experiment_commit
from problems.errors import RecastError
from project import git, paths

_IDENTITY = {"NAME": "Recast", "EMAIL": "recast@localhost"}


def save_experiment(name: str, problem: str, message: str) -> bool:
    """Save the present state as an experiment, unless there is one of this name; False: git has no commit yet.

    Raises:
        RecastError: git refuses, or is not installed.
    """
    try:
        head = git.find_head()
    except git.GitNotInstalled:
        raise RecastError("git is not installed, so the retraining cannot be recorded as a DVC experiment") from None
    if head is None:
        return False
    if find_experiment_commit(name):
        return True
    with tempfile.TemporaryDirectory() as folder:
        environment = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        environment |= {
            f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in _IDENTITY.items()
        }
        git.run_git("read-tree", "HEAD", environment=environment)
        git.run_git("add", "--update", "--", ".", environment=environment)
        git.run_git("add", "--force", "--", *_untracked(problem), environment=environment)
        tree = git.run_git("write-tree", environment=environment).strip()
        commit = git.run_git("commit-tree", tree, "-p", head, "-m", message, environment=environment).strip()
    git.run_git("update-ref", experiment_reference(head, name), commit)
    return True


def _untracked(problem: str) -> Sequence[str]:
    """The files that belong to the state although git may not track them: DVC's notes, and the settings."""
    pointers = [str(file) for file in sorted(paths.raw_folder(problem).glob("*.dvc"))]
    return [*(name for name in (*paths.ROOT_FILES, paths.DVC_LOCK) if Path(name).exists()), *pointers]
