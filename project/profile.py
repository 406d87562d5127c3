"""Which servers of its own a project uses: those of a laptop, on SQLite and folders, or real stores' (docs/servers.md).

`recast up --profile` notes it, and every later command finds the servers by it.
"""

from dataclasses import asdict, dataclass
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from problems.errors import RecastError
from project.atomic import write_json
from project.paths import STATE

FILE = STATE / "profile.json"


@dataclass(frozen=True)
class Profile:
    """
    Attributes:
        name: laptop: MLflow and Prefect on SQLite; servers: both on PostgreSQL, artifacts on S3.
        mlflow: the address by which runs are written; None: straight to the database of the laptop.
        s3: where artifacts go, s3://bucket/prefix, when it is no store of the project's own.
    """

    name: Literal["laptop", "servers"] = "laptop"
    mlflow: str | None = None
    s3: str | None = None


def read() -> Profile:
    """The profile that was brought up last; a laptop's where none was.

    Raises:
        RecastError: the note cannot be read.
    """
    try:
        return TypeAdapter(Profile).validate_json(FILE.read_bytes())
    except FileNotFoundError:
        return Profile()
    except ValidationError as error:
        raise RecastError(
            f"{FILE} cannot be read; delete it, then `recast up --profile NAME` with the profile that this project uses"
        ) from error


def note(profile: Profile) -> None:
    """Have every later command use this profile."""
    write_json(FILE, asdict(profile))
