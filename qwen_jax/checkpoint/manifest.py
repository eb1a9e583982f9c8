"""SHA-256 of every file of a folder, in one file that also vouches for itself.

Orbax loads a checkpoint with a flipped bit without a word; a disk, a copy or a bad cable flips
one now and then. Files are streamed and hashed by several threads (hashlib lets the others run).
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib

from qwen_jax.utils.files import atomic_write, sync_folder

NAME = "manifest.json"


def write(folder: pathlib.Path) -> None:
    """Hashes every file of `folder`, makes all of it durable, then writes its manifest.

    Raises:
      OSError: a file cannot be read, or the manifest not written.
    """
    names = _names(folder)
    with _pool() as pool:
        entries = pool.map(lambda name: _entry(folder / name, durable=True), names)
        text = _render(dict(zip(names, entries, strict=True)))
    with atomic_write(folder / NAME) as file:
        file.write(text)
    for parent, _, _ in os.walk(folder):
        sync_folder(parent)


def problems(folder: pathlib.Path, *, contents: bool = True) -> list[str]:
    """What is wrong with `folder`, a sentence for each file; empty when it is as it was written.

    Args:
      contents: False looks at names and sizes alone, which takes no time.
    """
    try:
        raw = (folder / NAME).read_bytes()
    except OSError as error:
        return [f"{NAME} cannot be read ({error.strerror})"]
    try:
        expected = json.loads(raw)["files"]
        whole = raw == _render(expected)
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        return [f"{NAME} itself is damaged"]
    found = _names(folder)
    listed = [name for name in found if name in expected]

    def check(name: str) -> str | None:
        entry = expected[name]
        try:
            size = (folder / name).stat().st_size
            if size != entry["bytes"]:
                return f"{name} has {size} bytes instead of {entry['bytes']}"
            if contents and _entry(folder / name)["sha256"] != entry["sha256"]:
                return f"{name} has another SHA-256"
        except OSError as error:  # a failing disk
            return f"{name} cannot be read ({error.strerror})"
        return None

    with _pool() as pool:
        bad = [problem for problem in pool.map(check, listed) if problem]
    missing = [f"{name} is missing" for name in sorted(set(expected) - set(found))]
    extra = [f"{name} does not belong" for name in sorted(set(found) - set(expected))]
    return missing + extra + bad


def _names(folder: pathlib.Path) -> list[str]:
    """Every file below `folder` but the manifest, as paths relative to it."""
    found = (
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    )
    return sorted(name for name in found if name != NAME)


def _entry(path: pathlib.Path, *, durable: bool = False) -> dict[str, int | str]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if durable:
            os.fsync(file.fileno())
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": digest}


def _render(entries: dict[str, dict[str, int | str]]) -> bytes:
    # The text is compared byte for byte on reading, so a flip anywhere in it shows.
    own = hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
    text = json.dumps({"files": entries, "sha256": own}, indent=1, sort_keys=True)
    return text.encode() + b"\n"


def _pool() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1))
