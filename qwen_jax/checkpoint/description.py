"""A step's meta.json: names, shapes and dtypes of its leaves, and the caller's metadata."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qwen_jax.checkpoint.unreadable import unreadable
from qwen_jax.errors import CheckpointError
from qwen_jax.utils import tree as leaves
from qwen_jax.utils.files import read_json

NAME = "meta.json"
FORMAT = 1


def describe(step: int, state: Any, meta: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Returns the arrays by name and the text of meta.json.

    Raises:
      CheckpointError: a leaf is not an array or a number, or `meta` is not JSON-serializable.
    """
    arrays, types, scalars, unsupported = {}, {}, {}, []
    for name, leaf in leaves.named(state):
        if type(leaf) in (int, float, bool):
            scalars[name] = leaf
        elif isinstance(leaf, (jax.Array, np.ndarray, np.generic)) and not jnp.issubdtype(
            leaf.dtype, jax.dtypes.prng_key
        ):
            arrays[name] = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        else:
            unsupported.append(f"{name} ({type(leaf).__name__})")
        types[name] = leaves.type_of(leaf)
    if unsupported:
        raise CheckpointError(
            f"these leaves are neither arrays nor numbers: {', '.join(unsupported)}.",
            "save(state)",
            "save a random key as its jax.random.key_data, and text in `meta`.",
        )
    record = {"format": FORMAT, "step": step, "meta": meta, "leaves": types, "scalars": scalars}
    try:
        text = json.dumps(record, indent=1) + "\n"
        exact = json.loads(text)["meta"] == meta
    except (TypeError, ValueError):
        exact = False
    if not exact:
        raise CheckpointError(
            f"meta is not JSON-serializable without loss: {meta!r}.",
            "save(meta)",
            "use dicts with string keys, lists, strings, numbers, booleans and None.",
        )
    return arrays, text


def read(path: pathlib.Path) -> dict[str, Any]:
    """Reads the meta.json of the step folder `path`.

    Raises:
      CheckpointError: it is missing, cannot be read or is damaged; or its format is not supported,
        because another version wrote it.
    """
    fix = "restore the file from a backup, or move this step elsewhere to use an older one."
    try:
        record = read_json(path / NAME, error=CheckpointError, fix=fix, finite=False)
    except OSError as error:
        raise unreadable(path / NAME, error) from error
    except RecursionError:
        record = {}  # nested thousands deep
    if type(record.get("format")) is int and record["format"] != FORMAT:
        raise CheckpointError(
            f"the checkpoint has format {record['format']}; this version supports only {FORMAT}.",
            str(path),
            "use the version of qwen_jax that wrote it.",
        )
    wrong = [name for name, valid in _FIELDS.items() if not valid(record.get(name))]
    if wrong:
        raise CheckpointError(
            f"{NAME} is damaged: {', '.join(wrong)} missing or invalid.", str(path / NAME), fix
        )
    return record


def _is_type(leaf: Any) -> bool:
    """Returns whether `leaf` is a type as utils.tree.type_of describes it."""
    match leaf:
        case ["int" | "float" | "bool"]:
            return True
        case [[*shape], str()]:
            return all(type(size) is int and size >= 0 for size in shape)
    return False


_FIELDS = {
    "format": lambda value: type(value) is int,  # its value is compared above
    "step": lambda value: type(value) is int,
    "meta": lambda value: isinstance(value, dict),
    "leaves": lambda value: isinstance(value, dict) and all(map(_is_type, value.values())),
    "scalars": lambda value: (
        isinstance(value, dict) and all(type(each) in (int, float, bool) for each in value.values())
    ),
}


def check_leaves(path: pathlib.Path, named: list[tuple[str, Any]], prefix: str) -> None:
    """Compares leaves with those of the checkpoint. Orbax would cast dtypes silently.

    Args:
      path: folder of the step.
      named: names and leaves to load.
      prefix: compare only leaves under this dotted name; "": all leaves.

    Raises:
      CheckpointError: names, shapes or dtypes differ; lists every difference.
    """
    wanted = {name: leaves.type_of(leaf) for name, leaf in named}
    saved = {
        name: kind
        for name, kind in read(path)["leaves"].items()
        if not prefix or name == prefix or name.startswith(prefix + ".")
    }
    lines = [f"{name}: not in the checkpoint" for name in wanted if name not in saved]
    lines += [f"{name}: only in the checkpoint" for name in saved if name not in wanted]
    lines += [
        f"{name}: {leaves.kind_of(saved[name])} in the checkpoint, {leaves.kind_of(kind)} expected"
        for name, kind in wanted.items()
        if name in saved and saved[name] != kind
    ]
    if lines:
        listed = "\n    ".join(sorted(lines))
        raise CheckpointError(
            f"the checkpoint belongs to another model or optimizer; {len(lines)} leaves differ:\n"
            f"    {listed}",
            str(path),
            "use the settings it was saved with (see the run's config.json).",
        )
