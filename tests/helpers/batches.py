"""Batches of random tokens."""

import jax
import numpy as np

from qwen_jax.types import Batch


def make_batch(seed: int, B: int, T: int, vocab_size: int) -> Batch:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocab_size, (B, T + 1)).astype(np.int32)
    return Batch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        loss_weights=(rng.random((B, T)) < rng.random((B, 1))).astype(np.float32),
        segment_ids=np.ones((B, T), np.int32),
        positions=np.tile(np.arange(T, dtype=np.int32), (B, 1)),
    )


def assert_same(a, b):
    """Asserts equal metrics, moments (the gradients, after one step) and parameters."""
    for name in a[1]:
        np.testing.assert_allclose(a[1][name], b[1][name], rtol=2e-5, err_msg=name)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a[0]), jax.tree.leaves(b[0]), strict=True
    ):
        scale = np.abs(x).max() + 1e-9
        np.testing.assert_allclose(x / scale, y / scale, atol=5e-5, err_msg=str(path))
