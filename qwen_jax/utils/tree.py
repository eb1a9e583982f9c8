"""Names, types (as JSON values) and sizes of the leaves of a pytree."""

import math
from typing import Any

import jax
import numpy as np


def named(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Returns the dotted name of every leaf with the leaf, in tree order."""
    found = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        found.append((".".join(filter(None, [prefix, name])), leaf))
    return found


def type_of(leaf: Any) -> list:
    """Returns a leaf's type as JSON: [shape, dtype], or [name of the type] for a Python number."""
    if type(leaf) in (int, float, bool):
        return [type(leaf).__name__]
    return [list(np.shape(leaf)), str(getattr(leaf, "dtype", type(leaf).__name__))]


def kind_of(leaf_type: list) -> str:
    """Formats the result of `type_of` for error messages."""
    return leaf_type[0] if len(leaf_type) == 1 else f"{leaf_type[1]} {leaf_type[0]}"


def bytes_of(leaf: Any) -> int:
    """Returns the size of a leaf in bytes."""
    return math.prod(np.shape(leaf)) * np.dtype(getattr(leaf, "dtype", np.int64)).itemsize


def total_bytes(tree: Any) -> int:
    """Returns the total size of all leaves in bytes."""
    return sum(map(bytes_of, jax.tree.leaves(tree)))
