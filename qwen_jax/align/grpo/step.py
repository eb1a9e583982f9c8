"""Group relative policy optimization, as pure functions of a rollout. Shao et al. 2024.

Reading order: `make_grpo_step` is one full step; the functions that it calls follow. The rollout,
the ratio and its clip are those of PPO (align/ppo.py). There is no value model: the advantage of a
response is its reward relative to the other responses to its prompt.

Shapes: B sequences, G of each prompt, adjacent; T positions.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.struct import PyTreeNode

from qwen_jax.align.grpo.config import GRPOConfig, LossType, ScaleRewards
from qwen_jax.align.log_probs import token_log_probs
from qwen_jax.align.ppo import (
    PPOBatch,
    Rollout,
    response_window,
    rollout_metrics,
    split_minibatches,
    surrogate,
)
from qwen_jax.config import ModelConfig
from qwen_jax.model.lora import LoRAConfig
from qwen_jax.train.adapters import with_base
from qwen_jax.train.step import Metrics, make_train_step, unless_halted
from qwen_jax.types import Array, Params, Sums, TrainState

_SCALE_EPSILON = 1e-4  # as in TRL: a group of almost equal rewards has small advantages


class GRPOState(PyTreeNode):
    """All state that GRPO updates; a checkpoint of it resumes a run exactly."""

    step: Array  # int32 []
    policy: TrainState  # `halted` is None
    halted: Array | None = None  # bool []; TrainState.halted of the policy

    @property
    def params(self) -> tuple[Params, None]:
        """Parameters of the policy and of the value model, which does not exist."""
        return self.policy.params, None


class GRPOTrainBatch(PyTreeNode):
    """Inputs of a policy update."""

    rollout: Rollout
    advantages: Array  # float32 [B]
    loss_weights: Array | None = None  # float32 [B, T]; 0 where nothing was sampled


def make_grpo_step(
    model: ModelConfig,
    config: GRPOConfig,
    *,
    optimizer: optax.GradientTransformation,
    seed: int,
    micro_batches: int = 1,
    lora: LoRAConfig | None = None,
) -> Callable[[GRPOState, PPOBatch], tuple[GRPOState, Metrics]]:
    """Returns the jitted grpo_step(state, batch) -> (state, metrics); the state is donated.

    Args:
      lora: the policy is adapters on batch.frozen. None: all weights are trained.
    """

    def grpo_step(state: GRPOState, batch: PPOBatch) -> tuple[GRPOState, Metrics]:
        rollout, objective = batch.rollout, policy_objective(model, config)
        if batch.frozen is not None:
            assert lora is not None, "frozen models are passed only with adapters"
            objective = with_base(batch.frozen.reference, objective, lora)
        update_policy = make_train_step(
            objective, optimizer, seed=seed, micro_batches=micro_batches
        )
        advantages_B, metrics = group_advantages(
            rollout.rewards, config.num_generations, config.scale_rewards
        )
        metrics |= rollout_metrics(rollout)

        def update(policy: TrainState, train_batch: GRPOTrainBatch):
            weights = loss_weights(
                train_batch.rollout.response_mask, config.loss_type, config.max_new_tokens
            )
            weighted: Any = train_batch.replace(loss_weights=weights)
            return update_policy(policy, weighted)

        train_batch = GRPOTrainBatch(rollout, advantages_B)
        minibatches = split_minibatches(train_batch, config, state.step, seed)
        # The policy has a `halted` flag only within a step.
        policy, logged = jax.lax.scan(
            update, state.policy.replace(halted=jnp.bool_(False)), minibatches
        )
        metrics |= {f"policy/{k.removeprefix('train/')}": jnp.mean(x) for k, x in logged.items()}
        metrics["train/loss"] = metrics["policy/loss"]
        metrics["train/grad_norm"] = metrics["policy/grad_norm"]
        new = state.replace(step=state.step + 1, policy=policy.replace(halted=None))
        assert policy.halted is not None  # set above
        return unless_halted(~policy.halted, new, state), metrics

    return jax.jit(grpo_step, donate_argnums=0)


def group_advantages(
    rewards_B: Array, num_generations: int, scale_rewards: ScaleRewards
) -> tuple[Array, Metrics]:
    """Returns each response's reward minus the mean of its group, scaled: [B]; and metrics.

    The standard deviation is that of a sample (divided by G - 1), as in TRL. If all rewards of a
    group are equal, its advantages are 0 and it trains only the KL term.
    """
    rewards_PG = rewards_B.reshape(-1, num_generations)
    centered_PG = rewards_PG - jnp.mean(rewards_PG, axis=1, keepdims=True)
    std_P1 = jnp.std(rewards_PG, axis=1, keepdims=True, ddof=1)
    # Not from the standard deviation, which rounding can make positive.
    equal_P1 = jnp.max(rewards_PG, axis=1, keepdims=True) == jnp.min(
        rewards_PG, axis=1, keepdims=True
    )
    if scale_rewards == "group":
        centered_PG /= std_P1 + _SCALE_EPSILON
    elif scale_rewards == "batch":
        centered_PG /= jnp.std(rewards_B, ddof=1) + _SCALE_EPSILON
    # NaN is not equal to itself, so bad rewards still halt the run.
    advantages_B = jnp.where(equal_P1, 0.0, centered_PG).reshape(-1)
    return advantages_B, {
        "rollout/reward_std": jnp.mean(std_P1),
        "rollout/frac_reward_zero_std": jnp.mean(equal_P1.astype(jnp.float32)),
    }


def loss_weights(mask_BT: Array, loss_type: LossType, max_new_tokens: int) -> Array:
    """Returns the weight of each sampled token: the loss is their weighted sum, divided by the
    number of sampled tokens of the minibatch. [B, T]

    dapo: the mean over tokens. grpo: the mean over responses of the mean over their tokens.
    dr_grpo: the sum over tokens, divided by B * max_new_tokens.
    """
    if loss_type == "dapo":
        return mask_BT
    B, tokens = mask_BT.shape[0], jnp.sum(mask_BT)
    if loss_type == "dr_grpo":
        return mask_BT * (tokens / (B * max_new_tokens))
    lengths_B1 = jnp.maximum(jnp.sum(mask_BT, axis=1, keepdims=True), 1.0)
    return mask_BT * (tokens / B) / lengths_B1


def policy_objective(model: ModelConfig, config: GRPOConfig):
    """Returns objective(params, train_batch, key): the clipped surrogate plus beta * KL."""

    def objective(params: Params, train_batch: GRPOTrainBatch, key: Array | None) -> Sums:
        del key  # nothing is random
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
        return token_sums(log_probs, entropy, train_batch, config)

    return objective


def token_sums(
    log_probs_BT: Array, entropy_BT: Array, train_batch: GRPOTrainBatch, config: GRPOConfig
) -> Sums:
    """Returns the loss and metrics of the policy's log-probabilities.

    loss = weighted sum over sampled tokens of
    max(-A ratio, -A clip(ratio, 1 - epsilon, 1 + epsilon)) + beta * KL.
    """
    rollout, mask = train_batch.rollout, train_batch.rollout.response_mask
    change = (log_probs_BT - rollout.log_probs) * mask
    loss_BT, clipped_BT = surrogate(change, train_batch.advantages[:, None], config.epsilon)
    kl_BT = kl_estimate((rollout.reference_log_probs - log_probs_BT) * mask)
    return Sums(
        loss_sum=jnp.sum((loss_BT + config.beta * kl_BT) * train_batch.loss_weights),
        weight_sum=jnp.sum(mask),
        extras={
            "entropy": jnp.sum(entropy_BT * mask),
            "clip_fraction": jnp.sum(clipped_BT * mask),
            "ratio": jnp.sum(jnp.exp(change) * mask),
            "approx_kl": jnp.sum((jnp.expm1(change) - change) * mask),
            "kl": jnp.sum(kl_BT * mask),
        },
    )


def kl_estimate(log_ratio: Array) -> Array:
    """Returns the estimate k3 of the KL per token (Schulman 2020): r - 1 - log r, at least 0.

    Args:
      log_ratio: log of r = p_reference / p.
    """
    return jnp.expm1(log_ratio) - log_ratio
