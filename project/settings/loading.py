"""Loading the settings with their grid, and laying one settings file over another."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from problems.errors import RecastError
from project.atomic import replace_file
from project.paths import PARAMS
from project.settings.parsing import parse_settings, read_document
from project.settings.sections import Settings


def load_settings(file: Path = PARAMS) -> Settings:
    """Read and check the settings, with the grid's architectures and their axes.

    Raises:
        RecastError: something is wrong; the message names each wrong key, its value and what is allowed.
    """
    from project.settings.grid import check_grid  # noqa: PLC0415 - saves the seconds that PyTorch takes to load

    settings = parse_settings(file)
    check_grid(settings.grid)
    return settings


def overlay_settings(part: Path, whole: Path = PARAMS) -> list[str]:
    """Replace values of one settings file by those of another.

    Mappings are merged key by key, except the architectures of the grid, which are replaced as a whole: any that
    remained would be trained too.

    Returns:
        The keys, with dots, whose values have changed.

    Raises:
        RecastError: one of the files is not YAML, or the settings would be wrong. Then nothing is written.
    """
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 120
    yaml.representer.add_representer(type(None), lambda to, _: to.represent_scalar("tag:yaml.org,2002:null", "null"))
    documents = {file: read_document(file, yaml) for file in (part, whole)}
    changed = list(_merge(documents[part], documents[whole]))
    with replace_file(whole) as temporary:
        with temporary.open("w", encoding="utf-8") as out:
            yaml.dump(documents[whole], out)
        try:
            load_settings(temporary)
        except RecastError as error:
            raise RecastError(str(error).replace(str(temporary), f"{whole} with {part}")) from None
    return changed


def _merge(part: Any, whole: Any, key: tuple[str, ...] = ()) -> Iterator[str]:
    """Merge one mapping into another, and yield the keys whose values change."""
    for name, value in part.items():
        path = (*key, name)
        is_section = isinstance(value, dict) and isinstance(whole.get(name), dict)
        if is_section and path != ("grid", "architectures"):
            yield from _merge(value, whole[name], path)
        elif name not in whole or whole[name] != value:
            whole[name] = value
            yield ".".join(path)
