"""The objective against its definition."""

import functools

import jax
import numpy as np

from qwen_jax import sizes
from qwen_jax.model import spec
from qwen_jax.model.transformer import forward
from qwen_jax.train.language_model import make_objective
from tests.helpers.batches import make_batch


def test_make_objective_sums_weighted_tokens_and_separates_z_loss():
    config = sizes.TINY
    params = jax.jit(spec.init_params, static_argnums=0)(config, jax.random.key(0))
    batch = make_batch(0, 2, 8, config.vocab_size)
    sums = jax.jit(make_objective(config, z_loss=0.01))(params, batch, None)
    logits_of = jax.jit(functools.partial(forward, config=config, inference=False))
    logits = np.asarray(logits_of(params, batch.tokens))
    log_z = np.log(np.exp(logits).sum(axis=-1))
    target = np.take_along_axis(logits, batch.targets[..., None], axis=-1)[..., 0]
    wanted = np.sum((log_z - target) * batch.loss_weights)
    np.testing.assert_allclose(sums.extras["cross_entropy"], wanted, rtol=1e-5)
    np.testing.assert_allclose(
        sums.loss_sum, wanted + 0.01 * np.sum(np.square(log_z) * batch.loss_weights), rtol=1e-5
    )
    assert float(sums.weight_sum) == batch.loss_weights.sum()
