"""Identifies what a run reads by its content; a resumed run must read the same.

inputs.json in the run folder lists each input: the flag that names it, its path, and a digest.
Hashing is cheap: checkpoints and token shards have manifests with the hashes of their files, and a
large file that has kept its path, size and time of modification is not read again.
"""

import dataclasses
import hashlib
import importlib.util
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from qwen_jax.checkpoint import manifest as step_manifest
from qwen_jax.data import shards, stored_shards
from qwen_jax.data.loader import folder_and_weight
from qwen_jax.errors import CheckpointError, ConfigError, DataError
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train.attempts.settings import difference
from qwen_jax.train.attempts.staged import local
from qwen_jax.utils.files import read_json, write_json
from qwen_jax.utils.storage.path import is_remote

NAME = "inputs.json"
# The flags that name data, and how their contents are identified.
FILES = ("data.conversations", "data.eval_conversations", "data.pairs", "data.eval_pairs",
         "data.prompts")  # fmt: skip
SHARDS = (
    "data.sources",
    "data.eval_sources",
    "data.pretrain.sources",
    "data.pretrain.eval_sources",
)
WEIGHTS = ("init_from", "reward_model")
TOKENIZERS = ("tokenizer", "data.tokenizer")
FUNCTIONS = "reward_functions"
ALL = (*FILES, *SHARDS, *WEIGHTS, *TOKENIZERS, FUNCTIONS)
_LARGE_BYTES = (
    256 << 20
)  # smaller files are hashed at every start, which takes a fraction of a second


@dataclasses.dataclass(frozen=True)
class Input:
    """One file or folder that a run reads.

    digest and step are compared. The others say where the content was, and when.
    """

    role: str  # the flag that names it, such as data.sources
    path: str
    digest: str
    step: int | None = None  # of a checkpoint
    bytes: int | None = None  # size of a file
    modified: int | None = None  # time of a file, in nanoseconds
    once: bool = False  # only the first start reads it: the initial weights of a run

    def same(self, other: "Input") -> bool:
        return (self.role, self.digest, self.step) == (other.role, other.digest, other.step)


def read(folder: str | os.PathLike) -> list[Input]:
    """Returns the inputs that a run has recorded; [] for runs of earlier versions.

    Raises:
      ConfigError: the record is damaged.
    """
    path = local(folder) / NAME
    if not path.exists():
        return []
    fix = "restore the file, or delete it: the next start then records the inputs that it finds."
    try:
        record = read_json(path, error=ConfigError, fix=fix)
        return [Input(**each) for each in record["inputs"]]
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{NAME} is not a record of inputs: {error}.", str(path), fix) from error


def write(folder: str | os.PathLike, found: Iterable[Input]) -> None:
    write_json(
        pathlib.Path(folder) / NAME, {"inputs": [dataclasses.asdict(each) for each in found]}
    )


def of_settings(
    settings: dict[str, Any], tokenizer: Tokenizer | None, recorded: Sequence[Input] = ()
) -> list[Input]:
    """Returns the inputs that a run's settings name, except weights.

    Args:
      settings: {"data.sources": [...], ...}, from run_folder.flatten.
      recorded: inputs of an earlier attempt, whose digests of large unchanged files are reused.
    """
    known = {(each.path, each.bytes, each.modified): each.digest for each in recorded}
    found = []
    for role in FILES:
        found += [_file(role, path, known) for path in settings.get(role) or ()]
    for role in SHARDS:
        found += [_shards(role, source) for source in settings.get(role) or ()]
    for name in settings.get(FUNCTIONS) or ():
        found.append(_function(name))
    if tokenizer is not None:
        role = next((role for role in reversed(TOKENIZERS) if role in settings), TOKENIZERS[0])
        path = settings.get(role)
        found.append(Input(role, _absolute(path) if path else "", tokenizer.fingerprint))
    return found


def of_step(role: str, folder: str | os.PathLike, step: int, *, once: bool = False) -> Input:
    """Returns the input for a checkpoint of a run folder.

    Raises:
      CheckpointError: the step is missing.
    """
    path = pathlib.Path(folder) / "checkpoints" / str(step) / step_manifest.NAME
    if not path.is_file():
        raise CheckpointError(
            f"step {step} of this run is missing, from which the run in --run_dir has started.",
            f"--{role}={folder}",
            "restore it; for a new run from another step, use another --run_dir. A run that others "
            "start from should keep its steps: --train.keep_checkpoints.",
        )
    # The manifest holds the hash of every file of the step.
    return Input(role, _absolute(folder), _sha256(path), step, once=once)


def compare(
    recorded: Sequence[Input],
    found: Sequence[Input],
    *,
    may_change: Callable[[str], bool],
    log: Callable[..., None],
) -> None:
    """Compares the inputs of a resumed run with the recorded ones.

    Args:
      may_change: returns whether the contents that a flag names may change in this attempt.
      log: receives the events "moved" (the same content at another path) and "input" (other
        content that may change), with name, old and new.

    Raises:
      ConfigError: contents have changed that may not; lists all of them.
    """
    refused = []
    for role in dict.fromkeys(each.role for each in (*recorded, *found)):
        old, new = ([each for each in side if each.role == role] for side in (recorded, found))
        if not old:
            continue  # a kind of input that an earlier version did not record
        paths = [[each.path for each in side] for side in (old, new)]
        if len(old) == len(new) and all(map(Input.same, old, new)):
            if paths[0] != paths[1]:
                log("moved", name=role, old=paths[0], new=paths[1])
        elif role == FUNCTIONS or may_change(role):
            log("input", name=role, old=paths[0], new=paths[1])
        else:
            refused.append(f"--{role}: {_describe(old, new)}")
    if refused:
        raise ConfigError(
            "the inputs of this run have changed since it started: " + "; ".join(refused) + ".",
            "; ".join(each.partition(":")[0] for each in refused),
            "restore them to resume the run, or start a new one in another --run_dir (--init_from "
            "with this run's folder continues from its weights).",
        )


def _describe(old: list[Input], new: list[Input]) -> str:
    """Returns which paths have changed, or whose contents."""
    names = [[_name(each) for each in side] for side in (old, new)]
    if names[0] != names[1]:
        a, b = (side[0] if len(side) == 1 else side for side in names)
        return difference(a, b)
    a, b = next(pair for pair in zip(old, new, strict=True) if not pair[0].same(pair[1]))
    size = f" ({b.bytes} bytes, was {a.bytes})" if a.bytes != b.bytes else ""
    return f"the contents of {names[0][old.index(a)]} have changed{size}"


def _name(each: Input) -> str:
    """Returns the path with what else identifies the content: a weight, or a step."""
    if not each.path:  # the flag of the tokenizer is not set
        return "the model's tokenizer"
    weight = "".join(each.digest.partition("=")[1:])
    return each.path + weight + (f" step {each.step}" if each.step is not None else "")


def _file(role: str, path: str, known: dict) -> Input:
    try:
        status = os.stat(path)
        key = (_absolute(path), status.st_size, status.st_mtime_ns)
        cached = known.get(key) if status.st_size >= _LARGE_BYTES else None
        return Input(role, key[0], cached or _sha256(path), None, *key[1:])
    except OSError as error:
        raise DataError(
            f"cannot read the file: {error}.", f"--{role}={path}", "check it."
        ) from None


def _shards(role: str, source: str) -> Input:
    folder, _ = folder_and_weight(source)
    weight = source[len(folder) :]  # with its "="
    stored = is_remote(folder)
    found = stored_shards.local_copy(folder) if stored else pathlib.Path(folder)
    digest = read_json(found / shards.MANIFEST).get("sha256", "")
    return Input(role, folder if stored else _absolute(folder), f"{digest}{weight}")


def _function(name: str) -> Input:
    spec = importlib.util.find_spec(name.partition(":")[0])
    origin = spec.origin if spec is not None else None
    digest = _sha256(origin) if origin and os.path.isfile(origin) else ""
    return Input(FUNCTIONS, name, digest)


def _absolute(path: str | os.PathLike) -> str:
    return str(pathlib.Path(path).resolve())


def _sha256(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
