"""meta.json of a step: the names, shapes and dtypes of its leaves, and the caller's own meta."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qwen_jax.errors import CheckpointError
from qwen_jax.utils import tree as leaves

NAME = "meta.json"
FORMAT = 1


def describe(step: int, state: Any, meta: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The arrays by name, and the text of meta.json:
    everything about them and the caller's meta."""
    arrays, types, scalars, strange = {}, {}, {}, []
    for name, leaf in leaves.named(state):
        if type(leaf) in (int, float, bool):
            scalars[name] = leaf
        elif isinstance(leaf, (jax.Array, np.ndarray, np.generic)) and not jnp.issubdtype(
            leaf.dtype, jax.dtypes.prng_key
        ):
            arrays[name] = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        else:
            strange.append(f"{name} ({type(leaf).__name__})")
        types[name] = leaves.type_of(leaf)
    if strange:
        raise CheckpointError(
            f"leaves that are neither arrays nor numbers: {', '.join(strange)}.",
            "save(state)",
            "save a key as jax.random.key_data, text in meta.",
        )
    record = {"format": FORMAT, "step": step, "meta": meta, "leaves": types, "scalars": scalars}
    try:
        text = json.dumps(record, indent=1) + "\n"
        exact = json.loads(text)["meta"] == meta
    except (TypeError, ValueError):
        exact = False
    if not exact:
        raise CheckpointError(
            f"JSON does not return this unchanged: {meta!r}.",
            "save(meta)",
            "use dicts with text keys, lists, text, numbers, true, false, null.",
        )
    return arrays, text


def read(path: pathlib.Path) -> dict[str, Any]:
    record = json.loads((path / NAME).read_text(encoding="utf-8"))
    if record["format"] != FORMAT:
        raise CheckpointError(
            f"its format is {record['format']}; this version knows {FORMAT}.",
            str(path),
            "use the version of qwen_jax that wrote it.",
        )
    return record


def check_leaves(path: pathlib.Path, named: list[tuple[str, Any]], prefix: str) -> None:
    """Raises with every difference: Orbax itself would cast a dtype without a word."""
    wanted = {name: leaves.type_of(leaf) for name, leaf in named}
    saved = {
        name: kind
        for name, kind in read(path)["leaves"].items()
        if not prefix or name == prefix or name.startswith(prefix + ".")
    }
    lines = [f"{name}: not in the checkpoint" for name in wanted if name not in saved]
    lines += [f"{name}: in the checkpoint alone" for name in saved if name not in wanted]
    lines += [
        f"{name}: {leaves.kind_of(saved[name])} in the checkpoint, {leaves.kind_of(kind)} wanted"
        for name, kind in wanted.items()
        if name in saved and saved[name] != kind
    ]
    if lines:
        listed = "\n    ".join(sorted(lines))
        raise CheckpointError(
            f"the checkpoint is of another model or optimizer; {len(lines)} leaves differ:\n"
            f"    {listed}",
            str(path),
            "use the settings it was saved with (the run's config.json).",
        )
