"""Every quantity of PPO on an example of two sequences of three tokens, computed by hand."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from qwen_jax import sizes
from qwen_jax.align import ppo
from qwen_jax.align.log_probs import Window, token_log_probs
from qwen_jax.config import MeshConfig, OptimizerConfig
from qwen_jax.errors import ConfigError
from qwen_jax.model.spec import param_specs
from qwen_jax.model.transformer import forward
from qwen_jax.model.value_head import scores, scoring_specs
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.parallel.sharding import use_layout
from qwen_jax.train.optimizer import make_optimizer
from qwen_jax.train.state import abstract_state, make_state
from qwen_jax.types import Batch
from tests.helpers.weights import initial

# Sequence 0 has its response at positions 0 and 1, then padding; sequence 1 at positions 1 and 2.
MASK = np.asarray([[1, 1, 0], [0, 1, 1]], np.float32)
KL = np.asarray([[0.5, -0.25, 9.0], [9.0, 1.0, 0.0]], np.float32)
REWARD = np.asarray([2.0, -1.0], np.float32)
VALUES = np.asarray([[0.5, 1.0, 7.0], [7.0, 0.0, -0.5]], np.float32)


def test_token_rewards_add_the_kl_penalty_and_the_reward_at_the_end():
    # -0.1 KL at each sampled token; the response's reward at the last one.
    got = jax.jit(ppo.token_rewards, static_argnums=3)(REWARD, KL, MASK, 0.1)
    np.testing.assert_allclose(got, [[-0.05, 0.025 + 2.0, 0], [0, -0.1, -1.0]], atol=1e-7)


def test_advantages_and_returns_equal_values_by_hand():
    rewards = np.asarray([[1.0, 2.0, 5.0], [5.0, 0.5, -1.0]], np.float32)
    run = jax.jit(functools.partial(ppo.advantages_and_returns, gamma=0.9, gae_lambda=0.5))
    got, returns = run(rewards, VALUES, MASK)
    # Sequence 0: d1 = 2 - 1 = 1; d0 = 1 + 0.9 * 1 - 0.5 = 1.4; A0 = 1.4 + 0.45 * 1.
    # Sequence 1: d2 = -1 + 0.5 = -0.5; d1 = 0.5 + 0.9 * -0.5 - 0 = 0.05; A1 = 0.05 + 0.45 * -0.5.
    np.testing.assert_allclose(got, [[1.85, 1.0, 0], [0, -0.175, -0.5]], atol=1e-6)
    np.testing.assert_allclose(returns, [[2.35, 2.0, 0], [0, -0.175, -1.0]], atol=1e-6)


def test_whiten_uses_the_sampled_tokens_of_the_full_batch():
    x = np.asarray([[1.0, 3.0, 99.0], [99.0, 5.0, 7.0]], np.float32)
    got = jax.jit(ppo.whiten)(x, MASK)  # mean 4, variance 5
    want = np.array([[-3, -1, 0], [0, 1, 3]]) / math.sqrt(5)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_surrogate_clips_the_ratio():
    change = np.log(np.asarray([1.5, 0.5, 1.1, 0.7], np.float32))
    advantages = np.asarray([1.0, -2.0, 3.0, 1.0], np.float32)
    loss, clipped = jax.jit(ppo.surrogate, static_argnums=2)(change, advantages, 0.2)
    # max(-1.5, -1.2); max(1.0, 1.6); -3.3 either way; max(-0.7, -0.8)
    np.testing.assert_allclose(loss, [-1.2, 1.6, -3.3, -0.7], atol=1e-6)
    np.testing.assert_array_equal(clipped, [1, 1, 0, 0])


def test_value_loss_clips_the_value():
    values, old, returns = np.asarray([[1.0, 0.1, -1.0], [0, 0, 0], [2.0, 0.5, 1.0]], np.float32)
    loss, clipped = jax.jit(ppo.value_loss, static_argnums=3)(values, old, returns, 0.15)
    # (0.15 - 2)^2 > (1 - 2)^2; 0.1 is within the clip; (-0.15 - 1)^2 < (-1 - 1)^2.
    np.testing.assert_allclose(loss, [1.85**2 / 2, 0.4**2 / 2, 2.0], atol=1e-6)
    np.testing.assert_array_equal(clipped, [1, 0, 0])


def test_update_moments_equals_the_moments_of_all_rewards():
    rewards = np.random.default_rng(0).normal(3, 2, (5, 8)).astype(np.float32)
    moments, update = ppo.initial_moments(), jax.jit(ppo.update_moments)
    for batch in rewards:
        moments = update(moments, batch)
    np.testing.assert_allclose(moments.mean, rewards.mean(), rtol=1e-5)
    np.testing.assert_allclose(moments.variance, rewards.var(), rtol=1e-5)
    np.testing.assert_allclose(
        jax.jit(ppo.normalize_rewards)(rewards[0], moments),
        (rewards[0] - rewards.mean()) / rewards.std(),
        rtol=1e-4,
    )


MODEL = dataclasses.replace(sizes.TINY, vocab_size=64)
ONE, SHARDED = MeshConfig(data=1, fsdp=1), MeshConfig(data=2, fsdp=2, tensor=2)
FORWARD = jax.jit(functools.partial(forward, config=MODEL, inference=False))
LOG_PROBS = jax.jit(token_log_probs, static_argnames=("config", "temperature"))
CONFIG = ppo.PPOConfig(
    value_warmup_steps=1, minibatches=2, epochs=2, max_new_tokens=9, pretrain_coefficient=0.5
)


@functools.cache
def make_rollout(B=8, T=12, seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 64, (B, T + 1)).astype(np.int32)
    response_mask = np.zeros((B, T), np.float32)
    segments = np.ones((B, T), np.int32)
    for b in range(B):
        start, end = rng.integers(2, 6), rng.integers(7, T)
        response_mask[b, start:end] = 1
        segments[b, end:] = 0
    policy = initial(param_specs(MODEL), seed=1)
    value = initial(scoring_specs(MODEL), seed=2)
    tokens, targets = ids[:, :-1], ids[:, 1:]
    log_probs = np.asarray(LOG_PROBS(policy, tokens, targets, segments, config=MODEL)[0])
    return (
        policy,
        value,
        ppo.Rollout(
            tokens=tokens,
            targets=targets,
            segment_ids=segments,
            response_mask=response_mask,
            log_probs=log_probs,
            reference_log_probs=log_probs - np.float32(0.1),
            sampler_log_probs=log_probs + np.float32(0.01),
            entropies=np.ones_like(log_probs),
            values=np.asarray(
                jax.jit(scores, static_argnames="config")(value, tokens, segments, config=MODEL)
            ),
            rewards=rng.normal(size=B).astype(np.float32),
            finished=np.ones((B,), np.float32),
        ),
    )


def test_token_log_probs_and_entropy_equal_those_of_the_forward_pass():
    policy, _, rollout = make_rollout()
    logits = np.asarray(FORWARD(policy, rollout.tokens, segment_ids=rollout.segment_ids)) / 0.7
    log_p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    got, entropy = LOG_PROBS(
        policy, rollout.tokens, rollout.targets, rollout.segment_ids, config=MODEL, temperature=0.7
    )
    real, got, entropy = rollout.segment_ids > 0, np.asarray(got), np.asarray(entropy)
    want = np.take_along_axis(log_p, rollout.targets[:, :, None], axis=-1)[:, :, 0]
    np.testing.assert_allclose(got[real], want[real], atol=2e-6)
    np.testing.assert_allclose(entropy[real], -np.sum(np.exp(log_p) * log_p, -1)[real], atol=2e-5)


def test_token_log_probs_of_a_window_equal_those_of_all_positions():
    """Values and gradients, also of a window that would exceed its sequence; 0 outside."""
    policy, _, rollout = make_rollout()
    first = jax.jit(lambda mask: ppo.response_window(mask, CONFIG.max_new_tokens).first_B)
    first_B = np.asarray(first(rollout.response_mask))
    inside = np.arange(12)[None] - first_B[:, None]
    inside = (inside >= 0) & (inside < 9)
    assert inside.sum() == 8 * 9 and np.all(inside >= rollout.response_mask)
    at_end = first_B == 3
    assert at_end.any()
    beyond = np.where(at_end, np.int32(15), first_B)  # as if it started after the sequence

    def loss(params, first_B):
        found = token_log_probs(
            params,
            rollout.tokens,
            rollout.targets,
            rollout.segment_ids,
            config=MODEL,
            temperature=0.7,
            window=None if first_B is None else Window(first_B, 9),
        )
        return jnp.sum(found[0] * rollout.response_mask), found

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, every), gradients = jax.device_get(run(policy, None))
    for start_B in (first_B, beyond):
        (_, some), found = jax.device_get(run(policy, start_B))
        for a, b in zip(some, every, strict=True):
            np.testing.assert_allclose(a, np.where(inside, b, 0.0), atol=1e-5)  # values near 6
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(gradients), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


@jax.jit
def policy_sums(policy, batch):
    train_batch, _ = ppo.make_train_batch(batch, ppo.initial_moments(), CONFIG)
    return ppo.policy_objective(MODEL, CONFIG)(policy, train_batch, None)


def test_policy_objective_has_ratio_one_before_any_update():
    policy, _, rollout = make_rollout()
    sums = policy_sums(policy, ppo.PPOBatch(rollout, None))
    # Two programs of one function: at most one unit in the last place of log-probabilities near 4.
    assert float(sums.extras["ratio"]) == pytest.approx(float(sums.weight_sum), rel=1e-6)
    assert float(sums.extras["clip_fraction"]) == 0
    assert float(sums.extras["approx_kl"]) == pytest.approx(0, abs=1e-6)
    # Whitened advantages have mean 0, so the surrogate of ratio 1 is 0.
    assert abs(float(sums.loss_sum)) < 1e-3


@functools.cache
def run_steps(mesh_config, number=2):
    policy, value, rollout = make_rollout()
    number_of_devices = mesh_config.data * mesh_config.fsdp * mesh_config.tensor
    mesh = make_mesh(mesh_config, devices=jax.devices()[:number_of_devices])
    optimizer = make_optimizer(OptimizerConfig(peak_learning_rate=1e-2, schedule="constant"), 10)
    with use_layout(mesh):
        states = []
        for specs, params in ((param_specs(MODEL), policy), (scoring_specs(MODEL), value)):
            abstract = abstract_state(specs, optimizer, mesh, dtype="float32").replace(halted=None)
            # Copies: the step donates its state, and the next mesh starts from the same weights.
            placed = jax.tree.map(
                lambda x, a: jax.device_put(np.array(x), a.sharding), params, abstract.params
            )
            states.append(make_state(0, specs, optimizer, abstract, params=placed))
        # On the mesh, like the next state: otherwise the second step would be compiled again.
        step, rewards, halted = jax.device_put(
            (jnp.int32(0), ppo.initial_moments(), jnp.bool_(False)),
            NamedSharding(mesh, PartitionSpec()),
        )
        state = ppo.PPOState(
            step=step, policy=states[0], value=states[1], rewards=rewards, halted=halted
        )
        step = ppo.make_ppo_step(
            MODEL, CONFIG, policy_optimizer=optimizer, value_optimizer=optimizer, seed=0
        )
        seen = []
        for _ in range(number):
            state, metrics = step(state, ppo.PPOBatch(rollout, None))
            seen.append((jax.device_get(state.params), jax.device_get(metrics)))
        # A reward that is not finite: the state, the running moments too, stays as it was.
        before = jax.device_get(state)
        bad = rollout.replace(rewards=np.append(np.float32(np.nan), rollout.rewards[1:]))
        after, metrics = step(state, ppo.PPOBatch(bad, None))
    return seen, (before, jax.device_get(after), jax.device_get(metrics))


def changed(old, new):
    return any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
    )


def test_make_ppo_step_keeps_the_policy_during_value_warmup():
    start = [jax.device_get(params) for params in make_rollout()[:2]]
    seen, _ = run_steps(ONE)
    (policy_1, value_1), (policy_2, _) = seen[0][0], seen[1][0]
    assert not changed(start[0], policy_1) and changed(start[1], value_1)
    assert changed(policy_1, policy_2)
    assert seen[1][1]["value/loss"] < seen[0][1]["value/loss"]
    assert all(np.isfinite(x) for x in seen[1][1].values())


def test_make_ppo_step_keeps_the_state_after_a_non_finite_reward():
    _, (before, after, metrics) = run_steps(ONE)
    assert not np.isfinite(metrics["rollout/reward"]) and after.halted and not before.halted
    before, after = (jax.tree.leaves(state.replace(halted=None)) for state in (before, after))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow  # compiles the step for another mesh
@pytest.mark.parametrize("mesh", [MeshConfig(data=8, fsdp=1), SHARDED], ids=["8x1x1", "2x2x2"])
def test_make_ppo_step_is_the_same_on_every_mesh(mesh):
    one, _ = run_steps(ONE)
    sharded, _ = run_steps(mesh)
    for (params, metrics), (want_params, want) in zip(sharded, one, strict=True):
        for name in want:
            np.testing.assert_allclose(metrics[name], want[name], rtol=2e-4, atol=2e-5)
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(want_params), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-3)  # Adam's first steps amplify rounding


def test_policy_objective_adds_the_weighted_pretraining_loss():
    policy, _, rollout = make_rollout()
    ids = np.random.default_rng(3).integers(0, 64, (16, 13), np.int32)
    ones = np.ones((16, 12), np.int32)
    pretrain = Batch(
        tokens=ids[:, :-1],
        targets=ids[:, 1:],
        loss_weights=ones.astype(np.float32),
        segment_ids=ones,
        positions=np.cumsum(ones, axis=1, dtype=np.int32) - 1,
    )
    losses = []
    for batch in (None, pretrain):
        sums = jax.device_get(policy_sums(policy, ppo.PPOBatch(rollout, batch)))
        losses.append(float(sums.loss_sum / sums.weight_sum))
    logits = np.asarray(FORWARD(policy, pretrain.tokens), np.float64)
    log_p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    nll = -np.mean(np.take_along_axis(log_p, ids[:, 1:, None], axis=-1))
    np.testing.assert_allclose(losses[1] - losses[0], 0.5 * nll, rtol=1e-5)


@pytest.mark.parametrize("setting", [{"top_p": 0.0}, {"value_clip": -1.0}, {"epochs": 0}])
def test_ppo_config_rejects_settings_out_of_range(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        ppo.PPOConfig(**setting)
