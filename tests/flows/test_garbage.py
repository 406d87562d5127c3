"""`recast gc` removes what nothing needs, and only that."""

import json
import shutil
from pathlib import Path

from tests.support.checkout import Checkout


def add_object(checkout: Checkout, digest: str) -> Path:
    """A file in DVC's cache."""
    file = checkout.file(f".dvc/cache/files/md5/{digest[:2]}/{digest[2:]}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("content")
    return file


def test_nothing_that_is_needed_is_removed(finished: Checkout, tmp_path: Path) -> None:
    checkout = finished.copy(tmp_path / "garbage")
    needed = {file for file in checkout.file(".dvc/cache/files").rglob("*") if file.is_file()}
    unused, of_a_version = add_object(checkout, "0" * 32), add_object(checkout, "1" * 32)
    listed = json.loads(checkout.file("data/train/demo/trials.json").read_text())
    old = checkout.file("trials/demo/0123456789abcdef")
    shutil.copytree(checkout.file(f"trials/demo/{listed[0]['key']}"), old)
    champion = shutil.copytree(old, checkout.file("trials/demo/fedcba9876543210"))
    lineage = {
        "problem": "demo", "version": 1, "key": champion.name, "label": "", "run": "", "commit": "", "data": "",
        "raw": {}, "lock": {"ingest@demo": {"outs": [{"md5": "1" * 32}]}},
    }  # fmt: skip
    file = checkout.file("data/champion/demo/versions/1.json")
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(lineage))
    damaged = checkout.file(".recast/damaged/demo/0123456789abcdef-1")
    shutil.copytree(old, damaged)

    half = checkout.file(".dvc/cache/files/md5/00/.half.tmp")
    half.write_text("conte")
    copies = {name: checkout.file(f".recast/models/demo/{name}") for name in ("1-aaaaaaaa", "2-bbbbbbbb", "3-cccccccc")}
    for copy in copies.values():
        copy.mkdir(parents=True)
        copy.with_name(f"{copy.name}.lock").touch()
    entry = {"kind": "promotion", "key": "", "label": "", "run": "", "reason": "", "by": "", "decision": None}
    entries = [{**entry, "time": f"2020-01-0{i}T00:00:00+00:00", "version": i, "former": None} for i in (1, 2, 3)]
    checkout.file("data/champion/demo/history.json").write_text(json.dumps(entries))

    checkout.recast("gc", status=1)
    assert unused.exists(), "nobody has answered"
    printed = checkout.recast("gc", "--yes")
    assert "Removed." in printed
    assert not unused.exists()
    assert not damaged.exists()
    assert not half.exists()
    assert [copy.exists() for copy in copies.values()] == [False, True, True]
    assert of_a_version.exists()
    assert all(file.exists() for file in needed)
    assert old.exists(), "trials are removed only when asked"
    assert "Nothing can be removed" in checkout.recast("gc")

    assert "Removed" in checkout.recast("gc", "--trials", "--yes")
    assert not old.exists()
    assert champion.exists()
    assert all(checkout.file(f"trials/demo/{trial['key']}/trial.json").exists() for trial in listed)
    shutil.rmtree(checkout.file("data/evaluate"))
    checkout.dvc("checkout", "evaluate@demo")
    assert checkout.file("data/evaluate/demo/report.html").exists()
