"""Nodes of a Ray cluster on this machine, each one like a machine of its own.

A node has its own home, cache and temporary files. Where the system lets an ordinary user create namespaces, it cannot
see the project's folder.
"""

import contextlib
import os
import secrets
import shlex
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support.checkout import BIN
from tests.support.waiting import PATIENCE_SECONDS

START_SECONDS = 120
POLL_SECONDS = 0.1
HEAD = "127.0.0.2"
"""Each node has its own address on loopback: Ray replaces 127.0.0.1 by the machine's address in the network."""


def isolate_command(hidden: Sequence[Path]) -> list[str]:
    """The words before a command that give it its own processes and hide these folders from it; none where the system
    does not allow namespaces.
    """
    unshare = ["unshare", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode
    ):
        return []
    hide = "".join(f"mount -t tmpfs none {shlex.quote(str(folder))} && " for folder in hidden)
    return [*unshare, "sh", "-c", f'{hide}exec "$@"', "sh"]


def listens(host: str, port: int) -> bool:
    """Whether something listens on this port."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    """A port of loopback on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Node:
    """A node that runs.

    Attributes:
        root: the folder of its home, cache and temporary files.
    """

    root: Path
    process: subprocess.Popen[bytes]

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def kill(self) -> None:
        """Kill all that runs on it at once, as when the power fails."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        self.process.kill()
        self.process.wait(PATIENCE_SECONDS)


@dataclass
class Cluster:
    """A head on which nothing is trained, and nodes of one CPU.

    Attributes:
        hidden: folders that the nodes cannot see, where the system allows to hide them.
        address: of the head.
        settings: Ray's own settings, in the environment of its nodes.
        environment: the variables of programs that connect to the cluster.
    """

    root: Path
    hidden: Sequence[Path] = ()
    address: str = HEAD
    settings: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    nodes: list[Node] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "RAY_ADDRESS": f"{self.address}:{self.port}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def start(self, name: str, *options: str, within: Sequence[str] = ()) -> Node:
        """Start a node; it joins the cluster by itself.

        Args:
            within: the command that starts it, before its own.
        """
        root = self.root / name
        (root / "home").mkdir(parents=True, exist_ok=True)
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_"))}
        own = {"HOME": str(root / "home"), "RECAST_CACHE": str(root / "cache"), "TMPDIR": str(root)}
        command = [str(BIN / "ray"), "start", "--block", f"--temp-dir={root / 'ray'}", "--disable-usage-stats"]
        process = subprocess.Popen(
            [*within, *command, "--dashboard-agent-listen-port=0", *options],
            cwd=root,
            env=inherited | own | self.environment | dict(self.settings),
            stdout=(root / "log").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.nodes.append(Node(root, process))
        return self.nodes[-1]

    def head(self, within: Sequence[str] = ()) -> Node:
        """Start the head."""
        options = (
            f"--port={self.port}",
            f"--node-ip-address={self.address}",
            "--num-cpus=0",
            "--include-dashboard=false",
        )
        return self.start("head", "--head", *options, within=within)

    def node(self, name: str, address: str | None = None, within: Sequence[str] = ()) -> Node:
        """Start a node that trains one trial at a time."""
        address = address or f"127.0.0.{len(self.nodes) + 2}"
        options = (f"--address={self.address}:{self.port}", f"--node-ip-address={address}", "--num-cpus=1")
        return self.start(name, *options, within=[*within, *isolate_command(self.hidden)])

    def stop(self) -> None:
        """End all nodes."""
        for node in self.nodes:
            if node.process.poll() is None:
                node.kill()
