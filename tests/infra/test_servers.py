"""The profile `servers`: real stores on loopback, the same commands; a laptop's project comes to them whole."""

import json
import re
import shutil
import socket
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from dvc.repo import Repo
from mlflow import MlflowClient
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.input.run_input import keyset_from_paused_state
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Paused
from ruamel.yaml import YAML

from flows import migrate as migration
from infra import postgres, server_process
from infra import servers as own
from project import profile
from tests.support import checkout
from tests.support.checkout import ROOT, Checkout, copy_database
from tests.support.waiting import PATIENCE_SECONDS

T = TypeVar("T")

pytestmark = pytest.mark.skipif(
    not (list(postgres.PACKAGED_PROGRAMS.glob("*/bin/initdb")) or shutil.which("initdb")),
    reason="PostgreSQL is not installed: apt install postgresql",
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """A checkout whose servers run. No user but its owner can enter the folder."""
    # Each process of MLflow's server loads MLflow.
    made = checkout.make_checkout(tmp_path_factory.mktemp("cluster") / "checkout", MLFLOW_WORKERS="1")
    made.root.parent.chmod(0o700)
    made.settings(grid__seeds=[0], grid__architectures={"persistence": {}, "dense": {"units": [4]}})
    try:
        made.recast("up", "--profile", "servers", new_process=True)
        yield made
    finally:
        made.recast("down", "--force")


def read_record(cluster: Checkout, server: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(cluster.file(f".recast/{server}.json").read_text())
    return record


def query(cluster: Checkout, database: str, query: str, password: bool = True) -> subprocess.CompletedProcess[str]:
    port = read_record(cluster, "postgres")["port"]
    address = f"postgresql://{postgres.ROLE}@127.0.0.1:{port}/{database}"
    variables = {"PGPASSFILE": str(cluster.file(".recast/secrets/pgpass"))} if password else {}
    command = [shutil.which("psql") or str(postgres.program("psql")), address, "-Atwc", query]
    return subprocess.run(command, env=cluster.environment | variables, capture_output=True, text=True, check=False)


def _processes(cluster: Checkout) -> list[psutil.Process]:
    """The processes of the servers, by their records."""
    processes = []
    for file in cluster.file(".recast").glob("*.json"):
        record = json.loads(file.read_text())
        if "pid" in record:
            process = psutil.Process(record["pid"])
            processes += [process, *process.children(recursive=True)]
    return processes


def _ask_all(processes: list[psutil.Process], question: Callable[[psutil.Process], T]) -> list[T]:
    """The answer of each process, without those that served a connection and have ended since."""
    answers = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            answers.append(question(process))
    return answers


def test_a_run_writes_to_the_stores_and_to_no_database_of_a_laptop(cluster: Checkout) -> None:
    assert "dense" in cluster.recast("run")
    assert int(query(cluster, "mlflow", "select count(*) from runs").stdout) == 3
    assert int(query(cluster, "prefect", "select count(*) from flow_run").stdout) >= 2
    assert not cluster.file("mlruns/mlflow.db").exists()
    assert not cluster.file(".recast/prefect.db").exists()
    assert list(cluster.file(".recast/s3/recast/mlflow").rglob("weights.safetensors"))
    assert "broken" not in cluster.recast("doctor")
    cluster.dvc("push")
    shutil.rmtree(cluster.file(".dvc/cache"))
    cluster.dvc("fetch")


def test_nobody_gets_in_without_a_secret_and_no_secret_can_be_seen(cluster: Checkout) -> None:
    assert "password" in query(cluster, "mlflow", "select 1", password=False).stderr
    secrets = cluster.file(".recast/secrets")
    assert {oct(path.stat().st_mode)[-3:] for path in (secrets, *secrets.iterdir())} == {"700", "600"}
    words = {
        line.rpartition(mark)[2].strip()
        for name, mark in (("pgpass", ":"), ("aws", "= "))
        for line in (secrets / name).read_text().splitlines()
    }
    hidden = [word for word in words if len(word) == 64]
    assert len(hidden) == 3
    commands = _ask_all(_processes(cluster), lambda process: " ".join(process.cmdline()))
    assert len(commands) > 6
    logs = [log.read_text(errors="replace") for log in cluster.file(".recast").glob("*.log")]
    assert not [text for text in (*commands, *logs) if any(word in text for word in hidden)]


def test_every_server_listens_on_loopback_alone(cluster: Checkout) -> None:
    addresses = {
        connection.laddr.ip.removeprefix("::ffff:")
        for connections in _ask_all(_processes(cluster), lambda process: process.net_connections(kind="inet"))
        for connection in connections
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}


def test_a_backup_brings_back_what_was_written_to_the_stores(cluster: Checkout, tmp_path: Path) -> None:
    archive = str(tmp_path / "all.tar")
    cluster.recast("backup", archive)
    runs = "select count(*) from runs"
    before = query(cluster, "mlflow", runs).stdout
    flows = query(cluster, "prefect", "select count(*) from flow_run").stdout
    assert "would go on using what is replaced" in cluster.recast("restore", archive, "--replace", status=1)
    query(cluster, "mlflow", "delete from metrics; delete from latest_metrics")
    cluster.recast("down")
    shutil.rmtree(cluster.file(".recast/s3/recast"))
    assert "--replace" in cluster.recast("restore", archive, status=1)
    cluster.recast("restore", archive, "--replace")
    cluster.recast("up")
    assert query(cluster, "mlflow", runs).stdout == before
    assert int(before) > 0
    assert int(query(cluster, "mlflow", "select count(*) from metrics").stdout) > 0
    assert int(query(cluster, "prefect", "select count(*) from flow_run").stdout) >= int(flows)
    shutil.rmtree(cluster.file(".dvc/cache"))
    cluster.dvc("fetch")
    assert "broken" not in cluster.recast("doctor")


def test_another_profile_is_refused_while_servers_run(cluster: Checkout) -> None:
    assert "`recast down` first" in cluster.recast("up", "--profile", "laptop", status=1)


@pytest.mark.long
def test_a_killed_store_comes_back_with_all_its_data(cluster: Checkout) -> None:
    before = query(cluster, "mlflow", "select count(*) from experiments").stdout
    at_first = {name: read_record(cluster, name) for name in ("postgres", "s3", "prefect")}
    for name in ("postgres", "s3"):
        store = psutil.Process(at_first[name]["pid"])
        store.kill()
        store.wait(10)
    # Another program takes the port of a store: its clients have to learn the new one.
    with socket.create_server(("127.0.0.1", at_first["s3"]["port"])):
        cluster.recast("up")
        assert read_record(cluster, "s3")["port"] != at_first["s3"]["port"]
        assert "broken" not in cluster.recast("doctor")
    assert read_record(cluster, "prefect") == at_first["prefect"]
    assert query(cluster, "mlflow", "select count(*) from experiments").stdout == before


def test_a_laptops_runs_and_flows_become_the_servers(
    cluster: Checkout,
    finished: Checkout,
    servers: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    laptop = finished.copy(tmp_path / "laptop")
    laptop.file(".recast").mkdir(exist_ok=True)
    with temporary_settings({PREFECT_API_URL: servers["api"]}), get_client(sync_client=True) as client:
        # PostgreSQL keeps JSON, but neither the order of its names nor how a number is written.
        written = {"large": [1e16, 1e23, 1e300], "zero": -0.0, "b": {"longer": 1, "a": [0.1, 1e-300, None]}}
        waits = Paused(pause_key="proposal")
        waits.state_details.run_input_keyset = keyset_from_paused_state(waits)
        asked = client.create_flow_run(
            flow(lambda written: 0, name="waits"), parameters={"written": written}, state=waits
        )
    copy_database(servers["prefect_db"], laptop.file(".recast/prefect.db"))
    with temporary_settings({PREFECT_API_URL: servers["api"]}), get_client(sync_client=True) as client:
        # Nobody will answer.
        client.delete_flow_run(asked.id)
    monkeypatch.chdir(cluster.root)
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_WORKERS", "1")
    for server in (own.PREFECT, own.MLFLOW, own.WORKER):
        server_process.stop(server)
    with pytest.raises(migration.RecastError, match="would lose them"):
        migration.migrate(laptop.root, replace=False)
    # As a kill in the middle leaves it: some of the artifacts are there, and no row.
    artifacts = laptop.file("mlruns/artifacts")
    some = sorted(artifacts.rglob("*.json"))[:3]
    store = own.s3.client(server_process.start(own.S3))
    for file in some:
        store.upload_file(str(file), own.s3.BUCKET, f"mlflow/{file.relative_to(artifacts)}")
    done = migration.migrate(laptop.root, replace=True)
    assert done.artifacts[0] - done.artifacts[1] == len(some)
    assert done.rows["prefect"]["flow_run"] > 0
    assert not done.left
    again = migration.migrate(laptop.root, replace=False)
    assert again.rows == done.rows
    assert again.artifacts == (done.artifacts[0], 0)

    local = MlflowClient(f"sqlite:///{laptop.file('mlruns/mlflow.db')}")
    (experiment,) = local.search_experiments(filter_string="name = 'demo'")
    remote = MlflowClient(server_process.start(own.MLFLOW))
    assert profile.read_profile().mlflow == remote.tracking_uri
    mine, theirs = (
        {run.info.run_id: run for run in each.search_runs([experiment.experiment_id])} for each in (local, remote)
    )
    assert set(mine) == set(theirs)
    assert len(mine) == 6
    for run, ours in mine.items():
        assert ours.data.to_dictionary() == theirs[run].data.to_dictionary()
    key = next(run for run, ours in mine.items() if "train_loss" in ours.data.metrics)
    histories = [
        [(each.step, each.value) for each in client.get_metric_history(key, "train_loss")] for client in (local, remote)
    ]
    assert histories[0] == histories[1]
    assert len(histories[0]) == 2
    fetched = Path(remote.download_artifacts(key, "weights.safetensors", str(tmp_path)))
    assert fetched.read_bytes() == Path(local.download_artifacts(key, "weights.safetensors")).read_bytes()
    # A number that the laptop has is not given again.
    assert int(remote.create_experiment("next")) > int(experiment.experiment_id)
    server_process.stop(own.MLFLOW)

    with closing(sqlite3.connect(laptop.file("mlruns/mlflow.db"))) as database, database:
        database.execute("pragma foreign_keys = off")
        database.execute("delete from runs where run_uuid = ?", (key,))
    with pytest.raises(migration.RecastError, match="would lose them"):
        migration.migrate(laptop.root, replace=False)


def test_down_leaves_no_process(cluster: Checkout) -> None:
    processes = _processes(cluster)
    cluster.recast("down", new_process=True)
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE_SECONDS)
    assert len(processes) > 6
    assert not alive


def test_in_containers_no_secret_has_a_default_and_every_image_a_version() -> None:
    text = (ROOT / "infra/compose.yaml").read_text()
    services = YAML(typ="safe").load(text)["services"]
    images = [service["image"] for service in services.values()]
    assert images
    assert all(re.search(r":(\d|\$\{RECAST_TARGET|cuda)", image) for image in images)
    secrets = set(re.findall(r"\$\{(\w*(?:PASSWORD|SECRET|TOKEN|KEY|AUTH)\w*)[^}]*\}", text))
    assert len(secrets) >= 8
    for secret in secrets:
        assert not re.search(rf"\$\{{{secret}(?!:\?)", text), secret


@pytest.mark.parametrize("file", ["compose.yaml", "k8s/base/prefect.yaml"])
def test_in_a_container_the_worker_starts_in_a_repository_with_the_images_files(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, volume = tmp_path / "image", tmp_path / "volume"
    command = re.search(r"(cp -\w+ /srv/recast.*?\})", (ROOT / "infra" / file).read_text(), re.DOTALL)
    assert command
    listed = (ROOT / "infra/Dockerfile.dockerignore").read_text().splitlines()
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore"):
        assert f"!{name}" in listed
        (image / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, image / name)
    config = tmp_path / "gitconfig"
    for setting in re.findall(r"git config --system (.+) \\", (ROOT / "infra/Dockerfile").read_text()):
        subprocess.run(f'git config --file "{config}" {setting}', shell=True, check=True)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", str(config))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    volume.mkdir()
    start = ["sh", "-c", " ".join(command[1].split()).replace("/srv/recast", str(image))]
    for change in ("", "# of a newer image\n"):
        with (image / "dvc.yaml").open("a") as stages:
            stages.write(change)
        # Each start of the container: with other files, or with the same.
        for _ in range(2):
            subprocess.run(start, cwd=volume, check=True)
            (volume / "trials").mkdir(exist_ok=True)
            (volume / "trials/metrics.json").write_text("{}")
    with Repo(str(volume)) as repo:
        assert not repo.scm.is_dirty(untracked_files=True)
    log = subprocess.run(["git", "log", "--format=%an"], cwd=volume, check=True, capture_output=True, text=True).stdout
    assert log.split() == ["recast", "recast"]


def test_a_program_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "PACKAGED_PROGRAMS", Path("none"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Exception, match="apt install postgresql"):
        postgres.program("initdb")
