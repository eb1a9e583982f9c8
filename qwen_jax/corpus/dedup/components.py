"""Finds connected components of duplicate pairs on disk; duplication is treated as transitive."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from qwen_jax.corpus.arrow import pa, pq
from qwen_jax.corpus.shuffle import removed_schema


def removed(files: Sequence[pathlib.Path], first: int) -> pa.Table:
    """Returns the documents to remove: all but the first of each component.

    Only documents from `first` on are returned, each with the document that is kept instead. Memory
    use is 16 bytes per document that appears in a pair, plus the pairs of one file.

    Args:
      files: Parquet files with the columns `order` and `kept`; each row is a pair of documents.
      first: the first document of this run. Those before it belong to earlier runs and are never
        removed.
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
            separate = a != b
            if separate.any():
                changed = True
                np.minimum.at(root, np.maximum(a, b)[separate], np.minimum(a, b)[separate])
        while not np.array_equal(nearer := root[root], root):
            root = nearer
    gone = (root != np.arange(len(nodes))) & (nodes >= first)
    return pa.table(
        [nodes[gone], np.zeros(gone.sum(), np.uint32), nodes[root[gone]]], schema=removed_schema()
    )


def _pairs(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    table = pq.read_table(path, columns=["order", "kept"])
    return table["order"].to_numpy(), table["kept"].to_numpy()
