"""The store that MLflow keeps its runs in: where it is, a client of it, and its errors as messages for a user.

It is `mlruns/mlflow.db` unless MLFLOW_TRACKING_URI or the profile (`recast up`) names another.
"""

import errno
import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
from google.protobuf.json_format import ParseError  # type: ignore[import-untyped]
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from problems.errors import RecastError
from project import profile
from project.paths import MLFLOW_STORE
from project.retry import ServerError, http_status, is_lasting, is_lasting_status
from project.sqlite_files import is_full, is_locked, list_holders
from stages.tracking.database import prepare_database

# It prints each error with its traceback before it raises it. The user gets one line, from `translate_errors`.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

OWN_DATABASE = MLFLOW_STORE / "mlflow.db"

PATIENCE_SECONDS = 240
"""How long to wait for a server that is away, once everything is trained: as Prefect's clients wait for theirs."""

_NOT_ALLOWED = (401, 403)
"""HTTP's codes for a user who is not known, or may not do this."""


class TrackingError(ServerError):
    """MLflow cannot be reached, has failed or refuses; what was trained is on disk all the same."""


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise what MLflow raises in the block as an error that says what the user can do.

    Raises:
        TrackingError: MLflow, or its database, has failed.
    """
    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        raise _failure(error) from error


@contextmanager
def translate_artifact_errors() -> Iterator[None]:
    """The same for everything that writing or reading artifacts in the block may raise.

    Artifacts are stored on a server, in a folder or in a cloud, and each fails in its own way: MLflow passes on what
    `requests`, the system or the cloud's library raises.

    Raises:
        TrackingError: the store has failed.
        OSError: the disk is full.
    """
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:
        # `project.command` explains a full disk better.
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _failure(error) from error


def _failure(error: Exception) -> TrackingError:
    return _explain(
        error,
        "has failed",
        "What is trained is on disk; fix or start MLflow (`recast up` starts the project's own) and run again: what is "
        "missing in MLflow is written then",
    )


def _explain(error: Exception, what: str, fix: str) -> TrackingError:
    """The error for the user.

    Args:
        what: has happened to MLflow.
        fix: what to do about it; unless MLflow answers that this is not allowed, which has a fix of its own.
    """
    status = _http_status(error)
    if is_locked(error) and (database := _database_file()):
        what = "is locked by another process"
        fix = f"Wait for {list_holders(database) or 'the process that writes to it'}, or end it; then run again"
    if is_full(error):
        what = "cannot write, because the disk is full"
        fix = "Free some space and run again: what is missing in MLflow is written then"
    if status in _NOT_ALLOWED:
        # Other programs on MLflow's port answer so too, and MLflow itself does to a host that it does not know.
        what = "refuses this"
        fix = (
            "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to a user who may "
            "write there; or check that it is MLflow that answers there, and that it allows this host. Then run again: "
            "what is missing in MLflow is written then"
        )
    # Without a server, something is wrong with a folder or a database of this machine: that does not pass.
    lasting = not _has_server() or (is_lasting(error) if status is None else is_lasting_status(status))
    return TrackingError(f"MLflow at {tracking_uri()} {what}: {_first_line(error)}", fix, lasting)


def _http_status(error: Exception) -> int | None:
    """The HTTP status of a server's refusal; None: there is none."""
    if not isinstance(error, MlflowException):
        return http_status(error)
    # MLflow turns a status that it does not know into 500, and keeps the status itself in its message only.
    message = re.search(r"failed with error code (\d{3}) ", str(error))
    return int(message[1]) if message else int(error.get_http_status_code())


def _has_server() -> bool:
    """Whether the store is a server of MLflow's or of a database, not a file of this machine."""
    return urlsplit(tracking_uri()).scheme.partition("+")[0] not in ("", "file", "sqlite")


def tracking_uri() -> str:
    """Where the store is: MLFLOW_TRACKING_URI, else the server of the profile, else the project's own database."""
    return os.environ.get("MLFLOW_TRACKING_URI") or profile.read_profile().mlflow or f"sqlite:///{OWN_DATABASE}"


def _database_file() -> Path | None:
    """The file of the store's database; None: the store is not in a SQLite database."""
    return Path(tracking_uri().removeprefix("sqlite:///")) if tracking_uri().startswith("sqlite:///") else None


@contextmanager
def _explain_first_errors(database: Path | None) -> Iterator[None]:
    """Raise what goes wrong when the store is first used as an error that says what the user can do.

    Args:
        database: the file of the store's database; None: the store is a server.

    Raises:
        TrackingError: the store cannot be reached.
        OSError: a file or a folder of this machine refuses.
    """
    try:
        yield
    except RecastError as error:
        # The message says already what to do about the database.
        raise TrackingError(str(error), lasting=True) from error
    except OSError as error:
        # `project.disk` explains it better. A connection that fails is an OSError, too.
        if database is not None or error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _unreachable(error, database) from error
    # Not only errors of MLflow: the driver of a database may be missing, and another program may answer at its address.
    except (MlflowException, SQLAlchemyError, sqlite3.Error, ImportError, ParseError, ValueError) as error:
        raise _unreachable(error, database) from error


def _unreachable(error: Exception, database: Path | None) -> TrackingError:
    """The error of a store that does not answer at its first use.

    Args:
        database: see `_explain_first_errors`.
    """
    fix = "Start it (`recast up` starts the project's own)"
    if database is not None:
        fix = f"Check that {database} can be read and written"
    if "MLFLOW_TRACKING_URI" in os.environ and database != OWN_DATABASE:
        fix += f", or unset MLFLOW_TRACKING_URI to write to {OWN_DATABASE}"
    return _explain(error, "cannot be reached", fix)


def prepare_own_database() -> None:
    """Create the project's own database, or migrate it, unless it is complete.

    Raises:
        TrackingError: it is not a database that can be read; or it has runs, but cannot be migrated, or is in use.
        OSError: it cannot be written.
    """
    with _explain_first_errors(OWN_DATABASE):
        prepare_database(OWN_DATABASE)


@cache
def get_client() -> MlflowClient:
    """A client of the store; the database is created where it does not exist.

    Raises:
        TrackingError: the store cannot be reached.
        OSError: the file of the database cannot be written.
    """
    # An unreachable server should be reported now, not after minutes of MLflow's own retries.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    database = _database_file()
    with _explain_first_errors(database):
        if database:
            prepare_database(database)
        client = MlflowClient(tracking_uri())
        client.search_experiments(max_results=1)
    mlflow.set_tracking_uri(tracking_uri())
    return client


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def get_or_create_experiment(problem: str) -> str:
    """The id of the problem's experiment, created where it does not exist, and restored where somebody deleted it."""
    experiment = get_client().get_experiment_by_name(problem)
    if experiment is not None:
        # A deleted experiment keeps its name, and accepts no runs.
        if experiment.lifecycle_stage == LifecycleStage.DELETED:
            get_client().restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)
    is_local = tracking_uri().startswith("sqlite:")
    location = (MLFLOW_STORE / "artifacts" / problem).absolute().as_uri() if is_local else None
    # The kind decides which of MLflow's pages an experiment opens with: ours is about models, not prompts.
    kind = {"mlflow.experimentKind": "custom_model_development"}
    return str(get_client().create_experiment(problem, artifact_location=location, tags=kind))
