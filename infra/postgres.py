"""The project's own PostgreSQL, from the system's packages: on loopback, with its data below `.recast`.

The passwords are in a file that PostgreSQL's clients read themselves (PGPASSFILE): they are in no address, no argument
and no variable.
"""

import os
import pwd
import shutil
import subprocess
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

from infra import secrets
from problems.errors import RecastError
from project.atomic import replace_folder
from project.paths import STATE

if TYPE_CHECKING:
    from sqlalchemy import Engine

DATA = STATE / "postgres"
DATABASES = ("mlflow", "prefect")

ROLE = "recast"
"""The role that owns the databases, and may do nothing else."""

ADMIN = "postgres"

OWNER = "postgres"
"""The user, from Debian's package, as whom root starts the server: PostgreSQL refuses to run as root."""

PACKAGED_PROGRAMS = Path("/usr/lib/postgresql")

MAX_CONNECTIONS = 300
"""The most connections at the same time: those of MLflow's server (`servers.MLFLOW_CONNECTIONS`), and a few dozen of
Prefect's server and of commands."""

TIMEOUT_SECONDS = 10
"""A server on loopback that has not accepted a connection after this time hangs."""


def program(name: str) -> Path:
    """A program of PostgreSQL, of the version that wrote the data, or else of the newest version that is installed.

    Raises:
        RecastError: it is not installed.
    """
    version_file = DATA / "PG_VERSION"
    version = version_file.read_text(encoding="utf-8").strip() if version_file.exists() else None
    packaged = sorted(PACKAGED_PROGRAMS.glob("*/bin"), key=lambda folder: float(folder.parent.name), reverse=True)
    for folder in packaged:
        if (folder / name).exists() and version in (None, folder.parent.name):
            return folder / name
    path = shutil.which(name)
    if path is not None and version in (None, _major_version(path)):
        return Path(path)
    package = f"postgresql-{version}" if version else "postgresql"
    raise RecastError(f"PostgreSQL's {name} is not installed: `apt install {package}`, or put its programs on PATH")


def _major_version(path: str) -> str:
    """The major version of a program, such as 15."""
    output = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    return output.split("(PostgreSQL)")[-1].split()[0].partition(".")[0]


def password_file() -> Path:
    """The file from which clients read the passwords, in PostgreSQL's format."""

    def create() -> str:
        return "".join(f"*:*:*:{role}:{secrets.new_password()}\n" for role in (ADMIN, ROLE))

    return secrets.load_or_create_secret("pgpass", create).absolute()


def _password(role: str) -> str:
    lines = password_file().read_text(encoding="utf-8").splitlines()
    return next(line.rpartition(":")[2] for line in lines if line.split(":")[3] == role)


def client_environment() -> dict[str, str]:
    """The environment variables that a client of the databases needs."""
    return {"PGPASSFILE": str(password_file())}


def address(port: int, database: str, driver: str = "postgresql", role: str = ROLE) -> str:
    """The address of a database, as SQLAlchemy writes it."""
    return f"{driver}://{role}@127.0.0.1:{port}/{database}"


def engine(port: int, database: str, role: str = ROLE, **options: Any) -> "Engine":
    """An engine of SQLAlchemy for a database, with the role's password.

    Args:
        options: arguments of `create_engine`.
    """
    from sqlalchemy import create_engine  # noqa: PLC0415 - it is slow to load, and most commands only look for servers

    arguments = {"passfile": str(password_file()), "connect_timeout": TIMEOUT_SECONDS}
    return create_engine(address(port, database, role=role), connect_args=arguments, **options)


def process_user() -> dict[str, Any]:
    """Arguments of `subprocess` that start a process as a user as whom PostgreSQL may run.

    Raises:
        RecastError: this is root, and there is no such user.
    """
    if os.geteuid() != 0:
        return {}
    try:
        user = pwd.getpwnam(OWNER)
    except KeyError:
        raise RecastError(
            f"PostgreSQL does not run as root, and there is no user {OWNER}: `apt install postgresql` creates it"
        ) from None
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": "/"}


def command(port: int, folder: str) -> list[str]:
    """The command that starts the server, with its data in `folder`."""
    return [
        *(str(program("postgres")), "-D", folder, "-p", str(port)),
        *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
        *("-c", f"max_connections={MAX_CONNECTIONS}"),
    ]


def accessible_folder(folder: Path) -> tuple[str, tuple[int, ...]]:
    """The name by which PostgreSQL's user can reach a folder, and the file descriptors that its process must inherit.

    A checkout of root may be below folders that no other user can enter. A process can still reach a folder that it has
    open.
    """
    if os.geteuid() != 0:
        return str(folder.absolute()), ()
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    return f"/proc/self/fd/{descriptor}", (descriptor,)


def create_cluster() -> None:
    """Create the data folder if it does not exist; it is created as a whole or not at all.

    Raises:
        RecastError: PostgreSQL is not installed, or cannot create it.
    """
    if (DATA / "PG_VERSION").exists():
        return
    initdb, run_as = program("initdb"), process_user()
    with replace_folder(DATA) as temporary, NamedTemporaryFile("w", encoding="utf-8") as secret:
        temporary.chmod(0o700)
        secret.write(_password(ADMIN))
        secret.flush()
        if run_as:
            for path in (temporary, secret.name):
                os.chown(path, run_as["user"], run_as["group"])
        folder, descriptors = accessible_folder(temporary)
        result = subprocess.run(
            [
                *(str(initdb), "-D", folder, "-U", ADMIN, "--pwfile", secret.name, "-A", "scram-sha-256"),
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
        if result.returncode:
            raise RecastError(f"PostgreSQL's initdb has failed: {result.stderr.strip() or result.stdout.strip()}")


def is_ready(port: int) -> bool:
    """Whether the server accepts connections."""
    command = [str(program("pg_isready")), "--quiet", "--host", "127.0.0.1", "--port", str(port)]
    return subprocess.run(command, check=False).returncode == 0


def create_databases(port: int) -> None:
    """Create the role and its databases as far as they do not exist.

    Raises:
        RecastError: the server refuses.
    """
    from sqlalchemy import text  # noqa: PLC0415 - see `engine`
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 - see `engine`

    admin = engine(port, "postgres", ADMIN, isolation_level="AUTOCOMMIT")
    try:
        with admin.connect() as connection:
            if not connection.scalar(text("select 1 from pg_roles where rolname = :role"), {"role": ROLE}):
                # This statement takes no parameters; the password consists of hexadecimal digits.
                connection.execute(text(f"create role {ROLE} login password '{_password(ROLE)}'"))
            existing = set(connection.scalars(text("select datname from pg_database")))
            for database in DATABASES:
                if database not in existing:
                    connection.execute(text(f"create database {database} owner {ROLE}"))
    except SQLAlchemyError as error:
        reason = str(error).splitlines()[0]
        raise RecastError(f"PostgreSQL at 127.0.0.1:{port} has refused: {reason}; its log is {DATA}.log") from error
    finally:
        admin.dispose()
