"""AdamW, schedules and the decay mask against their definitions."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.attention_config import AttentionVariant
from qwen_jax.config import OptimizerConfig
from qwen_jax.errors import ConfigError
from qwen_jax.model import spec
from qwen_jax.train.optimizer import decay_mask, make_optimizer, make_schedule


def test_make_schedule_cosine_warms_up_linearly_and_ends_at_a_tenth():
    schedule = make_schedule(OptimizerConfig(peak_learning_rate=1.0, warmup_steps=10), 110)
    assert float(schedule(0)) == pytest.approx(0.1) and float(schedule(9)) == pytest.approx(1.0)
    assert float(schedule(60)) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert float(schedule(110)) == pytest.approx(0.1)


def test_make_schedule_constant_keeps_the_peak():
    config = OptimizerConfig(peak_learning_rate=3e-6, schedule="constant", warmup_steps=5)
    schedule = make_schedule(config, 100)
    assert float(schedule(99)) == pytest.approx(3e-6) and float(schedule(0)) == pytest.approx(6e-7)


@pytest.mark.parametrize("steps, fits", [(10, 1), (9, 0), (1, 0)])
@pytest.mark.parametrize("section", ["optimizer", "value_optimizer"])
def test_make_schedule_names_the_flag_and_a_warmup_that_fits(steps, fits, section):
    config = OptimizerConfig(warmup_steps=10)
    with pytest.raises(ConfigError, match="not shorter than the run") as refused:
        make_optimizer(config, steps, section)
    assert f"--{section}.warmup_steps={fits}," in refused.value.fix
    make_optimizer(dataclasses.replace(config, warmup_steps=fits), steps, section)


def test_make_optimizer_equals_adamw_written_out():
    config = OptimizerConfig(peak_learning_rate=0.01, schedule="constant", clip_norm=1.0)
    optimizer = make_optimizer(config, 10)
    wide = dataclasses.replace(sizes.TINY, initializer_range=0.5)
    params = jax.jit(spec.init_params, static_argnums=0)(wide, jax.random.key(0))
    state = jax.jit(optimizer.init)(params)

    @jax.jit
    def step(params, state, t):
        grads = jax.tree.map(lambda p: jnp.sin(p * 10.0 + t), params)
        updates, state = optimizer.update(grads, state, params)
        return grads, state, jax.tree.map(lambda p, u: p + u, params, updates)

    m, v, x = {}, {}, {}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for path, leaf in leaves:
        x[str(path)], m[str(path)], v[str(path)] = np.asarray(leaf, np.float64), 0.0, 0.0
    for t in (1, 2):
        grads, state, params = jax.device_get(step(params, state, np.float32(t)))
        norm = math.sqrt(sum(float(np.sum(g**2)) for g in jax.tree.leaves(grads)))
        for path, g in jax.tree_util.tree_leaves_with_path(grads):
            name, g = str(path), np.asarray(g, np.float64) / max(norm, 1.0)
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.95 * v[name] + 0.05 * g * g
            decay = 0.0 if ("norm" in path[-1].name or path[-1].name in "bq bk bv") else 0.1
            x[name] = x[name] - 0.01 * (
                m[name] / (1 - 0.9**t) / (np.sqrt(v[name] / (1 - 0.95**t)) + 1e-8) + decay * x[name]
            )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        np.testing.assert_allclose(leaf, x[str(path)], rtol=2e-4, atol=2e-5, err_msg=str(path))


def test_decay_mask_excludes_norms_and_biases():
    normed = dataclasses.replace(sizes.TINY, variant=AttentionVariant(qk_norm=True))
    for config in (sizes.TINY, normed):
        mask = decay_mask(spec.param_specs(config))
        decays = {path[-1].name for path, on in jax.tree_util.tree_leaves_with_path(mask) if on}
        assert decays == {"embed", "head", "wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down"}
