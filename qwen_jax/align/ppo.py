"""Proximal policy optimization, as pure functions of a rollout. Report: 3.2.2.

Reading order: `make_ppo_step` is one step from top to bottom; what it calls stands below it.

Position t of a row holds the token before the action: the action is targets[t], its log-probability
comes from the logits at t, and the value at t is that of the state in which it is chosen.

B rows, T positions.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.struct import PyTreeNode

from qwen_jax.align.log_probs import Window, token_log_probs
from qwen_jax.align.ppo_config import PPOConfig
from qwen_jax.config import ModelConfig
from qwen_jax.model.lora import LoRAConfig
from qwen_jax.model.value_head import from_language_model, scores
from qwen_jax.train.adapters import with_base
from qwen_jax.train.language_model import make_objective as make_language_objective
from qwen_jax.train.step import Metrics, make_train_step, unless_halted
from qwen_jax.types import Array, Batch, Params, ScoringParams, Sums, TrainState


class Rollout(PyTreeNode):
    """Prompts with sampled answers, and what the four models say of them; padded on the right."""

    tokens: Array  # int32 [B, T]
    targets: Array  # int32 [B, T]; the token that follows
    segment_ids: Array  # int32 [B, T]; 1, and 0 for padding
    response_mask: (
        Array  # float32 [B, T]; 1 where the target was sampled, its end token included: at
    )
    # most config.max_new_tokens of them, side by side
    log_probs: Array  # float32 [B, T]; of the policy that sampled, recomputed by the trainer
    sampler_log_probs: Array  # float32 [B, T]; what the sampler computed, to see how far it is off
    entropies: Array  # float32 [B, T]; of what the target was drawn from, nothing truncated
    reference_log_probs: Array  # float32 [B, T]
    values: Array  # float32 [B, T]
    rewards: Array  # float32 [B]; of whole answers, raw
    finished: Array  # float32 [B]; 1 where the answer has its end token, 0 where it was cut off


class FrozenModels(PyTreeNode):
    """Weights that stand still, beside which policy and value model are adapters.

    The policy's are the reference's. The value model stands beside the reward model, or beside the
    policy's weights where there is none; its score is trained in full.
    """

    reference: Params
    reward: ScoringParams | None

    @property
    def value(self) -> ScoringParams:
        """What the value model stands beside."""
        if self.reward is not None:
            return self.reward
        return from_language_model(self.reference, None)


class PPOBatch(PyTreeNode):
    """What one step learns from."""

    rollout: Rollout
    pretrain: Batch | None  # rows of the pretraining data; None: no pretraining gradient
    frozen: FrozenModels | None = (
        None  # of adapters; None: policy and value model are trained themselves
    )


class RunningMoments(PyTreeNode):
    """Mean and variance of all rewards so far (Chan's parallel update)."""

    count: Array  # float32 []
    mean: Array  # float32 []
    variance: Array  # float32 []


class PPOState(PyTreeNode):
    """All that PPO changes, so that one checkpoint resumes it exactly."""

    step: Array  # int32 []
    policy: TrainState  # both without a flag `halted` of their own
    value: TrainState
    rewards: RunningMoments
    halted: Array | None = None  # bool []; as TrainState.halted, for all of it

    @property
    def params(self) -> tuple[Any, Any]:
        """Of the policy and of the value model."""
        return self.policy.params, self.value.params


class PPOTrainBatch(PyTreeNode):
    """What an update of policy or value needs of each token: [B, T]."""

    rollout: Rollout
    advantages: Array
    returns: Array
    pretrain: Batch | None


def make_ppo_step(
    model: ModelConfig,
    config: PPOConfig,
    *,
    policy_optimizer: optax.GradientTransformation,
    value_optimizer: optax.GradientTransformation,
    seed: int,
    micro_batches: int = 1,
    lora: LoRAConfig | None = None,
) -> Callable[[PPOState, PPOBatch], tuple[PPOState, Metrics]]:
    """ppo_step(state, batch) -> (state, metrics), jitted; the state is donated.

    Rewards are normalized by their running moments, this batch's included (report 3.2.2: their
    mean; that they are divided by their spread is ours); a KL penalty per token is added;
    advantages are whitened over the whole batch (ours). Then policy and value are trained on
    minibatches by the one train step, the policy not before its turn: while it waits its update is
    not computed, and what would be logged of it is 0.

    Args:
      lora: of both, whose parameters are what is trained beside batch.bases; None: they are whole.
    """

    def ppo_step(state: PPOState, batch: PPOBatch) -> tuple[PPOState, Metrics]:
        rollout, frozen = batch.rollout, batch.frozen
        objectives = policy_objective(model, config), value_objective(model, config)
        if frozen is not None:
            assert lora is not None, "bases are of adapters"
            objectives = (
                with_base(frozen.reference, objectives[0], lora),
                with_base(frozen.value, objectives[1], lora),
            )
        update_policy, update_value = (
            make_train_step(objective, optimizer, seed=seed, micro_batches=micro_batches)
            for objective, optimizer in zip(
                objectives, (policy_optimizer, value_optimizer), strict=True
            )
        )
        moments = update_moments(state.rewards, rollout.rewards)
        train_batch, metrics = make_train_batch(batch, moments, config)

        def update(carried, train_batch):
            policy, value = carried
            value, value_metrics = update_value(value, train_batch)
            _, logged = jax.eval_shape(update_policy, policy, train_batch)

            def wait(policy: TrainState):
                # It counts its steps, so that its schedule is that of the run.
                return policy.replace(step=policy.step + 1), jax.tree.map(jnp.zeros_like, logged)

            policy, policy_metrics = jax.lax.cond(
                state.step < config.value_warmup_steps,
                wait,
                lambda policy: update_policy(policy, train_batch),
                policy,
            )
            return (policy, value), (policy_metrics, value_metrics)

        minibatches = split_minibatches(train_batch, config, state.step, seed)
        # Only within a step the two have flags of their own.
        start = (part.replace(halted=jnp.bool_(False)) for part in (state.policy, state.value))
        (policy, value), (policy_metrics, value_metrics) = jax.lax.scan(
            update, tuple(start), minibatches
        )
        for name, found in (("policy", policy_metrics), ("value", value_metrics)):
            metrics |= {
                f"{name}/{key.removeprefix('train/')}": jnp.mean(x) for key, x in found.items()
            }
        metrics["train/loss"] = metrics["policy/loss"] + metrics["value/loss"]
        metrics["train/grad_norm"] = metrics["policy/grad_norm"]
        new = state.replace(
            step=state.step + 1,
            policy=policy.replace(halted=None),
            value=value.replace(halted=None),
            rewards=moments,
        )
        # What is not finite leaves all as it was, the running moments too.
        assert policy.halted is not None and value.halted is not None  # set above
        return unless_halted(~(policy.halted | value.halted), new, state), metrics

    return jax.jit(ppo_step, donate_argnums=0)


def make_train_batch(
    batch: PPOBatch, moments: RunningMoments, config: PPOConfig
) -> tuple[PPOTrainBatch, Metrics]:
    """Advantages and returns of every action, and what to log of the rollout."""
    rollout = batch.rollout
    mask = rollout.response_mask
    normal_B = normalized(rollout.rewards, moments)
    normal_B = normal_B - jnp.float32(config.missing_eos_penalty) * (1.0 - rollout.finished)
    kl_BT = rollout.log_probs - rollout.reference_log_probs
    rewards_BT = token_rewards(normal_B, kl_BT, mask, config.kl_coefficient)
    advantages, returns = advantages_and_returns(
        rewards_BT, rollout.values, mask, gamma=config.gamma, decay=config.gae_lambda
    )
    train_batch = PPOTrainBatch(
        rollout=rollout,
        advantages=whiten(advantages, mask),
        returns=returns,
        pretrain=_weighted(batch.pretrain, mask, config.pretrain_coefficient),
    )
    lengths_B = jnp.sum(mask, axis=1)
    return train_batch, {
        "rollout/reward": jnp.mean(rollout.rewards),
        "rollout/reward_normalized": jnp.mean(normal_B),
        "rollout/kl": jnp.mean(jnp.sum(kl_BT * mask, axis=1)),
        "rollout/kl_per_token": masked_mean(kl_BT, mask),
        "rollout/entropy": masked_mean(rollout.entropies, mask),
        "rollout/sampler_logprob_gap": masked_mean(
            jnp.abs(rollout.log_probs - rollout.sampler_log_probs), mask
        ),
        "rollout/length": jnp.mean(lengths_B),
        "rollout/finished": jnp.mean(rollout.finished),
        "rollout/value": masked_mean(rollout.values, mask),
        "rollout/return": masked_mean(returns, mask),
    }


def token_rewards(reward_B: Array, kl_BT: Array, mask_BT: Array, coefficient: float) -> Array:
    """-coefficient * KL at each action, and the answer's reward at its last one: [B, T]."""
    following = jnp.pad(mask_BT[:, 1:], ((0, 0), (0, 1)))
    last_BT = mask_BT * (1.0 - following)
    return mask_BT * (-jnp.float32(coefficient) * kl_BT) + last_BT * reward_B[:, None]


def advantages_and_returns(
    rewards_BT: Array, values_BT: Array, mask_BT: Array, *, gamma: float, decay: float
) -> tuple[Array, Array]:
    """Generalized advantage estimation over each row's actions; zero elsewhere. [B, T] each.

    delta_t = r_t + gamma * V_{t+1} - V_t; A_t = delta_t + gamma * decay * A_{t+1}; beyond the
    last action V and A are 0. Returns are A + V.
    """

    def back(carried, at):
        advantage, value = carried
        reward_B, value_B, mask_B = at
        delta = reward_B + jnp.float32(gamma) * value - value_B
        found = delta + jnp.float32(gamma * decay) * advantage
        # Padding between or behind actions carries what is known through.
        advantage = jnp.where(mask_B > 0, found, advantage)
        return (advantage, jnp.where(mask_B > 0, value_B, value)), mask_B * advantage

    zero = jnp.zeros(rewards_BT.shape[:1], jnp.float32)
    _, advantages = jax.lax.scan(
        back, (zero, zero), (rewards_BT.T, values_BT.T, mask_BT.T), reverse=True
    )
    return advantages.T, mask_BT * (advantages.T + values_BT)


def policy_objective(model: ModelConfig, config: PPOConfig):
    """objective(params, lesson, key): the clipped surrogate, plus the pretraining gradient.

    loss = sum over actions of max(-A ratio, -A clip(ratio, 1 - c, 1 + c)).
    """
    language = make_language_objective(model, training=False)

    def objective(params: Params, train_batch: PPOTrainBatch, key: Array | None) -> Sums:
        rollout, mask = train_batch.rollout, train_batch.rollout.response_mask
        log_probs, entropy = token_log_probs(
            params,
            rollout.tokens,
            rollout.targets,
            rollout.segment_ids,
            config=model,
            temperature=config.temperature,
            window=answers(mask, config.max_new_tokens),
        )
        change = (log_probs - rollout.log_probs) * mask
        loss_BT, clipped_BT = surrogate(change, train_batch.advantages, config.ratio_clip)
        loss_sum = jnp.sum(loss_BT * mask)
        extras = {
            "entropy": jnp.sum(entropy * mask),
            "clip_fraction": jnp.sum(clipped_BT * mask),
            "ratio": jnp.sum(jnp.exp(change) * mask),
            "approx_kl": jnp.sum((jnp.expm1(change) - change) * mask),
        }
        if train_batch.pretrain is not None:
            pretrain = language(params, train_batch.pretrain, key)
            loss_sum += pretrain.loss_sum
            extras["pretrain_loss"] = pretrain.loss_sum
        return Sums(loss_sum=loss_sum, weight_sum=jnp.sum(mask), extras=extras)

    return objective


def answers(mask_BT: Array, size: int) -> Window:
    """The window that holds each row's actions, of which there are at most `size`."""
    size = min(size, mask_BT.shape[1])
    first_B = jnp.argmax(mask_BT > 0, axis=1).astype(jnp.int32)
    return Window(jnp.minimum(first_B, mask_BT.shape[1] - size), size)


def surrogate(change: Array, advantages: Array, clip: float) -> tuple[Array, Array]:
    """The loss of each action and whether its ratio exp(change) was clipped (1.0 or 0.0)."""
    ratio = jnp.exp(change)
    limited = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    loss, limit = -advantages * ratio, -advantages * limited
    return jnp.maximum(loss, limit), (limit > loss).astype(jnp.float32)


def value_objective(model: ModelConfig, config: PPOConfig):
    """objective(params, lesson, key): half the squared error, a step from the old value clipped.

    loss = sum over actions of max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2.
    """

    def objective(params: ScoringParams, train_batch: PPOTrainBatch, key: Array | None) -> Sums:
        rollout, mask = train_batch.rollout, train_batch.rollout.response_mask
        values = scores(params, rollout.tokens, rollout.segment_ids, config=model)
        loss_BT, clipped_BT = value_loss(
            values, rollout.values, train_batch.returns, config.value_clip
        )
        return Sums(
            loss_sum=jnp.sum(loss_BT * mask),
            weight_sum=jnp.sum(mask),
            extras={
                "clip_fraction": jnp.sum(clipped_BT * mask),
                "error": jnp.sum(jnp.square(values - train_batch.returns) * mask),
            },
        )

    return objective


def value_loss(values: Array, old: Array, returns: Array, clip: float) -> tuple[Array, Array]:
    """The loss of each action and whether its value was clipped (1.0 or 0.0)."""
    limited = jnp.clip(values, old - clip, old + clip)
    loss, limit = jnp.square(values - returns), jnp.square(limited - returns)
    return jnp.maximum(loss, limit) / 2.0, (limit > loss).astype(jnp.float32)


def masked_mean(x_BT: Array, mask_BT: Array) -> Array:
    """The mean over what the mask keeps, over the whole batch."""
    return jnp.sum(x_BT * mask_BT) / jnp.maximum(jnp.sum(mask_BT), 1.0)


def whiten(x_BT: Array, mask_BT: Array) -> Array:
    """Mean 0 and variance 1 over what the mask keeps, over the whole batch; 0 elsewhere. Ours."""
    mean = masked_mean(x_BT, mask_BT)
    variance = masked_mean(jnp.square(x_BT - mean), mask_BT)
    return mask_BT * (x_BT - mean) * jax.lax.rsqrt(variance + 1e-8)


def start_moments() -> RunningMoments:
    """Nothing seen yet."""
    return RunningMoments(count=jnp.float32(0), mean=jnp.float32(0), variance=jnp.float32(1))


def update_moments(moments: RunningMoments, rewards_B: Array) -> RunningMoments:
    """The moments with `rewards_B` among what was seen."""
    n = jnp.float32(rewards_B.shape[0])
    mean, variance = jnp.mean(rewards_B), jnp.var(rewards_B)
    total = moments.count + n
    delta = mean - moments.mean
    spread = (
        moments.variance * moments.count
        + variance * n
        + jnp.square(delta) * moments.count * n / total
    )
    return RunningMoments(
        count=total, mean=moments.mean + delta * n / total, variance=spread / total
    )


def normalized(rewards_B: Array, moments: RunningMoments) -> Array:
    """(reward - mean) / spread. Report 3.2.2: by the running mean; the spread is ours."""
    return (rewards_B - moments.mean) * jax.lax.rsqrt(moments.variance + 1e-8)


def split_minibatches(
    train_batch: PPOTrainBatch, config: PPOConfig, step: Array, seed: int
) -> PPOTrainBatch:
    """The lesson as minibatches in the order of the epochs: a leading axis to scan over.

    Rows are shuffled anew for every epoch; the key is that of (seed, step, epoch).
    """
    B = train_batch.advantages.shape[0]
    key = jax.random.fold_in(jax.random.key(seed), step)
    orders = jnp.stack(
        [
            jax.random.permutation(jax.random.fold_in(key, epoch), B)
            if config.minibatches > 1
            else jnp.arange(B)
            for epoch in range(config.epochs)
        ]
    )
    pieces = config.epochs * config.minibatches

    def cut(x):
        rows = x.shape[0]
        if rows == B:
            x = x[orders.reshape(-1)]
        else:  # pretraining rows: another number of them
            x = jnp.concatenate([x] * config.epochs)
        return x.reshape(pieces, rows // config.minibatches, *x.shape[1:])

    return jax.tree.map(cut, train_batch)


def _weighted(pretrain: Batch | None, mask_BT: Array, coefficient: float) -> Batch | None:
    """Pretraining rows, weighted so that their mean loss counts `coefficient` in a mean per
    action."""
    if pretrain is None:
        return None
    share = jnp.sum(mask_BT) / jnp.maximum(jnp.sum(pretrain.loss_weights), 1.0)
    return pretrain.replace(loss_weights=pretrain.loss_weights * (coefficient * share))
