"""JSON files that another version of Recast wrote, or that are damaged."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from problems.errors import RecastError
from project.records import read_disposable_record, read_record


@dataclass(frozen=True)
class Note:
    name: str
    count: int = 0


UNREADABLE = {
    "empty": ("", "EOF"),
    "half": ('{"name": "a', "EOF"),
    "a missing field": ("{}", "name: Field required"),
    "a field of another type": ('{"name": "a", "count": "many"}', "count: Input should be a valid integer"),
    "another type": ("[]", "object"),
}


def test_a_record_is_read_and_fields_that_this_version_does_not_know_are_ignored(tmp_path: Path) -> None:
    file = tmp_path / "note.json"
    file.write_text('{"name": "a", "later": 1}')
    assert read_record(file, Note, "delete it") == read_disposable_record(file, Note) == Note("a")
    file.write_text('{"values": [1, 2.5, null, true, "x"]}')
    assert read_record(file, dict[str, Any], "delete it") == {"values": [1, 2.5, None, True, "x"]}
    file.write_text('[{"name": "a"}, {"name": "b", "count": 2}]')
    assert read_record(file, list[Note], "delete it") == [Note("a"), Note("b", 2)]


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_record_is_an_error_with_file_reason_and_fix_or_is_dropped(name: str, tmp_path: Path) -> None:
    file = tmp_path / "note.json"
    text, reason = UNREADABLE[name]
    file.write_text(text)
    with pytest.raises(RecastError) as raised:
        read_record(file, Note, "delete it, then run again")
    message = str(raised.value)
    assert message.startswith(f"{file} was written by another version of Recast, or is damaged (")
    assert reason in message
    assert message.endswith("; delete it, then run again")
    assert read_disposable_record(file, Note) is None
    assert file.exists()


def test_a_missing_record_is_none_only_where_it_is_disposable(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "note.json", Note, "delete it")
    assert read_disposable_record(tmp_path / "note.json", Note) is None
