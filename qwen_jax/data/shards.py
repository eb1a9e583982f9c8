"""Token shards: written once, whole or not at all, with a manifest of what is in them.

A shard folder holds `tokens-00000.bin`, ... (little-endian uint16 or uint32, every document ended
by <|endoftext|>) and `manifest.json`. Documents are in a random order that depends on the seed and
their text alone, so neither the order of the files nor the number of threads changes a byte:
each document is thrown into one of the shards by its hash, and each shard is sorted by it.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np

from qwen_jax.data.sources import Document
from qwen_jax.errors import DataError

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.tiktoken"
FORMAT = 1
_VERIFY_BYTES = 1 << 30  # up to here a folder's hashes are checked whenever it is opened: a second


class Tokenizer(Protocol):
    """What is needed of qwen_jax.tokenizer.bpe.Tokenizer."""

    vocab_size: int
    end_of_text: int
    fingerprint: str

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]: ...

    def save(self, path: pathlib.Path) -> None: ...


@dataclasses.dataclass(frozen=True)
class Shards:
    """An opened shard folder."""

    folder: pathlib.Path
    files: tuple[pathlib.Path, ...]
    lengths: tuple[int, ...]  # tokens in each file
    dtype: str
    documents: int
    text_bytes: int  # UTF-8
    vocab_size: int
    end_of_text: int
    tokenizer: str  # fingerprint

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def bytes_per_token(self) -> float:
        return self.text_bytes / self.tokens


def write(documents: Iterable[Document], folder: str | os.PathLike, tokenizer: Tokenizer, *,
          eval_fraction: float = 0.0, seed: int = 0, num_shards: int = 1,
          progress: Callable[[int, int], None] = lambda documents, tokens: None) -> None:
    """Writes `folder`/train, `folder`/eval for the share of documents asked for, and the tokenizer.

    Memory: one shard. Two equal texts, and two documents of a group, are always on the same side of
    the split, in whatever call with the same seed.

    Args:
      eval_fraction: of the documents or groups, 0 to 1; they are chosen by their hash.
      num_shards: of train; choose them for some 100M tokens each.
      progress: told (documents, tokens) so far.

    Raises:
      DataError: the folder exists already, there is no text, the split leaves one side empty, or
        the disk is full. Nothing is left behind.
    """
    folder = pathlib.Path(folder)
    if folder.exists():
        raise DataError("this folder exists already.", str(folder),
                        "shards are written once: choose another name, or delete it first.")
    working = folder.with_name(folder.name + ".writing")
    shutil.rmtree(working, ignore_errors=True)  # of a process that was killed
    try:
        working.mkdir(parents=True)
        _write(documents, working, tokenizer, eval_fraction, seed, num_shards, progress)
        working.rename(folder)
    except OSError as error:
        raise DataError(f"the shards could not be written: {error.strerror or error}.",
                        str(folder), "free some space on the disk and start again.") from error
    finally:
        shutil.rmtree(working, ignore_errors=True)


def open_shards(folder: str | os.PathLike, *, verify: bool | None = None) -> Shards:
    """Opens a shard folder and checks it against its manifest.

    Args:
      verify: whether the files' SHA-256 are compared, not their sizes alone; None: when the folder
        is smaller than a GiB.

    Raises:
      DataError: no such folder, no manifest, or files that differ from it, all of them named.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise DataError("there is no such shard folder.", str(folder),
                        "write shards with `python -m experiments.prepare_text --help`.")
    try:
        record = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise DataError(f"shard format {record['format']}; this version reads {FORMAT}.",
                            str(folder), "write the shards again.")
        files = record["files"]
        dtype = np.dtype(record["dtype"]).newbyteorder("<")
        whole = record["sha256"] == _own_hash(record)
    except FileNotFoundError as error:
        inside = sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}"))
        raise DataError(f"no {MANIFEST}: this is not a shard folder.", str(folder),
                        f"did you mean {folder / inside[-1]}?" if inside else
                        "pass the folder that holds it, or write the shards again.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{MANIFEST} is damaged ({type(error).__name__}: {error}).", str(folder),
                        "write the shards again.") from error
    problems = [] if whole else [f"{MANIFEST} was changed after it was written"]
    verify = sum(f["tokens"] for f in files) * dtype.itemsize < _VERIFY_BYTES \
        if verify is None else verify
    for entry in files:
        path = folder / entry["file"]
        if not path.exists():
            problems.append(f"{entry['file']} is missing")
        elif path.stat().st_size != entry["tokens"] * dtype.itemsize:
            problems.append(f"{entry['file']} has {path.stat().st_size} bytes, not "
                            f"{entry['tokens'] * dtype.itemsize}")
        elif verify and _sha256(path) != entry["sha256"]:
            problems.append(f"{entry['file']} has other contents than were written")
    if problems:
        raise DataError(f"the shards do not match their manifest: {'; '.join(problems)}.",
                        str(folder), "copy the folder again, or write the shards again.")
    return Shards(
        folder=folder, files=tuple(folder / f["file"] for f in files),
        lengths=tuple(f["tokens"] for f in files), dtype=record["dtype"],
        documents=sum(f["documents"] for f in files), text_bytes=record["text_bytes"],
        vocab_size=record["vocab_size"], end_of_text=record["end_of_text"],
        tokenizer=record["tokenizer"])


def _write(documents, working, tokenizer, eval_fraction, seed, num_shards, progress) -> None:
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    sides = {"train": [_Bucket(working / f"train-{i}", dtype) for i in range(num_shards)],
             "eval": [_Bucket(working / "eval-0", dtype)]}
    text_bytes = dict.fromkeys(sides, 0)
    count = tokens = 0
    for batch in _batches(documents):
        for document, ids in zip(batch, tokenizer.encode_batch([d.text for d in batch]),
                                 strict=True):
            key = _hash(document.text, seed)
            group = key if document.group is None else _hash(document.group, seed)
            draw = int.from_bytes(group[:8], "little") / 2**64
            side = "eval" if draw < eval_fraction else "train"
            buckets = sides[side]
            bucket = buckets[int.from_bytes(key[8:16], "little") % len(buckets)]
            bucket.add(key[16:] + key[:16], np.append(ids, tokenizer.end_of_text).astype(dtype))
            text_bytes[side] += len(document.text.encode("utf-8", "replace"))
            count, tokens = count + 1, tokens + len(ids) + 1
        progress(count, tokens)
    if not count:
        raise DataError("there are no documents to write.", str(working), "check the sources.")
    for side, buckets in sides.items():
        if side == "eval" and not eval_fraction:
            buckets[0].delete()
            continue
        if not any(bucket.keys for bucket in buckets):
            raise DataError(
                f"of {count} documents none is in {side} at eval_fraction={eval_fraction}.",
                str(working), "use more documents, or another fraction.")
        (working / side).mkdir()
        files = []
        for number, bucket in enumerate(buckets):
            files.append(bucket.finish(working / side / f"tokens-{number:05d}.bin"))
        record = {"format": FORMAT, "dtype": dtype.name, "files": files, "seed": seed,
                  "tokens": sum(f["tokens"] for f in files),
                  "documents": sum(f["documents"] for f in files),
                  "text_bytes": text_bytes[side], "vocab_size": tokenizer.vocab_size,
                  "end_of_text": tokenizer.end_of_text, "tokenizer": tokenizer.fingerprint}
        text = json.dumps(record | {"sha256": _own_hash(record)}, indent=1) + "\n"
        (working / side / MANIFEST).write_text(text, encoding="utf-8")
    tokenizer.save(working / TOKENIZER)


class _Bucket:
    """The documents of one shard, on disk in the order they came, and the key of each."""

    def __init__(self, path: pathlib.Path, dtype: np.dtype):
        self._path, self._dtype, self._file = path, dtype, open(path, "wb")
        self.keys: list[bytes] = []
        self._lengths: list[int] = []

    def add(self, key: bytes, ids: np.ndarray) -> None:
        self.keys.append(key)
        self._lengths.append(len(ids))
        ids.tofile(self._file)

    def finish(self, path: pathlib.Path) -> dict:
        """Writes the documents sorted by key, and returns the entry of the manifest."""
        self._file.close()
        ids = np.fromfile(self._path, self._dtype)
        ends = np.cumsum(self._lengths, dtype=np.int64)
        order = sorted(range(len(self.keys)), key=self.keys.__getitem__)
        with open(path, "wb") as file:
            for i in order:
                ids[ends[i] - self._lengths[i]:ends[i]].tofile(file)
            file.flush()
            os.fsync(file.fileno())
        self._path.unlink()
        return {"file": path.name, "tokens": len(ids), "documents": len(self.keys),
                "sha256": _sha256(path)}

    def delete(self) -> None:
        self._file.close()
        self._path.unlink()


def _batches(documents: Iterable[Document], size: int = 1 << 20) -> Iterator[list[Document]]:
    """Lists of documents of about `size` characters, enough for all threads of the tokenizer."""
    batch, characters = [], 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= size:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _hash(text: str, seed: int) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=24,
                           key=seed.to_bytes(8, "little")).digest()


def _own_hash(record: dict) -> str:
    rest = {name: value for name, value in record.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
