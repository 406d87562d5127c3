"""`recast doctor` says what is wrong, and how to mend it."""

from tests.support.checkout import ROOT, Checkout


def test_where_all_is_well_it_says_so(fresh: Checkout) -> None:
    fresh.file("requirements.lock").write_bytes((ROOT / "requirements.lock").read_bytes())
    said = fresh.recast("doctor", new_process=True)
    assert "broken" not in said
    for what in (
        "settings",
        "Python",
        "versions",
        "folders",
        "space",
        "GPU",
        "Prefect",
        "clock",
        "MLflow",
        "artifacts",
    ):
        assert f" {what} " in said


def test_what_is_broken_is_named_with_its_mend_and_the_rest_is_looked_at_all_the_same(fresh: Checkout) -> None:
    fresh.file("requirements.lock").write_text("# Pinned.\npolars==0.1\nnothing-of-that-name==1.0\n")
    secret = fresh.file(".recast/secrets/aws")
    secret.parent.mkdir(mode=0o700, parents=True)
    secret.touch(mode=0o644)
    store = fresh.file("store")
    store.touch()
    fresh.dvc("remote", "add", "--default", "here", str(store))
    nowhere = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "MLFLOW_TRACKING_URI": "http://u:secret@127.0.0.1:9"}
    said = fresh.recast("doctor", status=1, **nowhere)
    broken = [line for line in said.splitlines() if " broken " in line]
    for what in ("versions", "secrets", "Prefect", "MLflow", "DVC remote"):
        assert [line for line in broken if f" {what} " in line], said
    assert "polars" in said
    assert "instead of 0.1" in said
    assert "chmod -R go=" in said
    assert "unset PREFECT_API_URL" in said
    assert "u:secret" not in said
    assert "space" in said
