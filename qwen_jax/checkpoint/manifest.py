"""manifest.json: the SHA-256 of every file in a folder, and of the manifest itself.

Storage and transfers occasionally flip bits, and Orbax loads such a checkpoint silently. Several
threads stream and hash the files (hashlib releases the GIL).
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib

from qwen_jax.utils.files import atomic_write, sync_folder

NAME = "manifest.json"


def write(folder: pathlib.Path) -> None:
    """Hashes all files in `folder`, syncs them to disk, then writes the manifest.

    Raises:
      OSError: a file cannot be read, or the manifest cannot be written.
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
    """Returns one message per missing, extra or corrupted file in `folder`; [] if it is intact.

    Args:
      contents: whether to compare hashes; False compares only names and sizes, which is fast.
    """
    try:
        raw = (folder / NAME).read_bytes()
    except OSError as error:
        return [f"{NAME} cannot be read ({error.strerror})"]
    try:
        expected = json.loads(raw)["files"]
        intact = raw == _render(expected)
    except (ValueError, KeyError, TypeError, AttributeError):
        intact = False
    if not intact:
        return [f"{NAME} itself is corrupted"]
    found = _names(folder)
    listed = [name for name in found if name in expected]

    def check(name: str) -> str | None:
        entry = expected[name]
        try:
            size = (folder / name).stat().st_size
            if size != entry["bytes"]:
                return f"{name} has {size} bytes instead of {entry['bytes']}"
            if contents and _entry(folder / name)["sha256"] != entry["sha256"]:
                return f"{name} does not match its SHA-256"
        except OSError as error:  # a failing disk
            return f"{name} cannot be read ({error.strerror})"
        return None

    with _pool() as pool:
        bad = [problem for problem in pool.map(check, listed) if problem]
    missing = [f"{name} is missing" for name in sorted(set(expected) - set(found))]
    extra = [f"{name} is not in the manifest" for name in sorted(set(found) - set(expected))]
    return missing + extra + bad


def _names(folder: pathlib.Path) -> list[str]:
    """Returns the relative paths of all files in `folder` except the manifest."""
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
    # `problems` compares this text byte for byte, so it detects any flipped bit.
    digest = hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
    text = json.dumps({"files": entries, "sha256": digest}, indent=1, sort_keys=True)
    return text.encode() + b"\n"


def _pool() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1))
