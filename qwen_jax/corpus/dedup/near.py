"""Removes near duplicates with MinHash, banded LSH and connected components. Report: 2.1.

Locality-sensitive hashing (LSH): two documents whose shingles (minhash.py) have Jaccard similarity
s share at least one of `bands` bands of `rows` hashes with probability 1 - (1 - s^rows)^bands, the
S-curve. Documents that share a band, directly or through others, form a component. Only the first
document of a component is kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from qwen_jax.config import option
from qwen_jax.corpus.arrow import pa
from qwen_jax.corpus.dedup.minhash import signatures
from qwen_jax.corpus.shuffle import first_of_group, removed_schema
from qwen_jax.corpus.stage import reject
from qwen_jax.ranges import SEED, Checked, Range

_MIX = np.uint64(0x9E3779B97F4A7C15)


def band_hashes(signature: np.ndarray, bands: int) -> np.ndarray:
    """Returns a hash of each band; uint64 [documents, bands]. Collision probability: 2^-64."""
    banded = signature.reshape(len(signature), bands, signature.shape[1] // bands).astype(np.uint64)
    mixed = np.broadcast_to(np.arange(1, bands + 1, dtype=np.uint64) * _MIX, banded.shape[:2])
    for row in range(banded.shape[2]):
        mixed = (mixed ^ banded[:, :, row]) * _MIX
        mixed = mixed ^ (mixed >> np.uint64(29))
    return mixed


def probability(similarity, *, bands: int, rows: int):
    """Returns the S-curve: the probability that documents of this similarity share a band.

    Args:
      similarity: the Jaccard similarity of two documents' shingles.
      bands: number of bands.
      rows: number of hashes in a band.
    """
    return 1 - (1 - np.asarray(similarity, float) ** rows) ** bands


@dataclasses.dataclass(frozen=True)
class NearDedup(Checked, where="--minhash.{}"):
    """Rejects near duplicates of earlier documents; implements shuffle.Shuffle.

    Attributes:
      index: near_dedup folders of earlier runs with the same settings. Their documents precede all
        others.
    """

    linked: ClassVar[bool] = True

    bands: int = option(
        14,
        "number of LSH bands (ours; recall 0.5 at Jaccard 0.72, 0.92 at 0.8, 0.05 at 0.5)",
        Range(1, 1000),
    )
    rows: int = option(8, "MinHash values per band (ours)", Range(1, 1000))
    shingle: int = option(5, "words per shingle (ours)", Range(1, 1000))
    seed: int = option(0, "random seed of the hash functions", SEED)
    index: tuple[str, ...] = option(
        (), "near_dedup folders of earlier runs; their documents count as earlier"
    )

    @property
    def name(self) -> str:
        return "near_dedup"

    @property
    def counted(self) -> tuple[str, ...]:
        return ()

    def keys(self, table: pa.Table, first: int) -> pa.Table:
        texts = table["text"].cast(pa.large_binary()).to_pylist()
        rows, signature = signatures(
            texts, hashes=self.bands * self.rows, shingle=self.shingle, seed=self.seed
        )
        rows = np.repeat((rows + first).astype(np.uint32), self.bands)
        return pa.table(
            {
                "hash": pa.array(band_hashes(signature, self.bands).reshape(-1)),
                "row": pa.array(rows),
            }
        )

    def duplicates(self, keys: pa.Table) -> pa.Table:
        hashes, orders = keys["hash"].to_numpy(), keys["order"].to_numpy()
        by = np.argsort(hashes)
        repeated = np.flatnonzero(hashes[by[1:]] == hashes[by[:-1]])
        by = by[np.union1d(repeated, repeated + 1)]  # most bands occur in only one document
        by = by[np.lexsort((orders[by], hashes[by]))]
        orders, first = orders[by], first_of_group(hashes[by])
        kept = orders[first]
        later = kept != orders
        pairs = np.unique(np.stack((orders[later], kept[later]), 1), axis=0)
        return pa.table(
            [pairs[:, 0], np.zeros(len(pairs), np.uint32), pairs[:, 1]], schema=removed_schema()
        )

    def remove(self, table: pa.Table, removed: pa.Table, names: Sequence[str]) -> pa.Table:
        verdicts: list = [None] * len(table)
        for row, name in zip(removed["row"].to_pylist(), names, strict=True):
            verdicts[row] = (self.name, name)
        return reject(table, verdicts)
