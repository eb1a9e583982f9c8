"""Proximal policy optimization, as pure functions of a rollout. Report: 3.2.2.

Reading order: `make_ppo_step` is one full step; the functions that it calls follow.

Position t of a sequence holds the token before the sampled one. The sampled token is targets[t].
Its log-probability comes from the logits at t. The value at t is the value of the state before the
sampled token.

Shapes: B sequences, T positions.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

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

T = TypeVar("T")


class Rollout(PyTreeNode):
    """Prompts with sampled responses, scored by the models, padded on the right."""

    tokens: Array  # int32 [B, T]
    targets: Array  # int32 [B, T]; the next token
    segment_ids: Array  # int32 [B, T]; 1 for tokens, 0 for padding
    # float32 [B, T]; 1 where the target was sampled, including the end token: at most
    # config.max_new_tokens consecutive positions
    response_mask: Array
    log_probs: Array  # float32 [B, T]; of the sampling policy, recomputed by the trainer
    sampler_log_probs: Array  # float32 [B, T]; computed by the sampler; only logged
    entropies: Array  # float32 [B, T]; of the policy's distribution before top-p
    reference_log_probs: Array  # float32 [B, T]
    values: Array | None  # float32 [B, T]; None: no value model (GRPO)
    rewards: Array  # float32 [B]; one per response, not normalized
    finished: Array  # float32 [B]; 1 if the response ends with its end token, 0 if truncated


class FrozenModels(PyTreeNode):
    """Frozen base weights for the adapters of the policy and the value model.

    The policy's base is the reference model. The value model's base is the reward model, or the
    reference model if there is no reward model. The value model's score head is fully trained.
    """

    reference: Params
    reward: ScoringParams | None

    @property
    def value(self) -> ScoringParams:
        """The base weights of the value model."""
        if self.reward is not None:
            return self.reward
        return from_language_model(self.reference, None)


class PPOBatch(PyTreeNode):
    """The inputs of one PPO or GRPO step."""

    rollout: Rollout
    pretrain: Batch | None  # pretraining sequences; None: no pretraining gradient
    frozen: FrozenModels | None = None  # the adapters' base weights; None: all weights are trained


class RunningMoments(PyTreeNode):
    """Running mean and variance of all rewards so far (Chan's parallel update)."""

    count: Array  # float32 []
    mean: Array  # float32 []
    variance: Array  # float32 []


class PPOState(PyTreeNode):
    """All state that PPO updates; a checkpoint of it resumes a run exactly."""

    step: Array  # int32 []
    policy: TrainState  # `halted` is None in both
    value: TrainState
    rewards: RunningMoments
    halted: Array | None = None  # bool []; TrainState.halted for both models

    @property
    def params(self) -> tuple[Any, Any]:
        """Parameters of the policy and the value model."""
        return self.policy.params, self.value.params


class Passes(Protocol):
    """How often a rollout is trained on."""

    @property
    def epochs(self) -> int: ...
    @property
    def minibatches(self) -> int: ...  # of each epoch


class PPOTrainBatch(PyTreeNode):
    """Inputs of a policy or value update; per-token arrays are [B, T]."""

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
    """Returns the jitted ppo_step(state, batch) -> (state, metrics); the state is donated.

    Rewards are normalized by their running moments, including this batch (report 3.2.2: the mean;
    dividing by the standard deviation is ours). A per-token KL penalty is added. Advantages are
    whitened over the full batch (ours). The policy and the value model are then trained on
    minibatches by the common train step. During value warm-up the policy update is skipped and its
    metrics are 0.

    Args:
      lora: the policy and the value model are adapters on batch.frozen. None: all weights are
        trained.
    """

    def ppo_step(state: PPOState, batch: PPOBatch) -> tuple[PPOState, Metrics]:
        rollout, frozen = batch.rollout, batch.frozen
        objectives = policy_objective(model, config), value_objective(model, config)
        if frozen is not None:
            assert lora is not None, "frozen models are passed only with adapters"
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

        def update(carry, train_batch):
            policy, value = carry
            value, value_metrics = update_value(value, train_batch)
            _, logged = jax.eval_shape(update_policy, policy, train_batch)

            def skip(policy: TrainState):
                # Skipped steps count, so that the learning-rate schedule follows the run.
                return policy.replace(step=policy.step + 1), jax.tree.map(jnp.zeros_like, logged)

            policy, policy_metrics = jax.lax.cond(
                state.step < config.value_warmup_steps,
                skip,
                lambda policy: update_policy(policy, train_batch),
                policy,
            )
            return (policy, value), (policy_metrics, value_metrics)

        minibatches = split_minibatches(train_batch, config, state.step, seed)
        # Policy and value model have a `halted` flag only within a step.
        start = (part.replace(halted=jnp.bool_(False)) for part in (state.policy, state.value))
        (policy, value), (policy_metrics, value_metrics) = jax.lax.scan(
            update, tuple(start), minibatches
        )
        for name, logged in (("policy", policy_metrics), ("value", value_metrics)):
            metrics |= {
                f"{name}/{key.removeprefix('train/')}": jnp.mean(x) for key, x in logged.items()
            }
        metrics["train/loss"] = metrics["policy/loss"] + metrics["value/loss"]
        metrics["train/grad_norm"] = metrics["policy/grad_norm"]
        new = state.replace(
            step=state.step + 1,
            policy=policy.replace(halted=None),
            value=value.replace(halted=None),
            rewards=moments,
        )
        # A non-finite update changes nothing, not even the running moments.
        assert policy.halted is not None and value.halted is not None  # set above
        return unless_halted(~(policy.halted | value.halted), new, state), metrics

    return jax.jit(ppo_step, donate_argnums=0)


def make_train_batch(
    batch: PPOBatch, moments: RunningMoments, config: PPOConfig
) -> tuple[PPOTrainBatch, Metrics]:
    """Returns the advantage and return of every sampled token, and the rollout metrics."""
    rollout = batch.rollout
    mask = rollout.response_mask
    normalized_B = normalize_rewards(rollout.rewards, moments)
    normalized_B = normalized_B - jnp.float32(config.missing_eos_penalty) * (1.0 - rollout.finished)
    kl_BT = log_ratio_to_reference(rollout)
    rewards_BT = token_rewards(normalized_B, kl_BT, mask, config.kl_coefficient)
    advantages, returns = advantages_and_returns(
        rewards_BT, rollout.values, mask, gamma=config.gamma, gae_lambda=config.gae_lambda
    )
    train_batch = PPOTrainBatch(
        rollout=rollout,
        advantages=whiten(advantages, mask),
        returns=returns,
        pretrain=_weighted(batch.pretrain, mask, config.pretrain_coefficient),
    )
    return train_batch, rollout_metrics(rollout) | {
        "rollout/reward_normalized": jnp.mean(normalized_B),
        "rollout/value": masked_mean(rollout.values, mask),
        "rollout/return": masked_mean(returns, mask),
    }


def rollout_metrics(rollout: Rollout) -> Metrics:
    """Returns the metrics that every objective logs about a rollout."""
    mask, kl_BT = rollout.response_mask, log_ratio_to_reference(rollout)
    gap_BT = jnp.abs(rollout.log_probs - rollout.sampler_log_probs)
    return {
        "rollout/reward": jnp.mean(rollout.rewards),
        "rollout/kl": jnp.mean(jnp.sum(kl_BT * mask, axis=1)),
        "rollout/kl_per_token": masked_mean(kl_BT, mask),
        "rollout/entropy": masked_mean(rollout.entropies, mask),
        "rollout/sampler_logprob_gap": masked_mean(gap_BT, mask),
        "rollout/length": jnp.mean(jnp.sum(mask, axis=1)),
        "rollout/finished": jnp.mean(rollout.finished),
    }


def log_ratio_to_reference(rollout: Rollout) -> Array:
    """Returns log p / p_reference of each sampled token, whose mean estimates the KL: [B, T]."""
    return rollout.log_probs - rollout.reference_log_probs


def token_rewards(reward_B: Array, kl_BT: Array, mask_BT: Array, coefficient: float) -> Array:
    """Returns -coefficient * KL per sampled token, plus the reward at the last token: [B, T]."""
    following = jnp.pad(mask_BT[:, 1:], ((0, 0), (0, 1)))
    last_BT = mask_BT * (1.0 - following)
    return mask_BT * (-jnp.float32(coefficient) * kl_BT) + last_BT * reward_B[:, None]


def advantages_and_returns(
    rewards_BT: Array, values_BT: Array, mask_BT: Array, *, gamma: float, gae_lambda: float
) -> tuple[Array, Array]:
    """Generalized advantage estimation per response; zero elsewhere. [B, T] each.

    delta_t = r_t + gamma * V_{t+1} - V_t; A_t = delta_t + gamma * gae_lambda * A_{t+1}; after the
    last sampled token V and A are 0. Returns are A + V.
    """

    def step_back(carry, inputs):
        advantage, value = carry
        reward_B, value_B, mask_B = inputs
        delta = reward_B + jnp.float32(gamma) * value - value_B
        current = delta + jnp.float32(gamma * gae_lambda) * advantage
        # Positions outside the response pass the carry through.
        advantage = jnp.where(mask_B > 0, current, advantage)
        return (advantage, jnp.where(mask_B > 0, value_B, value)), mask_B * advantage

    zero = jnp.zeros(rewards_BT.shape[:1], jnp.float32)
    _, advantages = jax.lax.scan(
        step_back, (zero, zero), (rewards_BT.T, values_BT.T, mask_BT.T), reverse=True
    )
    return advantages.T, mask_BT * (advantages.T + values_BT)


def policy_objective(model: ModelConfig, config: PPOConfig):
    """Returns objective(params, train_batch, key): clipped surrogate plus pretraining loss.

    loss = sum over sampled tokens of max(-A ratio, -A clip(ratio, 1 - c, 1 + c)).
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
            window=response_window(mask, config.max_new_tokens),
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


def response_window(mask_BT: Array, size: int) -> Window:
    """Returns the windows that contain each sequence's response of at most `size` tokens."""
    size = min(size, mask_BT.shape[1])
    first_B = jnp.argmax(mask_BT > 0, axis=1).astype(jnp.int32)
    return Window(jnp.minimum(first_B, mask_BT.shape[1] - size), size)


def surrogate(change: Array, advantages: Array, clip: float) -> tuple[Array, Array]:
    """Returns each token's loss and whether its ratio exp(change) was clipped (1.0 or 0.0)."""
    ratio = jnp.exp(change)
    clipped_ratio = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    loss, clipped = -advantages * ratio, -advantages * clipped_ratio
    return jnp.maximum(loss, clipped), (clipped > loss).astype(jnp.float32)


def value_objective(model: ModelConfig, config: PPOConfig):
    """Returns objective(params, train_batch, key): half the squared error of the clipped value.

    loss = sum over sampled tokens of max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2.
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
    """Returns each token's loss and whether its value was clipped (1.0 or 0.0)."""
    clipped_values = jnp.clip(values, old - clip, old + clip)
    loss, clipped = jnp.square(values - returns), jnp.square(clipped_values - returns)
    return jnp.maximum(loss, clipped) / 2.0, (clipped > loss).astype(jnp.float32)


def masked_mean(x_BT: Array, mask_BT: Array) -> Array:
    """Returns the mean over the batch's positions where the mask is 1."""
    return jnp.sum(x_BT * mask_BT) / jnp.maximum(jnp.sum(mask_BT), 1.0)


def whiten(x_BT: Array, mask_BT: Array) -> Array:
    """Scales to mean 0, variance 1 where the batch's mask is 1; 0 elsewhere. Ours."""
    mean = masked_mean(x_BT, mask_BT)
    variance = masked_mean(jnp.square(x_BT - mean), mask_BT)
    return mask_BT * (x_BT - mean) * jax.lax.rsqrt(variance + 1e-8)


def initial_moments() -> RunningMoments:
    """Returns the moments of no rewards."""
    return RunningMoments(count=jnp.float32(0), mean=jnp.float32(0), variance=jnp.float32(1))


def update_moments(moments: RunningMoments, rewards_B: Array) -> RunningMoments:
    """Returns the moments with `rewards_B` included."""
    n = jnp.float32(rewards_B.shape[0])
    mean, variance = jnp.mean(rewards_B), jnp.var(rewards_B)
    total = moments.count + n
    delta = mean - moments.mean
    squares = (
        moments.variance * moments.count
        + variance * n
        + jnp.square(delta) * moments.count * n / total
    )
    return RunningMoments(
        count=total, mean=moments.mean + delta * n / total, variance=squares / total
    )


def normalize_rewards(rewards_B: Array, moments: RunningMoments) -> Array:
    """Returns (reward - mean) / standard deviation; the division is ours. Report 3.2.2."""
    return (rewards_B - moments.mean) * jax.lax.rsqrt(moments.variance + 1e-8)


def split_minibatches(train_batch: T, config: Passes, step: Array, seed: int) -> T:
    """Splits into the minibatches of all epochs, along a new leading axis to scan over.

    The train batch is a pytree with `advantages`, whose first axis is the batch's.
    Sequences are reshuffled every epoch with a key derived from (seed, step, epoch).
    """
    B = train_batch.advantages.shape[0]  # pyright: ignore[reportAttributeAccessIssue]
    key = jax.random.fold_in(jax.random.key(seed), step)
    orders = jnp.stack(
        [
            jax.random.permutation(jax.random.fold_in(key, epoch), B)
            if config.minibatches > 1
            else jnp.arange(B)
            for epoch in range(config.epochs)
        ]
    )
    num_updates = config.epochs * config.minibatches

    def split(x):
        size = x.shape[0]
        if size == B:
            x = x[orders.reshape(-1)]
        else:  # the number of pretraining sequences differs from B
            x = jnp.concatenate([x] * config.epochs)
        return x.reshape(num_updates, size // config.minibatches, *x.shape[1:])

    return jax.tree.map(split, train_batch)


def _weighted(pretrain: Batch | None, mask_BT: Array, coefficient: float) -> Batch | None:
    """Scales loss weights so that the mean pretraining loss has weight `coefficient`."""
    if pretrain is None:
        return None
    share = jnp.sum(mask_BT) / jnp.maximum(jnp.sum(pretrain.loss_weights), 1.0)
    return pretrain.replace(loss_weights=pretrain.loss_weights * (coefficient * share))
