"""manifest.json: the SHA-256 of every file in a folder, and of the manifest itself.

Storage and transfers occasionally flip bits, and Orbax loads such a checkpoint silently. Several
threads stream and hash the files (hashlib releases the GIL).
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
import stat

from qwen_jax.checkpoint.shared_hashing import HashTogether
from qwen_jax.checkpoint.unreadable import MISSING, unreadable
from qwen_jax.utils.files import atomic_write, sync_folder

NAME = "manifest.json"


def write(folder: pathlib.Path, together: HashTogether | None = None) -> None:
    """Hashes all files in `folder`, syncs them to disk, then writes the manifest.

    Args:
      together: shares the hashing with the other processes of a run.

    Raises:
      OSError: a file cannot be read, or the manifest cannot be written.
    """
    found = names(folder)
    with _pool() as pool:
        given = _given(folder, found, together)
        entries = pool.map(lambda name: given.get(name) or durable_entry(folder / name), found)
        text = _render(dict(zip(found, entries, strict=True)))
    with atomic_write(folder / NAME) as file:
        file.write(text)
    for parent, _, _ in os.walk(folder):
        sync_folder(parent)


def problems(
    folder: pathlib.Path, *, contents: bool = True, together: HashTogether | None = None
) -> list[str]:
    """Returns one message per missing, extra or corrupted file in `folder`; [] if it is intact.

    Args:
      contents: whether to compare hashes; False compares only names and sizes, which is fast.
      together: shares the hashing with the other processes of a run.

    Raises:
      CheckpointError: a file exists but cannot be read, which is not damage.
    """
    try:
        raw = (folder / NAME).read_bytes()
    except MISSING:
        return [f"{NAME} is missing"]
    except OSError as error:
        raise unreadable(folder / NAME, error) from error
    expected = _entries(raw)
    if expected is None:
        return [f"{NAME} itself is corrupted"]
    try:
        found = names(folder)
    except OSError as error:
        raise unreadable(error.filename or folder, error) from error
    listed = [name for name in found if name in expected]
    given = _given(folder, listed, together if contents else None)

    def check(name: str) -> str | None:
        entry = expected[name]
        try:
            status = (folder / name).stat()
            if not stat.S_ISREG(status.st_mode):
                return f"{name} is not a file"
            size = status.st_size
            if size != entry["bytes"]:
                return f"{name} has {size} bytes instead of {entry['bytes']}"
            if contents and (given.get(name) or entry_of(folder / name)) != entry:
                return f"{name} does not match its SHA-256"
        except MISSING:  # such as a broken link
            return f"{name} is missing"
        except OSError as error:
            raise unreadable(folder / name, error) from error
        return None

    with _pool() as pool:
        bad = [problem for problem in pool.map(check, listed) if problem]
    missing = [f"{name} is missing" for name in sorted(set(expected) - set(found))]
    extra = [f"{name} is not in the manifest" for name in sorted(set(found) - set(expected))]
    return missing + extra + bad


def _entries(raw: bytes) -> dict[str, dict[str, int | str]] | None:
    """Returns the entries of a manifest; None if it is corrupted."""
    try:
        entries = json.loads(raw)["files"]
        typed = all({"bytes": int, "sha256": str} == _types(entry) for entry in entries.values())
        return entries if typed and raw == _render(entries) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _types(entry: dict[str, int | str]) -> dict[str, type]:
    return {name: type(value) for name, value in entry.items()}


def names(folder: pathlib.Path) -> list[str]:
    """Returns the relative paths of all files in `folder` except the manifest.

    Raises:
      OSError: a folder cannot be read. (pathlib's `rglob` would skip it silently.)
    """

    def stop(error: OSError) -> None:
        if not isinstance(error, MISSING):
            raise error

    found = []
    for parent, folders, files in os.walk(folder, onerror=stop):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        inside = pathlib.Path(parent).relative_to(folder)
        found += [(inside / name).as_posix() for name in files + links]
    return sorted(name for name in found if name != NAME)


def _given(
    folder: pathlib.Path, found: list[str], together: HashTogether | None
) -> dict[str, dict[str, int | str]]:
    """Returns the entries that the processes of a run have made together."""
    if together is None:
        return {}
    sizes = {}
    for name in found:
        with contextlib.suppress(OSError):  # the caller says what is wrong
            sizes[name] = (folder / name).stat().st_size
    return together.entries(folder, sizes)


def durable_entry(path: pathlib.Path) -> dict[str, int | str]:
    """Returns the entry of a file, which survives a power failure afterwards."""
    return entry_of(path, durable=True)


def entry_of(path: pathlib.Path, *, durable: bool = False) -> dict[str, int | str]:
    """Returns the size and the SHA-256 of a file."""
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
