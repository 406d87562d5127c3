"""The three runners, and a Ray cluster whose nodes come and go and share no file."""

import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.test_flows import break_architecture
from tests.support.checkout import Checkout
from tests.support.nodes import HEAD, Cluster, isolate_command, listens
from tests.support.waiting import wait_for_file, wait_until

BOARD = "data/evaluate/demo/leaderboard.json"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head and a node, which do not see where the tests have their checkouts."""
    # The path of a socket has a hundred characters at most.
    root = Path(tempfile.mkdtemp(prefix="recast-"))
    # A node that is silent for five seconds is lost; else it takes Ray a minute.
    quick = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "2000"}
    cluster = Cluster(root, [tmp_path_factory.getbasetemp()], settings=quick)
    try:
        cluster.head()
        wait_until(lambda: listens(HEAD, cluster.port), "the head")
        cluster.node("one")
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(root)


def copy_untrained(finished: Checkout, root: Path) -> Checkout:
    """A copy of a checkout without what its grid has left, which DVC cannot restore either."""
    copy = finished.copy(root)
    for name in ("trials", "data/train", "data/evaluate", ".dvc/cache"):
        shutil.rmtree(copy.file(name))
    return copy


@pytest.mark.parametrize("kind", ["local", "ray"])
def test_the_runner_decides_no_result(kind: str, finished: Checkout, cluster: Cluster, tmp_path: Path) -> None:
    """`finished` was trained in one process."""
    other = copy_untrained(finished, tmp_path / kind)
    other.settings(runner__kind=kind, runner__slots_per_gpu="auto")
    other.recast("run", **(cluster.environment if kind == "ray" else {}))
    assert other.file(BOARD).read_bytes() == finished.file(BOARD).read_bytes()
    assert "up to date" in other.dvc("status")
    notes = [json.loads(file.read_text()) for file in other.root.glob("trials/demo/*/run.json")]
    assert len(notes) == 5
    assert all(note["logged"] for note in notes)
    assert all(note["peak_bytes"] > 10 << 20 and note["shape"] for note in notes), "what each shape took is known"


def test_a_cluster_that_is_not_there_is_told_at_once(finished: Checkout, tmp_path: Path) -> None:
    lost = copy_untrained(finished, tmp_path / "lost")
    lost.settings(runner__kind="ray", runner__address="127.0.0.1:1")
    printed = lost.recast("run", status=1)
    assert "Ray at 127.0.0.1:1 cannot be reached" in printed
    assert "Traceback" not in printed


def read_running_bundles(where: Checkout) -> dict[str, str]:
    """The device of each bundle that a grid says it trains now, by the bundle's label."""
    devices: dict[str, str] = {}
    for file in where.root.glob(".recast/running/*.json"):
        with contextlib.suppress(FileNotFoundError):
            devices |= {bundle["label"]: bundle["device"] for bundle in json.loads(file.read_text())["running"]}
    return devices


@pytest.mark.long
def test_a_node_is_killed_and_another_joins(finished: Checkout, cluster: Cluster, tmp_path: Path) -> None:
    inline = copy_untrained(finished, tmp_path / "inline")
    # No node has this source, but by Ray. On a node where there is such a file, it waits.
    break_architecture(
        inline, "held", "while os.path.exists(os.path.expanduser('~/held')): signal.sigtimedwait([], 0.1)"
    )
    inline.settings(grid={"seeds": [0, 1, 2], "architectures": {"persistence": {}, "held": {}}}, runner__kind="ray")
    on_nodes = inline.copy(tmp_path / "ray")
    inline.settings(runner__kind="inline")
    inline.recast("run")

    one, two = cluster.nodes[1], cluster.node("two")
    for node in (one, two):
        (node.root / "home" / "held").touch()
    process = on_nodes.start(sys.executable, "-m", "flows", "run", **cluster.environment)
    for node in (one, two):
        wait_for_file(node, "cache/*/trials/demo/*/run.json", process)
    both = {"held seed=0", "held seed=1"}
    wait_until(lambda: both <= read_running_bundles(on_nodes).keys(), "two bundles under way", process)
    printed = on_nodes.recast("status")
    for text in ("127.0.0.3", "127.0.0.4", "held seed=0", "held seed=1", "2 more wait"):
        assert text in printed
    assert printed.count("1 of 1") == 2, printed
    one.kill()
    three = cluster.node("three")
    wait_for_file(three, "cache/*/trials/demo/*/trial.json", process)
    (two.root / "home" / "held").unlink()
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    assert on_nodes.file(BOARD).read_bytes() == inline.file(BOARD).read_bytes()
    assert "up to date" in on_nodes.dvc("status")
    assert "No grid is being trained" in on_nodes.recast("status")


@pytest.mark.long
def test_a_bundle_that_kills_its_worker_is_told_and_no_other_is_lost(
    finished: Checkout, cluster: Cluster, tmp_path: Path
) -> None:
    dying = copy_untrained(finished, tmp_path / "dying")
    break_architecture(dying, "deadly", "os.kill(os.getpid(), signal.SIGKILL)")
    dying.settings(grid={"seeds": [0], "architectures": {"deadly": {}, "dense": {"units": [4, 5]}}}, runner__kind="ray")
    printed = dying.recast("run", status=3, **cluster.environment)
    assert "its process died, and died again when it was tried alone" in printed
    listed = json.loads(dying.file("data/train/demo/trials.json").read_text())
    assert [trial["status"] for trial in listed] == ["failed", "finished", "finished"]


@pytest.mark.long
@pytest.mark.skipif(not isolate_command([]), reason="the system lets an ordinary user make no namespaces")
def test_what_a_full_disk_refuses_goes_to_another_node(finished: Checkout, cluster: Cluster, tmp_path: Path) -> None:
    disk = cluster.root / "full" / "cache"
    disk.mkdir(parents=True)
    mount = f'mount -t tmpfs -o size=4k none {disk} && exec "$@"'
    full = cluster.node("full", within=["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh"])
    try:
        other = copy_untrained(finished, tmp_path / "full")
        other.settings(runner__kind="ray")
        printed = other.recast("run", **cluster.environment)
    finally:
        full.kill()
    assert "the disk is full" in printed
    assert "goes to other nodes" in printed
    assert "Traceback" not in printed
    assert other.file(BOARD).read_bytes() == finished.file(BOARD).read_bytes()
