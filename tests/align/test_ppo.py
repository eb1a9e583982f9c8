"""Every quantity of PPO on an example of two rows by three tokens, computed by hand."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.align import ppo
from qwen_jax.align.log_probs import Window, token_log_probs
from qwen_jax.config import MeshConfig, OptimizerConfig
from qwen_jax.errors import ConfigError
from qwen_jax.model.spec import init_from, init_params, param_specs
from qwen_jax.model.transformer import forward
from qwen_jax.model.value_head import scores, scoring_specs
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.parallel.sharding import use_layout
from qwen_jax.train.optimizer import make_optimizer
from qwen_jax.train.state import abstract_state, make_state
from qwen_jax.types import Batch

# Row 0 acts at positions 0 and 1 and is padding after that; row 1 has a prompt token, then acts.
MASK = jnp.asarray([[1, 1, 0], [0, 1, 1]], jnp.float32)
KL = jnp.asarray([[0.5, -0.25, 9.0], [9.0, 1.0, 0.0]], jnp.float32)
REWARD = jnp.asarray([2.0, -1.0], jnp.float32)
VALUES = jnp.asarray([[0.5, 1.0, 7.0], [7.0, 0.0, -0.5]], jnp.float32)


def test_rewards_of_tokens():
    # -0.1 KL at each action; the answer's reward at the last one.
    got = ppo.token_rewards(REWARD, KL, MASK, 0.1)
    np.testing.assert_allclose(got, [[-0.05, 0.025 + 2.0, 0], [0, -0.1, -1.0]], atol=1e-7)


def test_advantages_and_returns():
    rewards = jnp.asarray([[1.0, 2.0, 5.0], [5.0, 0.5, -1.0]], jnp.float32)
    got, returns = ppo.advantages_and_returns(rewards, VALUES, MASK, gamma=0.9, decay=0.5)
    # Row 0: d1 = 2 - 1 = 1; d0 = 1 + 0.9 * 1 - 0.5 = 1.4; A0 = 1.4 + 0.45 * 1.
    # Row 1: d2 = -1 + 0.5 = -0.5; d1 = 0.5 + 0.9 * -0.5 - 0 = 0.05; A1 = 0.05 + 0.45 * -0.5.
    np.testing.assert_allclose(got, [[1.85, 1.0, 0], [0, -0.175, -0.5]], atol=1e-6)
    np.testing.assert_allclose(returns, [[2.35, 2.0, 0], [0, -0.175, -1.0]], atol=1e-6)


def test_whitening_is_over_what_acts_in_the_whole_batch():
    x = jnp.asarray([[1.0, 3.0, 99.0], [99.0, 5.0, 7.0]], jnp.float32)
    got = ppo.whiten(x, MASK)  # mean 4, variance 5
    want = np.array([[-3, -1, 0], [0, 1, 3]]) / math.sqrt(5)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_ratios_and_the_clipped_surrogate():
    change = jnp.log(jnp.asarray([1.5, 0.5, 1.1, 0.7], jnp.float32))
    advantages = jnp.asarray([1.0, -2.0, 3.0, 1.0], jnp.float32)
    loss, clipped = ppo.surrogate(change, advantages, 0.2)
    # max(-1.5, -1.2); max(1.0, 1.6); -3.3 either way; max(-0.7, -0.8)
    np.testing.assert_allclose(loss, [-1.2, 1.6, -3.3, -0.7], atol=1e-6)
    np.testing.assert_array_equal(clipped, [1, 1, 0, 0])


def test_the_clipped_value_loss():
    values, old = jnp.asarray([1.0, 0.1, -1.0]), jnp.asarray([0.0, 0.0, 0.0])
    loss, clipped = ppo.value_loss(values, old, jnp.asarray([2.0, 0.5, 1.0]), 0.15)
    # (0.15 - 2)^2 > (1 - 2)^2; 0.1 is within the clip; (-0.15 - 1)^2 < (-1 - 1)^2.
    np.testing.assert_allclose(loss, [1.85**2 / 2, 0.4**2 / 2, 2.0], atol=1e-6)
    np.testing.assert_array_equal(clipped, [1, 0, 0])


def test_running_moments_are_those_of_all_rewards():
    draws = np.random.default_rng(0).normal(3, 2, (5, 8)).astype(np.float32)
    moments = ppo.start_moments()
    for row in draws:
        moments = ppo.update_moments(moments, jnp.asarray(row))
    np.testing.assert_allclose(moments.mean, draws.mean(), rtol=1e-5)
    np.testing.assert_allclose(moments.variance, draws.var(), rtol=1e-5)
    np.testing.assert_allclose(
        ppo.normalized(jnp.asarray(draws[0]), moments),
        (draws[0] - draws.mean()) / draws.std(),
        rtol=1e-4,
    )


MODEL = dataclasses.replace(sizes.TINY, vocab_size=64)
CUT = MeshConfig(data=2, fsdp=2, tensor=2)
FORWARD = jax.jit(functools.partial(forward, config=MODEL, inference=False))
LOG_PROBS = jax.jit(token_log_probs, static_argnames=("config", "temperature"))
CONFIG = ppo.PPOConfig(value_warmup_steps=1, minibatches=2, epochs=2, max_new_tokens=9)


@functools.cache
def make_rollout(B=8, T=12, seed=0):
    draw = np.random.default_rng(seed)
    ids = draw.integers(0, 64, (B, T + 1)).astype(np.int32)
    response_mask = np.zeros((B, T), np.float32)
    segments = np.ones((B, T), np.int32)
    for row in range(B):
        start, end = draw.integers(2, 6), draw.integers(7, T)
        response_mask[row, start:end] = 1
        segments[row, end:] = 0
    policy = jax.jit(init_params, static_argnums=0)(MODEL, jax.random.key(1))
    value = jax.jit(lambda key: init_from(scoring_specs(MODEL), key, "float32"))(jax.random.key(2))
    tokens, targets = jnp.asarray(ids[:, :-1]), jnp.asarray(ids[:, 1:])
    log_probs, _ = LOG_PROBS(policy, tokens, targets, jnp.asarray(segments), config=MODEL)
    return (
        policy,
        value,
        ppo.Rollout(
            tokens=tokens,
            targets=targets,
            segment_ids=jnp.asarray(segments),
            response_mask=jnp.asarray(response_mask),
            log_probs=log_probs,
            reference_log_probs=log_probs - 0.1,
            sampler_log_probs=log_probs + 0.01,
            entropies=jnp.ones_like(log_probs),
            values=jax.jit(scores, static_argnames="config")(
                value, tokens, jnp.asarray(segments), config=MODEL
            ),
            rewards=jnp.asarray(draw.normal(size=B).astype(np.float32)),
            finished=jnp.ones((B,), jnp.float32),
        ),
    )


def test_log_probs_are_those_of_the_forward_pass_and_entropy_is_theirs():
    policy, _, rollout = make_rollout()
    logits = FORWARD(policy, rollout.tokens, segment_ids=rollout.segment_ids)
    log_p = jax.nn.log_softmax(logits / 0.7, axis=-1)
    got, entropy = LOG_PROBS(
        policy, rollout.tokens, rollout.targets, rollout.segment_ids, config=MODEL, temperature=0.7
    )
    real = np.asarray(rollout.segment_ids) > 0
    want = jnp.take_along_axis(log_p, rollout.targets[:, :, None], axis=-1)[:, :, 0]
    np.testing.assert_allclose(got[real], want[real], atol=2e-6)
    np.testing.assert_allclose(entropy[real], -jnp.sum(jnp.exp(log_p) * log_p, -1)[real], atol=2e-5)


def test_logits_of_answers_alone_say_the_same_of_them():
    """Values and gradients, also where a window would leave its row; 0 outside of windows."""
    policy, _, rollout = make_rollout()
    window = ppo.answers(rollout.response_mask, CONFIG.max_new_tokens)
    inside = np.arange(12)[None] - np.asarray(window.first_B)[:, None]
    inside = (inside >= 0) & (inside < 9)
    assert inside.sum() == 8 * 9 and np.all(inside >= np.asarray(rollout.response_mask))
    at_end = np.asarray(window.first_B) == 3
    assert at_end.any()
    beyond = jnp.where(at_end, 15, window.first_B)  # as if it began behind the row

    def asked(params, first_B):
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

    ask = jax.jit(jax.value_and_grad(asked, has_aux=True))
    (_, every), gradients = ask(policy, None)
    for first_B in (window.first_B, beyond):
        (_, some), found = ask(policy, first_B)
        for a, b in zip(some, every, strict=True):
            np.testing.assert_allclose(a, np.where(inside, b, 0.0), atol=1e-5)  # numbers of size 6
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(gradients), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.max(jnp.abs(b))))


def test_before_any_update_every_ratio_is_one():
    policy, value, rollout = make_rollout()
    train_batch, _ = ppo.make_train_batch(ppo.PPOBatch(rollout, None), ppo.start_moments(), CONFIG)
    sums = jax.jit(ppo.policy_objective(MODEL, CONFIG))(policy, train_batch, None)
    # Two programs of the same function: a last place of log-probabilities of size 4 at most.
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
            # Copies: the step is given its state, and the next mesh starts from the same weights.
            placed = jax.tree.map(
                lambda x, a: jax.device_put(jnp.copy(x), a.sharding), params, abstract.params
            )
            states.append(make_state(0, specs, optimizer, abstract, params=placed))
        state = ppo.PPOState(
            step=jnp.int32(0),
            policy=states[0],
            value=states[1],
            rewards=ppo.start_moments(),
            halted=jnp.bool_(False),
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
        bad = rollout.replace(rewards=rollout.rewards.at[0].set(jnp.nan))
        after, metrics = step(state, ppo.PPOBatch(bad, None))
    return seen, (before, jax.device_get(after), jax.device_get(metrics))


def changed(old, new):
    return any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
    )


def test_the_policy_waits_while_the_value_model_warms_up():
    start = [jax.device_get(params) for params in make_rollout()[:2]]
    seen, _ = run_steps(CUT)
    (policy_1, value_1), (policy_2, _) = seen[0][0], seen[1][0]
    assert not changed(start[0], policy_1) and changed(start[1], value_1)
    assert changed(policy_1, policy_2)
    assert seen[1][1]["value/loss"] < seen[0][1]["value/loss"]
    assert all(np.isfinite(x) for x in seen[1][1].values())


def test_a_reward_that_is_not_finite_leaves_the_whole_state_as_it_was():
    _, (before, after, metrics) = run_steps(CUT)
    assert not np.isfinite(metrics["rollout/reward"]) and after.halted and not before.halted
    before, after = (jax.tree.leaves(state.replace(halted=None)) for state in (before, after))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow  # compiles the step for another mesh
@pytest.mark.parametrize("mesh", [MeshConfig(data=8, fsdp=1), CUT], ids=["8x1x1", "2x2x2"])
def test_the_step_is_the_same_on_every_mesh(mesh):
    one, _ = run_steps(MeshConfig(data=1, fsdp=1))
    cut, _ = run_steps(mesh)
    for (params, metrics), (want_params, want) in zip(cut, one, strict=True):
        for name in want:
            np.testing.assert_allclose(metrics[name], want[name], rtol=2e-4, atol=2e-5)
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(want_params), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-3)  # Adam's first steps amplify rounding


def test_the_pretraining_gradient_is_a_next_token_loss_of_its_weight():
    policy, _, rollout = make_rollout()
    ids = jnp.asarray(np.random.default_rng(3).integers(0, 64, (16, 13)), jnp.int32)
    ones = jnp.ones((16, 12), jnp.int32)
    pretrain = Batch(
        tokens=ids[:, :-1],
        targets=ids[:, 1:],
        loss_weights=ones.astype(jnp.float32),
        segment_ids=ones,
        positions=jnp.cumsum(ones, axis=1) - 1,
    )
    config = dataclasses.replace(CONFIG, pretrain_coefficient=0.5)
    losses = []
    for batch in (None, pretrain):
        train_batch, _ = ppo.make_train_batch(
            ppo.PPOBatch(rollout, batch), ppo.start_moments(), config
        )
        sums = jax.jit(ppo.policy_objective(MODEL, config))(policy, train_batch, None)
        losses.append(float(sums.loss_sum / sums.weight_sum))
    logits = FORWARD(policy, pretrain.tokens)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), ids[:, 1:, None], axis=-1)
    np.testing.assert_allclose(losses[1] - losses[0], 0.5 * float(jnp.mean(nll)), rtol=1e-5)


@pytest.mark.parametrize("setting", [{"top_p": 0.0}, {"value_clip": -1.0}, {"epochs": 0}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        ppo.PPOConfig(**setting)
