"""The steps of a run in a store: their files, and the manifest that makes a step exist.

STEP/manifest.json          every file of the step: its object, size and SHA-256
STEP/TOKEN/meta.json        description.py
STEP/TOKEN/arrays/...       arrays.py
STEP/TOKEN/part-N.json      what process N has uploaded, until the manifest exists
STEP/corrupt-N.json         the manifest of a step that was damaged
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping

from qwen_jax.errors import CheckpointError
from qwen_jax.utils.storage.failures import Missing
from qwen_jax.utils.storage.store import Store

MANIFEST = "manifest.json"
_FORMAT = 2  # 1: the manifest of a folder (checkpoint/manifest.py)
_STEP = re.compile(r"(0|[1-9][0-9]*)/manifest\.json")
_CORRUPT = re.compile(r"(0|[1-9][0-9]*)/corrupt-\d+\.json")
THREADS = 16


@dataclasses.dataclass(frozen=True)
class File:
    """A file of a step."""

    object: str  # its key below the folder of the step
    bytes: int
    sha256: str


Files = dict[str, File]  # by path below the folder of a step


class Damaged(Exception):
    """A file of a step is missing or has other contents; the message says which."""


def render(files: Mapping[str, File]) -> bytes:
    """Returns the text of a manifest, which holds its own hash."""
    entries = {name: dataclasses.asdict(file) for name, file in sorted(files.items())}
    digest = hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
    record = {"format": _FORMAT, "files": entries, "sha256": digest}
    return json.dumps(record, indent=1, sort_keys=True).encode() + b"\n"


def parse(raw: bytes) -> Files:
    """Returns the files in a manifest.

    Raises:
      Damaged: a bit has flipped.
    """
    try:
        entries = json.loads(raw)["files"]
        files = {name: File(**entry) for name, entry in entries.items()}
        safe = all(_is_inside(name) and _is_inside(file.object) for name, file in files.items())
        if safe and render(files) == raw:
            return files
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise Damaged(f"{MANIFEST} itself is corrupted")


def _is_inside(name: object) -> bool:
    return isinstance(name, str) and not {"", ".", ".."} & set(name.split("/"))


class Steps:
    """The folder of checkpoints of a run in a store."""

    def __init__(self, store: Store):
        self.store = store

    def numbers(self) -> list[int]:
        """Returns the steps that have a manifest, oldest first."""
        found = [_STEP.fullmatch(each.key) for each in self.store.list()]
        return sorted(int(match[1]) for match in found if match)

    def corrupt(self) -> list[int]:
        """Returns the steps that were set aside."""
        found = [_CORRUPT.fullmatch(each.key) for each in self.store.list()]
        return sorted({int(match[1]) for match in found if match})

    def files(self, step: int) -> Files:
        """Reads the manifest of a step. Raises Damaged."""
        try:
            return parse(self.store.read(f"{step}/{MANIFEST}"))
        except Missing:
            raise Damaged(f"{MANIFEST} is missing") from None

    def upload(self, step: int, token: str, folder: pathlib.Path, names: Iterable[str]) -> Files:
        """Hashes and uploads files in parallel; returns their entries."""

        def one(name: str) -> tuple[str, File]:
            path = folder / name
            file = File(f"{token}/{name}", path.stat().st_size, sha256(path))
            self.store.upload(path, f"{step}/{file.object}")
            return name, file

        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            return dict(pool.map(one, names))

    def download(
        self, step: int, files: Files, folder: pathlib.Path, names: Iterable[str]
    ) -> list[str]:
        """Downloads and verifies files in parallel, except those that `folder` has.

        Returns:
          One message per file that is missing, or whose contents have changed.
        """

        def one(name: str) -> str | None:
            if name not in files:
                return f"{name} is not in the manifest"
            file, path = files[name], folder / name
            if _matches(path, file):
                return None
            path.parent.mkdir(parents=True, exist_ok=True)
            for _ in range(2):  # a transfer may flip a bit as well
                try:
                    self.store.download(f"{step}/{file.object}", path)
                except Missing:
                    return f"{name} is missing"
                if _matches(path, file):
                    return None
            size = path.stat().st_size
            path.unlink()
            if size != file.bytes:
                return f"{name} has {size} bytes instead of {file.bytes}"
            return f"{name} does not match its SHA-256"

        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            return [problem for problem in pool.map(one, dict.fromkeys(names)) if problem]

    def commit(self, step: int, files: Files) -> None:
        """Makes the step exist, or replaces it: one write with a precondition.

        Raises:
          Conflict: another process has written the manifest at the same time.
        """
        key = f"{step}/{MANIFEST}"
        found = self.store.stat(key)
        self.store.write(key, render(files), expect="" if found is None else found.generation)

    def set_aside(self, step: int) -> str:
        """Renames the manifest of a damaged step, so that it is no longer used."""
        taken = {each.key for each in self.store.list(f"{step}/corrupt-")}
        number = next(n for n in range(1000) if f"{step}/corrupt-{n}.json" not in taken)
        name = f"{step}/corrupt-{number}.json"
        try:
            self.store.copy(f"{step}/{MANIFEST}", name)
        except Missing:
            self.store.write(name, b"")
        self.store.delete(f"{step}/{MANIFEST}")
        return name

    def delete(self, step: int) -> None:
        """Deletes a step: first its manifest, so it is never mistaken for a checkpoint."""
        self.store.delete(f"{step}/{MANIFEST}")
        self._delete(each.key for each in self.store.list(f"{step}/"))

    def clear_unfinished(self) -> None:
        """Deletes files that killed processes have left: no manifest lists them."""
        by_step: dict[int, list[str]] = {}
        for each in self.store.list():
            match = re.match(r"(0|[1-9][0-9]*)/", each.key)
            if match:
                by_step.setdefault(int(match[1]), []).append(each.key)
        for step, keys in by_step.items():
            if any(_CORRUPT.fullmatch(key) for key in keys):
                continue  # someone may repair it
            listed: set[str] = set()
            if f"{step}/{MANIFEST}" in keys:
                try:
                    files = self.files(step)
                except Damaged:
                    continue  # restore finds it
                listed = {f"{step}/{file.object}" for file in files.values()}
            self._delete(key for key in keys if key not in {*listed, f"{step}/{MANIFEST}"})

    def _delete(self, keys: Iterable[str]) -> None:
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self.store.delete, keys))


def combined(parts: Iterable[Files], where: str) -> Files:
    """Returns the files of all processes.

    Raises:
      CheckpointError: two processes have uploaded the same file.
    """
    found: Files = {}
    for part in parts:
        if twice := found.keys() & part.keys():
            raise CheckpointError(
                f"two processes have written {sorted(twice)[0]}.",
                where,
                "start every process of the run with the same settings.",
            )
        found |= part
    return found


def sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _matches(path: pathlib.Path, file: File) -> bool:
    try:
        return os.stat(path).st_size == file.bytes and sha256(path) == file.sha256
    except FileNotFoundError:
        return False
