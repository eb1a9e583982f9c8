"""Paths in the values of flags: `~` as in a shell, and no names of spaces only.

A flag whose code reads object stores also takes their addresses; others take no URL.
"""

import os
import re
from typing import Any

from qwen_jax.errors import ConfigError
from qwen_jax.utils.storage.path import SCHEMES, parse

_FIXES = {
    "path": "copy the files to a local or mounted folder.",
    "stored": "use gs://BUCKET/FOLDER, s3://BUCKET/FOLDER, or a local or mounted folder.",
}
_HOME = re.compile(r"(?:\A|(?<=[=:]))~(?=/|\Z)")  # as in a shell, also behind NAME= and KIND:
_SCHEME = re.compile(r"(?:\A|(?<=[=:]))([A-Za-z][A-Za-z0-9+.-]*)://")


def checked(value: Any, kind: str, where: str) -> Any:
    """Returns the value of a flag, with `~/` replaced by the user's folder.

    A shell does that in `--flag ~/x`, and most of them do not in `--flag=~/x`.

    Args:
      value: a string, a tuple of strings, or anything else, which is returned as it is.
      kind: "path" (or a name), "stored" (a path, or an address in a store such as gs://BUCKET/RUN),
        "url" (a path or a URL), or "text", which is taken as it is.
      where: the flag.

    Raises:
      ConfigError: the value is a URL where only paths are read, consists of spaces, or has a NUL,
        which a file of settings can have.
    """
    if isinstance(value, tuple):
        return tuple(checked(item, kind, where) for item in value)
    if not isinstance(value, str) or kind == "text":
        return value
    if value and not value.strip():
        raise ConfigError(
            f"the value {value!r} consists of spaces.", where, "pass a name, or leave out the flag."
        )
    if "\0" in value:
        raise ConfigError(
            f"the value {value[:80]!r} has a NUL, which no name has.", where, "remove it."
        )
    match = _SCHEME.search(value)
    if match and not match.start(1) and kind == "stored" and match[1].lower() in SCHEMES:
        parse(value, where)
        return value
    if match and (kind in ("path", "stored") or match[1].lower() == "file"):
        path = re.sub(r"\A\w+://(localhost(?=/))?", "", value[match.start(1) :])
        local = match[1].lower() == "file"
        raise ConfigError(
            f"{value[:80]!r} is a URL, and this flag reads a path.",
            where,
            f"use the path {path}." if local else _FIXES[kind],
        )
    return _HOME.sub(lambda _: os.path.expanduser("~"), value)


def stripped(value: str) -> str:
    """Returns an item of a list without the spaces around it, unless a file has this very name."""
    return value if value != value.strip() and os.path.exists(value) else value.strip()
