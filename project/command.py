"""The command line of a stage: `python -m stages.<name> <problem>`."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from problems.errors import RecastError
from project.disk import explain_disk_errors
from project.lock import hold_pipeline_lock
from project.paths import INTERRUPTED_RESTORE, require_root
from project.tables import keep_tables


def run_stage(stage: Callable[[str], None]) -> None:
    """Run a stage for the problem on the command line; errors that the user can fix end with status 1."""
    parser = argparse.ArgumentParser(description=(stage.__doc__ or "").strip())
    parser.add_argument("problem", help="a problem that params.yaml declares, such as jena")
    problem = parser.parse_args().problem
    try:
        require_root()
        if INTERRUPTED_RESTORE.exists():
            raise RecastError(f"{INTERRUPTED_RESTORE}: a restore was interrupted; `recast status` completes it")
        with explain_disk_errors(), hold_pipeline_lock(), keep_tables(f"{Path(sys.argv[0]).stem}@{problem}"):
            stage(problem)
    except RecastError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
