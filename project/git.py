"""TODO: what project.git is for."""

import subprocess
from functools import cache


@cache
def commit() -> str:
    """The commit that is checked out, with `-dirty` where tracked files differ from it; nothing where there is none."""
    try:
        head = subprocess.run(["git", "rev-parse", "--verify", "HEAD"], capture_output=True, text=True, check=False)
        # The pipeline itself writes dvc.lock as it goes.
        compare = ["git", "diff", "--quiet", "HEAD", "--", ".", ":(exclude)dvc.lock"]
        changed = subprocess.run(compare, capture_output=True, check=False).returncode == 1
    except FileNotFoundError:
        # There is no git: the tag is left out.
        return ""
    return head.stdout.strip() + ("-dirty" if changed else "") if head.returncode == 0 else ""
