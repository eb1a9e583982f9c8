"""The leaves of a pytree: their names, their types as JSON keeps them, their bytes."""

import math
from typing import Any

import jax
import numpy as np


def named(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted name, leaf) of every leaf, in the tree's order."""
    found = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        found.append((".".join(filter(None, [prefix, name])), leaf))
    return found


def type_of(leaf: Any) -> list:
    """What JSON keeps of a leaf: [shape, dtype], or [kind] of a Python number."""
    if type(leaf) in (int, float, bool):
        return [type(leaf).__name__]
    return [list(np.shape(leaf)), str(getattr(leaf, "dtype", type(leaf).__name__))]


def kind_of(leaf_type: list) -> str:
    return leaf_type[0] if len(leaf_type) == 1 else f"{leaf_type[1]} {leaf_type[0]}"


def bytes_of(leaf: Any) -> int:
    return math.prod(np.shape(leaf)) * np.dtype(getattr(leaf, "dtype", np.int64)).itemsize


def total_bytes(tree: Any) -> int:
    return sum(map(bytes_of, jax.tree.leaves(tree)))
