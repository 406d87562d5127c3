"""Cut a node of a Ray cluster off the network for a minute, in the middle of a grid: a script for root, on Linux.

    python -m tests.scenarios.partition --seconds 60

Three nodes have network namespaces of their own, joined by a bridge; the driver is on the first, and the others see
none of its files, and no Prefect server. One of the two that train is cut off, and is joined again; what ends there is
started again, as whatever watches over a node does. The grid must end complete, its leaderboard the same, bit for bit,
as that of the grid trained in one process.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.flows.runners.test_cluster import BOARD, read_running_bundles
from tests.flows.test_flows import break_architecture
from tests.support import checkout
from tests.support.nodes import Cluster
from tests.support.waiting import wait_until

NAMES = ("recast-head", "recast-one", "recast-two")
BRIDGE = "recast-bridge"


def main(seconds: float) -> None:
    """Cut a node off for so long.

    Raises:
        AssertionError: the grid is not complete, or the leaderboard differs.
    """
    folder = Path(tempfile.mkdtemp(prefix="recast-"))
    work = folder / "work"
    cluster = Cluster(folder, [work], address=_address(0))
    try:
        with _network():
            try:
                _compare(work, cluster, seconds)
            finally:
                cluster.stop()
    finally:
        shutil.rmtree(folder)


def _compare(work: Path, cluster: Cluster, seconds: float) -> None:
    inline = checkout.make_checkout(work / "inline")
    break_architecture(
        inline, "held", "while os.path.exists(os.path.expanduser('~/held')): signal.sigtimedwait([], 0.1)"
    )
    inline.settings(grid={"seeds": [0, 1, 2, 3], "architectures": {"persistence": {}, "held": {}}})
    on_nodes = inline.copy(work / "nodes")
    on_nodes.settings(runner__kind="ray")
    inline.recast("run")
    inline.recast("down")

    cluster.head(_within(0))
    wait_until(lambda: _reachable(cluster), "the head")
    one = cluster.node("one", _address(1), _within(1))
    two = cluster.node("two", _address(2), _within(2))
    for node in (one, two):
        (node.root / "home" / "held").touch()
    driver = subprocess.Popen(
        [*_within(0), sys.executable, "-m", "flows", "run"],
        cwd=on_nodes.root,
        env=on_nodes.environment | cluster.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until(lambda: len(read_running_bundles(on_nodes)) == 2, "two bundles under way", driver)
        print(f"under way: {read_running_bundles(on_nodes)}", flush=True)
        cut = time.monotonic()
        _ip("link", "set", f"{NAMES[1]}-b", "down")
        wait_until(lambda: _address(1) not in str(read_running_bundles(on_nodes)), "the loss to be seen", driver)
        print(f"the driver has given its bundle up {time.monotonic() - cut:.0f} s after the cut", flush=True)
        wait_until(lambda: time.monotonic() - cut >= seconds, "the end of the cut")
        _ip("link", "set", f"{NAMES[1]}-b", "up")
        print(f"joined again after {time.monotonic() - cut:.0f} s", flush=True)
        wait_until(lambda: one.process.poll() is not None, "the node that was cut off to end itself", driver)
        print(f"it has ended itself {time.monotonic() - cut:.0f} s after the cut, and is started again", flush=True)
        again = cluster.node("one", _address(1), _within(1))
        wait_until(lambda: _address(1) in str(read_running_bundles(on_nodes)), "the node to train again", driver)
        print(f"under way: {read_running_bundles(on_nodes)}", flush=True)
        for node in (again, two):
            (node.root / "home" / "held").unlink()
        printed, _ = driver.communicate(timeout=600)
        assert driver.returncode == 0, printed
    finally:
        driver.kill()
        subprocess.run([*_within(0), sys.executable, "-m", "flows", "down"], cwd=on_nodes.root, check=False)
    assert on_nodes.file(BOARD).read_bytes() == inline.file(BOARD).read_bytes(), "the leaderboards differ"
    ended = [json.loads(file.read_text()) for file in on_nodes.root.glob("trials/demo/*/trial.json")]
    assert [trial["status"] for trial in ended] == ["finished"] * 5
    print("the grid is complete: the same leaderboard, bit for bit")


def _reachable(cluster: Cluster) -> bool:
    probe = f"import socket; socket.create_connection(('{cluster.address}', {cluster.port}), timeout=1)"
    return subprocess.run([*_within(0), sys.executable, "-c", probe], capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def _network() -> Iterator[None]:
    """A namespace a node, joined by a bridge."""
    try:
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("link", "set", BRIDGE, "up")
        for i, name in enumerate(NAMES):
            _ip("netns", "add", name)
            _ip("link", "add", f"{name}-a", "type", "veth", "peer", "name", f"{name}-b")
            _ip("link", "set", f"{name}-a", "netns", name)
            _ip("link", "set", f"{name}-b", "master", BRIDGE, "up")
            _ip("-n", name, "address", "add", f"{_address(i)}/24", "dev", f"{name}-a")
            _ip("-n", name, "link", "set", f"{name}-a", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in NAMES:
            # The namespace goes when its last process has; its end of the cable, now.
            subprocess.run(["ip", "link", "delete", f"{name}-b"], check=False)
            subprocess.run(["ip", "netns", "delete", name], check=False)
        subprocess.run(["ip", "link", "delete", BRIDGE], check=False)


def _address(number: int) -> str:
    return f"10.77.0.{number + 1}"


def _within(number: int) -> list[str]:
    return ["ip", "netns", "exec", NAMES[number]]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    chosen = parser.parse_args()
    if os.geteuid():
        sys.exit("error: only root may make network namespaces")
    main(chosen.seconds)
