"""Prefect's server, mended for SQLAlchemy 2.1.

    python -m flows.server <arguments of `prefect server start`>

Prefect 3.8.8 inserts the runs of a schedule with a key, `state`, that is a hybrid attribute of its model. SQLAlchemy
2.0 passed over such keys; 2.1 refuses them, so that the scheduler fails and no schedule ever has a run. Told that
there is nothing to set for it, 2.1 passes over it too. With SQLAlchemy 2.0 this changes nothing.
"""

import sys

from prefect.cli import app
from prefect.server.database.orm_models import FlowRun

FlowRun.__dict__["state"].bulk_dml_setter = lambda cls, mapping, value: None

if __name__ == "__main__":
    sys.argv[1:1] = ["server", "start"]
    app()
