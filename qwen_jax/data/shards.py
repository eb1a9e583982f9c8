"""Token shards: written once and atomically, with a manifest of their contents.

A shard folder holds `tokens-00000.bin`, ... (little-endian uint16 or uint32, with <|endoftext|>
after every document) and `manifest.json`. The order of documents is random and depends only on the
seed and their text: a hash assigns each document to a shard and sorts it there. The output is
byte-identical for any order of the input files and any number of threads.

`write` does everything in one call. Parallel tasks use its two halves: `scatter` encodes some
documents into a part, and `gather` builds one shard from all parts.
"""

import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from qwen_jax.data import stored_shards
from qwen_jax.data.document import Document
from qwen_jax.data.shard_manifest import FORMAT, MANIFEST, own_hash, read_manifest
from qwen_jax.data.split import Split
from qwen_jax.errors import DataError
from qwen_jax.tokenizer.carry import save_tokenizer
from qwen_jax.utils.files import atomic_write, sync_folder, write_json
from qwen_jax.utils.storage.path import is_remote

_PART_CHARACTERS = 1 << 26  # characters that `write` encodes into one part
_VERIFY_BYTES = 1 << 30  # folders below this size are hashed at every open, which takes a second


class Tokenizer(Protocol):
    """The interface of qwen_jax.tokenizer.bpe.Tokenizer that shards need."""

    fingerprint: Any  # a string; the type `str` would reject a cached_property

    @property
    def vocab_size(self) -> int: ...

    @property
    def end_of_text(self) -> int: ...

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]: ...

    settings: Any  # tokenizer.settings.Settings

    def save(self, path: str | os.PathLike) -> None: ...


@dataclasses.dataclass(frozen=True)
class Shards:
    """An opened shard folder."""

    folder: pathlib.Path
    files: tuple[pathlib.Path, ...]
    lengths: tuple[int, ...]  # tokens in each file
    dtype: str
    documents: int
    text_bytes: int  # size of the text in UTF-8
    vocab_size: int
    end_of_text: int
    tokenizer: str  # fingerprint of the tokenizer
    url: str | None = None  # where to read ranges of `files`; None: they are local

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def bytes_per_token(self) -> float:
        return self.text_bytes / self.tokens


def write(
    documents: Iterable[Document],
    folder: str | os.PathLike,
    tokenizer: Tokenizer,
    *,
    eval_fraction: float = 0.0,
    seed: int = 0,
    num_shards: int = 1,
    progress: Callable[[int, int], None] = lambda documents, tokens: None,
) -> None:
    """Writes `folder`/train, `folder`/eval for the held-out fraction, and the tokenizer.

    Holds about 64M characters of text and their tokens in memory, or the index of one shard. Equal
    texts, and documents of one group, are always on the same side of the split, in all calls with
    the same seed.

    Args:
      eval_fraction: fraction of documents or groups to hold out, from 0 to 1; chosen by hash.
      num_shards: number of train shards; about 100M tokens each is a good size.
      progress: called with the numbers of (documents, tokens) so far.

    Raises:
      DataError: the folder exists, there is no text, the split leaves one side empty, or the disk
        is full. No partial output is left.
    """
    folder = pathlib.Path(folder)
    if folder.exists():
        raise DataError(
            "this folder already exists.",
            str(folder),
            "choose another name, or delete the folder first; shards are never overwritten.",
        )
    working = folder.with_name(folder.name + ".writing")
    shutil.rmtree(working, ignore_errors=True)  # left by a killed process
    try:
        working.mkdir(parents=True)
        _write(documents, working, tokenizer, Split(eval_fraction, seed, num_shards), progress)
        working.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise DataError(
            f"the shards could not be written: {error.strerror or error}.",
            str(folder),
            "check permissions and free disk space, then try again.",
        ) from error
    finally:
        shutil.rmtree(working, ignore_errors=True)


def open_shards(folder: str | os.PathLike, *, verify: bool | None = None) -> Shards:
    """Opens a shard folder and checks it against its manifest.

    Args:
      folder: a path, or an address in an object store; see stored_shards.py.
      verify: whether to check the SHA-256 of the files, not only their sizes; None: only for
        folders smaller than 1 GiB.

    Raises:
      DataError: the folder or its manifest is missing, or files differ from the manifest; the error
        lists all of them.
    """
    url = str(folder) if is_remote(folder) else None
    folder = pathlib.Path(folder) if url is None else stored_shards.local_copy(url)
    record = read_manifest(folder)
    files, itemsize = record["files"], np.dtype(record["dtype"]).itemsize
    if verify is None:
        verify = sum(f["tokens"] for f in files) * itemsize < _VERIFY_BYTES
    if url is not None and verify:
        stored_shards.copy_files(url, folder, files)
    problems = (
        [problem for f in files if (problem := _problem(folder, f, itemsize, verify))]
        if url is None or verify
        else _stored_problems(url, files, itemsize)
    )
    if problems:
        raise DataError(
            f"the shards do not match their manifest: {'; '.join(problems)}.",
            url or str(folder),
            "copy the folder again, or write the shards again.",
        )
    return Shards(
        folder=folder,
        files=tuple(folder / f["file"] for f in files),
        lengths=tuple(f["tokens"] for f in files),
        dtype=record["dtype"],
        documents=sum(f["documents"] for f in files),
        text_bytes=record["text_bytes"],
        vocab_size=record["vocab_size"],
        end_of_text=record["end_of_text"],
        tokenizer=record["tokenizer"],
        url=None if verify else url,
    )


def _stored_problems(url: str, entries: list[dict], itemsize: int) -> list[str]:
    """Describes the objects that are missing, or that have another size than in the manifest."""
    found, problems = stored_shards.sizes(url), []
    for entry in entries:
        name, size = entry["file"], entry["tokens"] * itemsize
        if name not in found:
            problems.append(f"{name} is missing")
        elif found[name] != size:
            problems.append(f"{name} has {found[name]} bytes, not {size}")
    return problems


def _problem(folder: pathlib.Path, entry: dict, itemsize: int, verify: bool) -> str | None:
    """Describes how a file differs from its manifest entry; None if it matches."""
    path, size = folder / entry["file"], entry["tokens"] * itemsize
    if not path.is_file():
        return f"{entry['file']} is missing"
    if path.stat().st_size != size:
        return f"{entry['file']} has {path.stat().st_size} bytes, not {size}"
    if verify and _sha256(path) != entry["sha256"]:
        return f"{entry['file']} does not match its SHA-256"
    return None


_BLOCK = 1 << 23  # tokens, at most 32 MB
_PART = np.dtype([("file", "<u4"), ("key", "S24"), ("tokens", "<i8"), ("bytes", "<i8")])


def scatter(
    documents: Iterable[Document],
    path: str | os.PathLike,
    tokenizer: Tokenizer,
    *,
    split: Split,
    threads: int | None = None,
    copies: Callable[[Document], int] = lambda document: 1,
    progress: Callable[[int, int], None] = lambda documents, tokens: None,
) -> int:
    """Encodes documents into a part and returns the number of tokens.

    A part is PATH.bin, the tokens by shard, and PATH.npy, the index of documents. Both are written
    atomically. The tokens of these documents are held in memory.

    Args:
      threads: number of tokenizer threads; None: the tokenizer's default.
      copies: returns how often a document appears in train, each copy at a different position.
      progress: called with the numbers of (documents, tokens) so far after every batch.
    """
    path, dtype = pathlib.Path(path), dtype_of(tokenizer)
    limited = {} if threads is None else {"num_threads": threads}
    entries, encoded = [], []
    tokens = 0
    for batch in _batches(documents):
        encode = tokenizer.encode_batch([d.text for d in batch], **limited)
        for document, ids in zip(batch, encode, strict=True):
            tokenized = np.empty(len(ids) + 1, dtype)
            tokenized[:-1], tokenized[-1] = ids, tokenizer.end_of_text
            size = len(document.text.encode("utf-8", "replace"))
            for copy in range(copies(document)):
                file, key = split.assign(document, copy)
                if copy and file == split.num_shards:
                    break  # eval holds one copy
                encoded.append(tokenized)
                entries.append((file, key, len(tokenized), size))
                tokens += len(tokenized)
        progress(len(entries), tokens)
    # Sorted without numpy, whose S24 drops trailing zero bytes.
    order = sorted(range(len(entries)), key=lambda i: entries[i][:2])
    with atomic_write(path.with_name(path.name + ".bin"), buffering=1 << 20) as file:
        file.writelines(encoded[i] for i in order)
    with atomic_write(path.with_name(path.name + ".npy")) as file:
        np.save(file, np.array([entries[i] for i in order], _PART))
    return tokens


def gather(
    parts: Iterable[str | os.PathLike], path: str | os.PathLike, number: int, dtype: np.dtype
) -> dict:
    """Writes one shard from all parts, with its documents sorted; returns its manifest entry.

    Holds the shard's index and about _BLOCK tokens in memory.

    Args:
      parts: the paths that were passed to `scatter`.
      number: index of the shard in Split.files.
    """
    paths = [pathlib.Path(part) for part in parts]
    entries, starts = [], []
    for part in paths:
        table = np.load(part.with_name(part.name + ".npy"))
        in_shard = slice(*np.searchsorted(table["file"], [number, number + 1]))
        starts.append((np.cumsum(table["tokens"]) - table["tokens"])[in_shard])
        entries.append(table[in_shard].copy())
    part_of = np.repeat(np.arange(len(paths)), [len(each) for each in entries])
    table, start = np.concatenate(entries), np.concatenate(starts)
    keys = table["key"].astype(object)
    order = np.array(sorted(range(len(table)), key=lambda i: keys[i].ljust(24, b"\0")), np.int64)
    sizes, path = table["tokens"], pathlib.Path(path)
    blocks = (np.cumsum(sizes[order]) - sizes[order]) // _BLOCK
    with atomic_write(path, buffering=1 << 20) as file:
        for docs in np.split(order, np.flatnonzero(np.diff(blocks)) + 1):
            ends = np.cumsum(sizes[docs])
            ids = np.empty(int(sizes[docs].sum()), dtype)
            # Reads the parts one after the other, each sequentially.
            by_part = np.lexsort((start[docs], part_of[docs])).tolist()
            for each, indices in itertools.groupby(by_part, key=lambda i: part_of[docs[i]]):
                with open(paths[each].with_name(paths[each].name + ".bin"), "rb") as source:
                    for i in indices:
                        source.seek(int(start[docs[i]]) * dtype.itemsize)
                        into = ids[ends[i] - sizes[docs[i]] : ends[i]]
                        if source.readinto(into) != into.nbytes:
                            raise DataError(
                                "this file is truncated.",
                                source.name,
                                "delete the folder of parts and run again.",
                            )
            file.write(ids)
    return {
        "file": path.name,
        "tokens": int(sizes.sum()),
        "documents": len(table),
        "sha256": _sha256(path),
        "text_bytes": int(table["bytes"].sum()),
    }


def write_manifests(
    folder: pathlib.Path, entries: Sequence[dict], tokenizer: Tokenizer, split: Split
) -> None:
    """Writes the manifests and the tokenizer of a folder whose shards `gather` has written.

    Args:
      folder: contains train and possibly eval, each with its shards.
      entries: manifest entries of all files, in the order of Split.files.

    Raises:
      DataError: there are no documents, or none on one side of the split.
    """
    count = sum(entry["documents"] for entry in entries)
    if not count:
        raise DataError("there are no documents to write.", str(folder), "check the sources.")
    for side in dict.fromkeys(side for side, _ in split.files()):
        files = [
            dict(entry) for entry, (of, _) in zip(entries, split.files(), strict=True) if of == side
        ]
        if not any(entry["documents"] for entry in files):
            raise DataError(
                f"none of {count} documents is in {side} at eval_fraction={split.eval_fraction}.",
                str(folder),
                "use more documents, or a different eval_fraction.",
            )
        text_bytes = sum(entry.pop("text_bytes") for entry in files)
        record = {
            "format": FORMAT,
            "dtype": dtype_of(tokenizer).name,
            "files": files,
            "seed": split.seed,
            "tokens": sum(entry["tokens"] for entry in files),
            "documents": sum(entry["documents"] for entry in files),
            "text_bytes": text_bytes,
            "vocab_size": tokenizer.vocab_size,
            "end_of_text": tokenizer.end_of_text,
            "tokenizer": tokenizer.fingerprint,
        }
        write_json(folder / side / MANIFEST, record | {"sha256": own_hash(record)})
    save_tokenizer(folder, tokenizer)


def _write(documents, working, tokenizer, split: Split, progress) -> None:
    parts, done, tokens = [], 0, 0
    (working / "parts").mkdir()
    for batch in _batches(documents, _PART_CHARACTERS):
        parts.append(working / "parts" / str(len(parts)))
        tokens += scatter(
            batch,
            parts[-1],
            tokenizer,
            split=split,
            progress=functools.partial(
                lambda before, ids, more, new: progress(before + more, ids + new), done, tokens
            ),
        )
        done += len(batch)
    if not parts:
        raise DataError("there are no documents to write.", str(working), "check the sources.")
    entries = []
    for number, (side, shard) in enumerate(split.files()):
        (working / side).mkdir(exist_ok=True)
        entries.append(
            gather(parts, working / side / shard_name(shard), number, dtype_of(tokenizer))
        )
    shutil.rmtree(working / "parts")
    write_manifests(working, entries, tokenizer, split)


def shard_name(number: int) -> str:
    return f"tokens-{number:05d}.bin"


def dtype_of(tokenizer: Tokenizer) -> np.dtype:
    """Returns the dtype of the tokens in shards."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")


def _batches(documents: Iterable[Document], size: int = 1 << 20) -> Iterator[list[Document]]:
    """Yields lists of documents of about `size` characters, enough for all tokenizer threads."""
    batch, characters = [], 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= size:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
