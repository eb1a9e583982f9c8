"""The two device programs of a rollout: sample completions, then score them. Report: 3.2.2.

Shapes: B sequences, T prompt positions, R maximum new tokens.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qwen_jax.align.log_probs import Window, token_log_probs
from qwen_jax.align.ppo import FrozenModels, Rollout
from qwen_jax.align.ppo_config import RolloutConfig
from qwen_jax.config import ModelConfig
from qwen_jax.errors import DataError
from qwen_jax.inference.decode import rollout as sample_completions
from qwen_jax.inference.loop import NewTokens
from qwen_jax.inference.sampling import SamplingArrays
from qwen_jax.model.lora import LoRAConfig, merge_adapters, with_adapters
from qwen_jax.model.value_head import at_end, scores
from qwen_jax.types import Array, Params, ScoringParams


@dataclasses.dataclass(frozen=True)
class RolloutPrograms:
    """Both programs, jitted or compiled for one batch shape."""

    generate: Callable  # (policy, frozen, prompts, lengths, sampling) -> NewTokens
    score: Callable  # (policy, value or None, frozen, prompts, lengths, new) -> Rollout


def rollout_programs(
    model: ModelConfig,
    config: RolloutConfig,
    *,
    end_id: int,
    reward_config: ModelConfig | None = None,
    lora: LoRAConfig | None = None,
) -> RolloutPrograms:
    """Returns the jitted programs.

    Args:
      end_id: the end token of a completion, at which the reward is read.
      reward_config: config of the reward model; None: the policy's config.
      lora: the policy and the value model are adapters on top of the frozen models
        (ppo.FrozenModels), and completions are sampled from the merged weights. None: both are full
        models.

    Raises:
      DataError: the reward model has a different vocabulary.
    """
    reward_config = reward_config or model
    if reward_config.vocab_size != model.vocab_size:
        raise DataError(
            f"the reward model has {reward_config.vocab_size} tokens, the policy "
            f"{model.vocab_size}.",
            "--reward_model",
            "train it from the same language model, with the same tokenizer.",
        )

    def generate(policy, frozen, *prompts):
        if lora is not None:
            policy = merge_adapters(frozen.reference, policy, lora, dtype=model.compute_dtype)
        return sample_completions(policy, *prompts, config=model, room=config.max_new_tokens)

    def score(policy, value, frozen, *completed):
        if lora is not None:
            policy = with_adapters(frozen.reference, policy, lora)
            value = None if value is None else with_adapters(frozen.value, value, lora)
        return score_completions(
            policy,
            value,
            frozen,
            *completed,
            model=model,
            reward_config=reward_config,
            temperature=config.temperature,
            end_id=end_id,
        )

    return RolloutPrograms(jax.jit(generate), jax.jit(score))


def compiled_programs(
    programs: RolloutPrograms,
    params: tuple[Params, ScoringParams | None],
    frozen: FrozenModels,
    inputs: tuple[Array, Array, SamplingArrays],
    sharding: jax.sharding.Sharding,
) -> RolloutPrograms:
    """Compiles the programs for one batch shape, before any weight is loaded.

    Args:
      params: parameters of the policy and the value model (or None): arrays, or abstract arrays
        with shardings.
      frozen: the frozen models: arrays, or abstract arrays with shardings.
      inputs: tokens, lengths and sampling settings (rollout.sampling_inputs) of any batch.
      sharding: sharding of the inputs.
    """
    policy, value = params
    *prompts, sampling = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding if x.ndim else None),
        inputs,
    )
    new = jax.eval_shape(programs.generate, policy, frozen, *prompts, sampling)
    generate = programs.generate.lower(policy, frozen, *prompts, sampling).compile()
    new = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        new,
        generate.output_shardings,
    )
    score = programs.score.lower(policy, value, frozen, *prompts, new).compile()
    return RolloutPrograms(generate, score)


class Sequences(NamedTuple):
    """Prompts with their responses and end tokens, on the device."""

    tokens: Array  # int32 [B, T + R + 1]
    segment_ids: Array  # int32 [B, T + R + 1]
    response_mask: Array  # float32 [B, T + R]; 1 where the next token was sampled
    log_probs: Array  # float32 [B, T + R]; the sampler's log p of the next token
    end: Array  # int32 [B]; position of the end token, at which the reward is read
    finished: Array  # float32 [B]; 1 where the policy sampled the end token


def assemble(prompts: Array, lengths: Array, new: NewTokens, *, end_id: int) -> Sequences:
    """Concatenates the prompt, response and end token of each sequence.

    A truncated response also gets an end token, at which the reward is read. The response mask is 0
    there.
    """
    B, T = prompts.shape
    R = new.tokens.shape[1]
    prompts, lengths = jnp.asarray(prompts, jnp.int32), jnp.asarray(lengths, jnp.int32)
    counts = jnp.sum((new.tokens >= 0).astype(jnp.int32), axis=1)
    finished = counts < R
    end = lengths + counts
    index = jnp.broadcast_to(jnp.arange(T + R + 1, dtype=jnp.int32)[None], (B, T + R + 1))
    from_prompt = jnp.take_along_axis(prompts, jnp.minimum(index, T - 1), axis=1)
    response_index = jnp.clip(index - lengths[:, None], 0, R - 1)
    from_response = jnp.take_along_axis(new.tokens, response_index, axis=1)
    tokens = jnp.where(index < lengths[:, None], from_prompt, from_response)
    tokens = jnp.where(index == end[:, None], jnp.int32(end_id), tokens)
    inside = index <= end[:, None]
    sampled = counts + finished.astype(jnp.int32)
    first = lengths - 1  # the position whose logits the first token was sampled from
    response_mask = (index >= first[:, None]) & (index < (first + sampled)[:, None])
    log_probs = jnp.take_along_axis(
        new.logprobs, jnp.clip(index - first[:, None], 0, R - 1), axis=1
    )
    return Sequences(
        tokens=jnp.where(inside, tokens, 0),
        segment_ids=inside.astype(jnp.int32),
        response_mask=response_mask[:, :-1].astype(jnp.float32),
        log_probs=log_probs[:, :-1],
        end=end,
        finished=finished.astype(jnp.float32),
    )


def score_completions(
    policy: Params,
    value: ScoringParams | None,
    frozen: FrozenModels,
    prompts: Array,
    lengths: Array,
    new: NewTokens,
    *,
    model: ModelConfig,
    reward_config: ModelConfig,
    temperature: float,
    end_id: int,
) -> Rollout:
    """Scores each sequence with the models; without a reward model the reward is 0.

    The policy's log-probabilities are recomputed by the training function. The sampler's differ by
    rounding errors, so with them the first ratios would not be exactly 1. Log-probabilities and
    entropies are 0 where nothing was sampled.
    """
    sequences = assemble(prompts, lengths, new, end_id=end_id)
    tokens, segments = sequences.tokens[:, :-1], sequences.segment_ids[:, :-1]
    targets = sequences.tokens[:, 1:]
    window = Window(jnp.asarray(lengths, jnp.int32) - 1, new.tokens.shape[1])

    def log_probs(params, temperature=temperature):
        return token_log_probs(
            params, tokens, targets, segments, config=model, temperature=temperature, window=window
        )

    if frozen.reward is None:
        rewards = jnp.zeros(sequences.end.shape, jnp.float32)
    else:
        rewards = at_end(
            scores(frozen.reward, sequences.tokens, sequences.segment_ids, config=reward_config),
            sequences.end,
        )
    policy_log_probs, entropies = log_probs(policy)
    sampler_log_probs = sequences.log_probs
    if temperature != 1.0:  # the sampler's use logits before the temperature
        sampler_log_probs = sampler_log_probs + policy_log_probs - log_probs(policy, 1.0)[0]
    return Rollout(
        tokens=tokens,
        targets=targets,
        segment_ids=segments,
        response_mask=sequences.response_mask,
        log_probs=policy_log_probs,
        sampler_log_probs=sampler_log_probs,
        entropies=entropies,
        reference_log_probs=log_probs(frozen.reference)[0],
        values=None if value is None else scores(value, tokens, segments, config=model),
        rewards=rewards,
        finished=sequences.finished,
    )
