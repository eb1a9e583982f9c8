"""Reads the manifest of a shard folder, which may be damaged or hostile."""

import hashlib
import json
import pathlib
from collections.abc import Sequence

from qwen_jax.errors import DataError
from qwen_jax.utils.files import read_json

MANIFEST = "manifest.json"
FORMAT = 1


def read_manifest(folder: pathlib.Path) -> dict:
    """Reads the manifest; checks its own hash, then every entry.

    Raises:
      DataError: the folder or its manifest is missing, or the manifest is damaged, has another
        format, or names a file outside of the folder.
    """
    if not folder.is_dir():
        if folder.name == "eval" and (folder.parent / "train" / MANIFEST).exists():
            raise DataError(
                "no documents of this source are held out.",
                str(folder),
                "remove the folder from --data.eval_sources, or prepare the data again with an "
                "--eval_fraction above 0 and at least two documents.",
            )
        if folder.exists():
            raise DataError(
                "this is a file, not a folder of token shards.",
                str(folder),
                "write shards of it with `python -m experiments.prepare_data "
                f"--sources=mine={folder.parent}`, and pass the folder that it names; "
                "conversations go to experiments.sft.",
            )
        raise DataError(
            "the shard folder does not exist.",
            str(folder),
            "check the path, or write shards with `python -m experiments.prepare_data --help`.",
        )
    if not (folder / MANIFEST).exists():
        inside = sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}"))
        sources = [  # of the output folder of prepare_data, or its folder shards
            str(path.parent)
            for pattern in (f"shards/*/train/{MANIFEST}", f"*/train/{MANIFEST}")
            for path in sorted(folder.glob(pattern))
        ]
        raise DataError(
            f"no {MANIFEST}: this is not a shard folder.",
            str(folder),
            f"did you mean {folder / inside[-1]}?"
            if inside
            else f"did you mean {','.join(sources)}?"
            if sources
            else f"pass the folder that contains {MANIFEST}, or write the shards again.",
        )
    again = "copy the folder again, or write the shards again."
    record = read_json(folder / MANIFEST, fix=again)
    if "format" in record and record["format"] != FORMAT:
        raise DataError(
            f"the shards have format {str(record['format'])[:40]}, but this version reads "
            f"{FORMAT}.",
            str(folder),
            "write the shards again.",
        )
    if record.get("sha256") != own_hash(record):
        raise DataError(f"{MANIFEST} was modified after it was written.", str(folder), again)
    if problem := _wrong_entry(record):
        raise DataError(f"{MANIFEST} is corrupted: {problem}.", str(folder / MANIFEST), again)
    return record


def _wrong_entry(record: dict) -> str | None:
    """Returns the first entry of a manifest that is missing or wrong; None: there is none."""

    def wrong(entry: dict, names: Sequence[str], kind: type) -> str | None:
        bad = [name for name in names if type(entry.get(name)) is not kind]
        bad += [name for name in names if kind is int and not bad and entry[name] < 0]
        return f"{bad[0]}={str(entry.get(bad[0]))[:60]}" if bad else None

    files = record.get("files")
    if not isinstance(files, list) or not files or not all(isinstance(f, dict) for f in files):
        return "files is not a list of entries"
    if record.get("dtype") not in ("uint16", "uint32"):
        return f"dtype={str(record.get('dtype'))[:60]}"
    found = wrong(record, ("text_bytes", "vocab_size", "end_of_text"), int)
    found = found or wrong(record, ("tokenizer",), str)
    for entry in files:
        found = found or wrong(entry, ("tokens", "documents"), int)
        found = found or wrong(entry, ("file", "sha256"), str)
        if found is None and not _is_plain(entry["file"]):
            return f"the file {entry['file'][:60]!r} is not in this folder"
    return found


def _is_plain(name: str) -> bool:
    """Returns whether a file name cannot lead out of its folder, on any system."""
    return name not in ("", ".", "..") and not set(name) & set("/\\:\0")


def own_hash(record: dict) -> str:
    """Returns the hash that a manifest carries, over all of its other entries."""
    rest = {name: value for name, value in record.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
