"""PostgreSQL of the project's own, from the system's packages: on loopback, its data below `.recast`.

Passwords are in a file that PostgreSQL's clients read themselves (PGPASSFILE): they stand in no address, no argument
and no variable.
"""

import os
import pwd
import shutil
import subprocess
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from infra import secrets
from problems.errors import RecastError
from project.atomic import replaced_folder
from project.paths import STATE

DATA = STATE / "postgres"
DATABASES = ("mlflow", "prefect")

ROLE = "recast"
"""Owns the databases, and may nothing else."""

ADMIN = "postgres"

OWNER = "postgres"
"""The user, of Debian's package, whose process it is when root starts it: PostgreSQL refuses to be root's."""

PACKAGED = Path("/usr/lib/postgresql")

CONNECTIONS = 300
"""At once: those of MLflow's server, see there, and a few dozen of Prefect's and of commands."""

TIMEOUT_SECONDS = 10
"""A server on loopback that has not taken a connection by then hangs."""


def program(name: str) -> Path:
    """A program of PostgreSQL: of the version that the data are of, else of the newest that is installed.

    Raises:
        RecastError: there is none.
    """
    version = DATA / "PG_VERSION"
    wanted = version.read_text(encoding="utf-8").strip() if version.exists() else None
    packaged = sorted(PACKAGED.glob("*/bin"), key=lambda folder: float(folder.parent.name), reverse=True)
    for folder in packaged:
        if (folder / name).exists() and wanted in (None, folder.parent.name):
            return folder / name
    found = shutil.which(name)
    if found is not None and wanted in (None, _major(found)):
        return Path(found)
    package = f"postgresql-{wanted}" if wanted else "postgresql"
    raise RecastError(f"PostgreSQL's {name} is not installed: `apt install {package}`, or put its programs on PATH")


def _major(found: str) -> str:
    """The major version of a program, such as 15."""
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    return said.split("(PostgreSQL)")[-1].split()[0].partition(".")[0]


def passwords() -> Path:
    """The file by which clients know the passwords, in PostgreSQL's format."""

    def made() -> str:
        return "".join(f"*:*:*:{role}:{secrets.password()}\n" for role in (ADMIN, ROLE))

    return secrets.kept("pgpass", made).absolute()


def _password(role: str) -> str:
    lines = passwords().read_text(encoding="utf-8").splitlines()
    return next(line.rpartition(":")[2] for line in lines if line.split(":")[3] == role)


def environment() -> dict[str, str]:
    """What a client of the databases needs."""
    return {"PGPASSFILE": str(passwords())}


def address(port: int, database: str, driver: str = "postgresql", role: str = ROLE) -> str:
    """The address of a database, as SQLAlchemy writes it."""
    return f"{driver}://{role}@127.0.0.1:{port}/{database}"


def engine(port: int, database: str, role: str = ROLE, **options: Any) -> Engine:
    """SQLAlchemy's way into a database, with the role's password.

    Args:
        options: of `create_engine`.
    """
    known = {"passfile": str(passwords()), "connect_timeout": TIMEOUT_SECONDS}
    return create_engine(address(port, database, role=role), connect_args=known, **options)


def owner() -> dict[str, Any]:
    """How a process is started as the user that may be PostgreSQL's: arguments of `subprocess`."""
    if os.geteuid() != 0:
        return {}
    try:
        user = pwd.getpwnam(OWNER)
    except KeyError:
        raise RecastError(
            f"PostgreSQL does not run as root, and there is no user {OWNER}: `apt install postgresql` makes it"
        ) from None
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": "/"}


def command(port: int, folder: str) -> list[str]:
    """The command of the server, the data being in `folder`."""
    return [
        *(str(program("postgres")), "-D", folder, "-p", str(port)),
        *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
        *("-c", f"max_connections={CONNECTIONS}"),
    ]


def opened(folder: Path) -> tuple[str, tuple[int, ...]]:
    """The name by which PostgreSQL's user finds a folder, and the descriptors that its process has to inherit for that.

    Root's checkout may be below folders that no other user can enter; what a process holds open it can name all the
    same.
    """
    if os.geteuid() != 0:
        return str(folder.absolute()), ()
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    return f"/proc/self/fd/{descriptor}", (descriptor,)


def create() -> None:
    """Make the data folder where there is none; it is there whole or not at all.

    Raises:
        RecastError: PostgreSQL is not installed, or has refused.
    """
    if (DATA / "PG_VERSION").exists():
        return
    initdb, run_as = program("initdb"), owner()
    with replaced_folder(DATA) as temporary, NamedTemporaryFile("w", encoding="utf-8") as handed:
        temporary.chmod(0o700)
        handed.write(_password(ADMIN))
        handed.flush()
        if run_as:
            for made in (temporary, handed.name):
                os.chown(made, run_as["user"], run_as["group"])
        folder, descriptors = opened(temporary)
        ended = subprocess.run(
            [
                *(str(initdb), "-D", folder, "-U", ADMIN, "--pwfile", handed.name, "-A", "scram-sha-256"),
                *("-E", "UTF8", "--locale", "C.UTF-8", "--data-checksums"),
            ],
            capture_output=True,
            text=True,
            check=False,
            pass_fds=descriptors,
            **run_as,
        )
        for descriptor in descriptors:
            os.close(descriptor)
        if ended.returncode:
            raise RecastError(f"PostgreSQL's initdb has failed: {ended.stderr.strip() or ended.stdout.strip()}")


def is_ready(port: int) -> bool:
    """Whether the server takes connections."""
    asked = [str(program("pg_isready")), "--quiet", "--host", "127.0.0.1", "--port", str(port)]
    return subprocess.run(asked, check=False).returncode == 0


def prepare(port: int) -> None:
    """Make the role and its databases where they are not there yet.

    Raises:
        RecastError: the server has refused.
    """
    admin = engine(port, "postgres", ADMIN, isolation_level="AUTOCOMMIT")
    try:
        with admin.connect() as connection:
            if not connection.scalar(text("select 1 from pg_roles where rolname = :role"), {"role": ROLE}):
                # It takes no parameter here; the password is of hexadecimal digits.
                connection.execute(text(f"create role {ROLE} login password '{_password(ROLE)}'"))
            there = set(connection.scalars(text("select datname from pg_database")))
            for database in DATABASES:
                if database not in there:
                    connection.execute(text(f"create database {database} owner {ROLE}"))
    except SQLAlchemyError as error:
        said = str(error).splitlines()[0]
        raise RecastError(f"PostgreSQL at 127.0.0.1:{port} has refused: {said}; its log is {DATA}.log") from error
    finally:
        admin.dispose()
