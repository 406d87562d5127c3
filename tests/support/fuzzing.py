"""Damaged input, made of a seed: every case can be made again by its number."""

import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SECONDS = 20
"""A case that takes longer hangs."""

CASES_VARIABLE = "RECAST_FUZZ_CASES"
"""The environment variable with the number of cases of the long forms."""

ODD_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.0, -0.0, 0.5, 1e300, -1e300, 1e-300),
    *("", " ", "x", "null", "true", "0", "-1", "1d", "0s", "1e3h", "99999999999d", "a\nb", "\0", "\u2028", "🙂", "é"),
    *(
        "../x",
        "/",
        "~",
        "~nobody/x",
        "*",
        "[",
        "${HOME}",
        "${}",
        "%",
        "%Y",
        "%Q",
        "{}",
        "a: b",
        "# c",
        "x" * 300,
        "x" * 5000,
    ),
    *([], [[]], [None], ["x"], [1, 1], ["a", "b", "c"], {}, {"a": 1}, {"kind": "x"}, {"kind": {"a": 1}}, {"": None}),
]


def count_cases(default: int) -> int:
    """How many cases a long form has."""
    return int(os.environ.get(CASES_VARIABLE, default))


@contextmanager
def limited_time(case: object) -> Iterator[None]:
    """Fail if the block takes too long."""

    def fail(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"case {case} takes more than {SECONDS} seconds")

    former = signal.signal(signal.SIGALRM, fail)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def damage_bytes(content: bytes, source: random.Random) -> bytes:
    """The bytes with a few accidents: changed, lost, repeated and foreign ones."""
    damaged = bytearray(content)
    for _ in range(source.choice((1, 1, 2, 5, 20))):
        at = source.randrange(len(damaged) + 1)
        length = source.choice((1, 1, 2, 8, 64, 1024))
        part = damaged[at : at + length]
        accidents: list[Callable[[], bytes]] = [
            lambda: b"",
            lambda part=part: bytes(part) * 2,  # type: ignore[misc]
            lambda: source.randbytes(source.choice((1, 2, 4))),
            lambda: source.choice(ODD_BYTES),
            lambda length=length: b"\0" * length,  # type: ignore[misc]
        ]
        damaged[at : at + length] = source.choice(accidents)()
    if source.random() < 0.1:
        del damaged[source.randrange(len(damaged) + 1) :]
    return bytes(damaged)


ODD_BYTES = [
    *(
        b"\n",
        b"\r",
        b"\r\n",
        b"\t",
        b'"',
        b"'",
        b",",
        b";",
        b":",
        b"-",
        b"#",
        b"&a ",
        b"*a ",
        b"<<: ",
        b"{",
        b"}",
        b"[",
    ),
    *(b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\0", b"\x1f\x8b", b"PAR1", b"NaN", b"inf", b"-inf"),
    *(b"1e999", b"1e300", b"-1e300", b"9" * 400, b"0x", b"\n" * 9),
    *(b"1970-01-01", b"9999-12-31", b"0000-00-00", b"2024-02-30", b"24:00"),
]
"""What is often found where it should not be."""


def damage_document(document: Any, source: random.Random) -> Any:
    """A document of YAML with some of its values replaced, removed, renamed or exchanged."""
    for _ in range(source.choice((1, 1, 1, 2, 4))):
        holders = list(_list_holders(document))
        if not holders:
            break
        holder, key = source.choice(holders)
        action = source.choice(("replace", "replace", "replace", "remove", "rename", "exchange", "nest"))
        if action == "replace":
            holder[key] = source.choice(ODD_VALUES)
        elif action == "remove":
            del holder[key]
        elif action == "rename" and isinstance(holder, dict):
            holder[source.choice([*map(str, holder), "x", "kind", "", 1, None])] = holder.pop(key)
        elif action == "exchange":
            other, other_key = source.choice(holders)
            holder[key], other[other_key] = other[other_key], holder[key]
        else:
            holder[key] = source.choice(([holder[key]], {"x": holder[key]}, {"kind": holder[key]}))
    return document


def _list_holders(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Every place of a document: the collection, and the key or the index in it."""
    # An exchange may have put a collection into itself.
    if depth > 20:
        return
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _list_holders(value[key], depth + 1)
