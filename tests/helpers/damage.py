"""Damages small files as disks, transfers and attackers do, from a seed."""

import copy
import json
import os
import pathlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qwen_jax.errors import QwenJaxError

ARCHIVES = pathlib.Path(__file__).parents[1] / "archives"

HOSTILE_JSON = (  # texts of JSON values
    "null",
    "true",
    "-1",
    "0",
    "1e30",
    "1.5",
    "NaN",
    "-Infinity",
    "1e999",
    "1000000000",
    "1" + "0" * 30,
    "9" * 5000,
    '""',
    '"text"',
    '"\\u0000"',
    '"\\ud800"',
    '"../../etc/passwd"',
    '"/etc/passwd"',
    '"$x_{$"',
    "[]",
    "{}",
    "[[]]",
    '[{"a": [1, null]}]',
    '{"a": {"b": null}}',
    "[" * 500 + "]" * 500,
    "[" * 100_000,
)
WHOLE = (  # contents of a file
    b"",
    b"\0" * 64,
    b"\xef\xbb\xbf",
    b"\xff\xfe{\0}\0",
    b"[]",
    b"3",
    b"null",
    b'{"a": 1, "a": 2}',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"9" * 5000,
)


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """Returns `raw` with flipped bits, lost or repeated bytes, or another value in its JSON."""
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice(WHOLE)
    if kind == 1:
        return raw[: rng.randrange(len(raw) + 1)]
    if kind == 2:
        start = rng.randrange(len(raw) + 1)
        return raw[:start] + rng.randbytes(rng.randrange(1, 9)) + raw[start + rng.randrange(9) :]
    if kind == 3:
        flipped = bytearray(raw or b"\0")
        for _ in range(rng.randrange(1, 4)):
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    try:
        return with_other_value(raw, rng)
    except ValueError:
        lines = raw.splitlines(keepends=True) or [b""]
        number = rng.randrange(len(lines))
        try:
            lines[number] = with_other_value(lines[number], rng) + b"\n"
        except ValueError:
            lines[number] = rng.choice(HOSTILE_JSON).encode() + b"\n"
        return b"".join(lines)


def with_other_value(raw: bytes, rng: random.Random) -> bytes:
    """Replaces or removes a value of a JSON text, or adds a key."""
    content = json.loads(raw)
    changed: Any = {"": copy.deepcopy(content)}
    places = list(_places(changed))
    owner, key = rng.choice(places)
    if rng.randrange(6) == 0 and owner is not changed:
        del owner[key]
        return json.dumps(changed[""]).encode()
    owner[key] = "@hostile@"
    return json.dumps(changed[""]).replace('"@hostile@"', rng.choice(HOSTILE_JSON)).encode()


def _places(owner) -> Iterator[tuple[Any, Any]]:
    """Yields (container, key) of values, at most 40 of a container."""
    keys = list(owner) if isinstance(owner, dict) else list(range(len(owner)))
    for key in keys[:40]:
        yield owner, key
        if isinstance(owner[key], (dict, list)):
            yield from _places(owner[key])


def check_reader(
    path: pathlib.Path, read: Callable[[], object], *, seed: int, times: int
) -> dict[str, int]:
    """Damages the file many times and reads it: each must succeed or raise a QwenJaxError.

    Returns the number of successes and of errors by class. Restores the file.
    """
    raw, found = path.read_bytes(), {}
    try:
        for number in range(times):
            bad = damaged(raw, random.Random(f"{path.name} {seed} {number}"))
            path.write_bytes(bad)
            try:
                read()
                kind = "read"
            except QwenJaxError as error:
                assert len(str(error)) < 10_000, (path.name, number)
                assert all((error.what, error.where, error.fix)), (path.name, number)
                kind = type(error).__name__
            except Exception as error:
                raise AssertionError(f"{path.name}, damage {number}: {bad[:200]!r}") from error
            found[kind] = found.get(kind, 0) + 1
    finally:
        path.write_bytes(raw)
    return found


def odd_files(path: pathlib.Path) -> Iterator[str]:
    """Puts what is not a regular file in the place of a file, one after the other; yields names."""
    raw = path.read_bytes()
    for name in ("folder", "fifo", "device", "dangling link", "link to itself", "socket"):
        path.unlink()
        if name == "folder":
            path.mkdir()
        elif name == "fifo":
            os.mkfifo(path)
        elif name == "socket":
            import socket

            with socket.socket(socket.AF_UNIX) as server:
                here = os.getcwd()
                os.chdir(path.parent)  # a socket's path has at most 108 bytes
                server.bind(path.name)
                os.chdir(here)
        else:
            target = {"device": "/dev/zero", "dangling link": "nothing"}.get(name, path.name)
            path.symlink_to(target)
        yield name
        path.rmdir() if name == "folder" else path.unlink()
        path.write_bytes(raw)


def seeds(count: int):
    """Parametrizes a test by `seed`: 0, and up to `count` in a slow test."""
    slow = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, count)]
    return pytest.mark.parametrize("seed", [0, *slow])
