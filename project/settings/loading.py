"""TODO: what project.settings.loading is for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from problems.errors import RecastError
from project.atomic import replaced_file
from project.paths import PARAMS
from project.settings.parsing import parse_settings, read_document
from project.settings.sections import Settings


def load_settings(file: Path = PARAMS) -> Settings:
    """`parse`, and check the grid's architectures and their axes too.

    Raises:
        RecastError: names each wrong key, its value and what would be allowed.
    """
    from project.settings.grid import check_grid

    settings = parse_settings(file)
    check_grid(settings.grid)
    return settings


def overlay_settings(part: Path, whole: Path = PARAMS) -> list[str]:
    """Put the values of one file in the place of those of another; the keys, with dots, whose values that changed.

    Mappings are merged key by key, but the architectures of the grid, which are replaced as a whole: what is left of
    the former ones would be trained too.

    Raises:
        RecastError: one of the files is no YAML, or the settings would be wrong. Nothing is written then.
    """
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 120
    yaml.representer.add_representer(type(None), lambda to, _: to.represent_scalar("tag:yaml.org,2002:null", "null"))
    documents = {file: read_document(file, yaml) for file in (part, whole)}
    changed = list(_merge(documents[part], documents[whole]))
    with replaced_file(whole) as temporary:
        with temporary.open("w", encoding="utf-8") as out:
            yaml.dump(documents[whole], out)
        try:
            load_settings(temporary)
        except RecastError as error:
            raise RecastError(str(error).replace(str(temporary), f"{whole} with {part}")) from None
    return changed


def _merge(part: Any, whole: Any, key: tuple[str, ...] = ()) -> Iterator[str]:
    """Merge a mapping into another; the keys whose values change."""
    for name, value in part.items():
        here = (*key, name)
        is_section = isinstance(value, dict) and isinstance(whole.get(name), dict)
        if is_section and here != ("grid", "architectures"):
            yield from _merge(value, whole[name], here)
        elif name not in whole or whole[name] != value:
            whole[name] = value
            yield ".".join(here)
