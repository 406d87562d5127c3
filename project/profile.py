"""The profile of the project's servers: a laptop's, on SQLite and folders, or real stores (docs/servers.md).

`recast up --profile` saves it, and every later command finds the servers with it.
"""

from dataclasses import asdict, dataclass
from typing import Literal

from project.atomic import write_json
from project.paths import STATE
from project.records import read_record

PROFILE_FILE = STATE / "profile.json"


@dataclass(frozen=True)
class Profile:
    """
    Attributes:
        name: laptop: MLflow and Prefect on SQLite; servers: both on PostgreSQL, artifacts on S3.
        mlflow: the address to which runs are written; None: directly to the laptop's database.
        s3: where artifacts go with the profile `servers`, s3://bucket/prefix; None: to a store of the project's own.
    """

    name: Literal["laptop", "servers"] = "laptop"
    mlflow: str | None = None
    s3: str | None = None


def read_profile() -> Profile:
    """The profile that was started last; a laptop's if none was.

    Raises:
        RecastError: the file of the profile cannot be read.
    """
    fix = "delete it, then run `recast up --profile NAME` with this project's profile"
    try:
        return read_record(PROFILE_FILE, Profile, fix)
    except FileNotFoundError:
        return Profile()


def save_profile(profile: Profile) -> None:
    """Let every later command use this profile."""
    write_json(PROFILE_FILE, asdict(profile))
