"""Loading the settings with their grid, and laying one settings file over another."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import CommentMark
from ruamel.yaml.tokens import CommentToken

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
            _put(whole, name, value)
            yield ".".join(map(str, path))


def _put(whole: CommentedMap, name: Any, value: Any) -> None:
    """Put a value into a mapping: in the place of another one, whose comments and style stay, or at the end.

    The parser gives the comments after a value to the value's last part, however deep that is, also those that are
    about the next section of the file. They stay before that section.
    """
    old = whole.get(name)
    before = name if name in whole else next(reversed(whole), None)
    following = _take_following_comments(whole, before) if _is_block(whole) else ""
    if isinstance(old, CommentedSeq) and isinstance(value, CommentedSeq):
        for i, item in enumerate(value):
            if item in old and (comment := old.ca.items.get(old.index(item))):
                value.ca.items[i] = comment
    if _is_block(old) and isinstance(value, CommentedSeq | CommentedMap) and len(value):
        value.fa.set_block_style()
    elif _is_block(old):
        _move_comments_behind(whole, name)
    whole[name] = value
    if following:
        _add_following_comments(whole, name, following)


def _is_block(value: Any) -> bool:
    """Whether a list or a mapping is written over several lines, without brackets."""
    return isinstance(value, CommentedSeq | CommentedMap) and len(value) > 0 and value.fa.flow_style() is not True


def _move_comments_behind(mapping: CommentedMap, name: Any) -> None:
    """Write the comments that stand between a key and a block behind the key's value, which is not a block any more."""
    comments = mapping.ca.items.get(name)
    if not comments:
        return
    behind, between = comments[2:4]
    first, *others = [*([behind] if behind else []), *(between or [])] or [None]
    for other in others:
        first.value += other.value
    comments[2], comments[3] = first, None


def _find_last_part(mapping: CommentedMap, name: Any) -> tuple[Any, Any, int]:
    """Where the comments after a value are: the collection, the key or the index in it, and their place there."""
    holder: Any = mapping
    while _is_block(holder[name]):
        holder = holder[name]
        name = len(holder) - 1 if isinstance(holder, CommentedSeq) else next(reversed(holder))
    return holder, name, 0 if isinstance(holder, CommentedSeq) else 2


def _take_following_comments(mapping: CommentedMap, name: Any) -> str:
    """Remove the lines of comments after a value, and return them; the rest of the value's own last line stays."""
    holder, key, place = _find_last_part(mapping, name)
    comments = holder.ca.items.get(key)
    token = comments[place] if comments else None
    if token is None:
        return ""
    own, end, following = token.value.partition("\n")
    if own.strip():
        token.value = own + end
    else:
        comments[place] = None
    return str(following)


def _add_following_comments(mapping: CommentedMap, name: Any, following: str) -> None:
    """Add lines of comments after a value."""
    holder, key, place = _find_last_part(mapping, name)
    comments = holder.ca.items.setdefault(key, [None, None] if place == 0 else [None, None, None, None])
    if comments[place] is None:
        comments[place] = CommentToken("\n" + following, CommentMark(0), None)
    else:
        comments[place].value = comments[place].value.rstrip("\n") + "\n" + following
