"""Connected components of pairs that lie on disk: what is alike something's like goes with it."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from qwen_jax.corpus.arrow import pa, pq
from qwen_jax.corpus.shuffle import removed_schema


def removed(files: Sequence[pathlib.Path], first: int) -> pa.Table:
    """All documents from `first` that are not the first of their component, and which that is.

    Memory: 16 bytes for each document that is in any pair, and one file's pairs.

    Args:
      files: Parquet with `order` and `kept`, a pair of documents a row.
      first: documents before this one are of earlier runs; they are never removed.
    """
    nodes = np.zeros(0, np.int64)
    for path in files:
        nodes = np.union1d(nodes, np.unique(np.concatenate(_pairs(path))))
    root = np.arange(len(nodes), dtype=np.int64)
    changed = True
    while changed:
        changed = False
        for path in files:
            a, b = (np.searchsorted(nodes, side) for side in _pairs(path))
            a, b = root[a], root[b]
            apart = a != b
            if apart.any():
                changed = True
                np.minimum.at(root, np.maximum(a, b)[apart], np.minimum(a, b)[apart])
        while not np.array_equal(nearer := root[root], root):
            root = nearer
    gone = (root != np.arange(len(nodes))) & (nodes >= first)
    return pa.table(
        [nodes[gone], np.zeros(gone.sum(), np.uint32), nodes[root[gone]]], schema=removed_schema()
    )


def _pairs(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    table = pq.read_table(path, columns=["order", "kept"])
    return table["order"].to_numpy(), table["kept"].to_numpy()
