"""The folders of tables that a champion forecasts from: they are there also after a stage has failed.

DVC removes what a stage writes before it runs the stage. (It does not remove outputs that are persistent, but then it
restores none of them from its cache of runs.)
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ruamel.yaml import YAML

from project.atomic import replace_folder
from project.paths import DVC_CACHE, DVC_LOCK
from project.progress import print_warning

TABLE_STAGES = ("ingest", "normalize", "window")


@contextmanager
def keep_tables(stage: str) -> Iterator[None]:
    """Restore the folder of a stage as DVC has it, if the block fails and has not written a new one.

    Args:
        stage: its name in DVC, such as ingest@jena. Nothing is restored unless it writes a table.
    """
    try:
        yield
    except BaseException:
        if stage.partition("@")[0] in TABLE_STAGES and Path(DVC_LOCK).exists():
            try:
                _restore_folders(stage)
            # A damaged dvc.lock, a full disk: the error of the stage is the one that people have to know.
            except Exception as error:
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
                print_warning(f"{stage}: its table cannot be restored as {DVC_LOCK} lists it: {reason}")
        raise


def _restore_folders(stage: str) -> None:
    """Copy the folders that dvc.lock lists for a stage from DVC's cache, where they are missing and DVC has them."""
    stages = YAML(typ="safe").load(Path(DVC_LOCK).read_text(encoding="utf-8"))["stages"]
    for output in stages.get(stage, {}).get("outs", ()):
        folder, listing = Path(output["path"]), _cached_file(output["md5"])
        if folder.exists() or not listing.exists():
            continue
        files = {entry["relpath"]: _cached_file(entry["md5"]) for entry in json.loads(listing.read_bytes())}
        if all(file.exists() for file in files.values()):
            with replace_folder(folder) as temporary:
                for name, file in files.items():
                    (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, temporary / name)


def _cached_file(digest: str) -> Path:
    return DVC_CACHE / "files/md5" / digest[:2] / digest[2:]
