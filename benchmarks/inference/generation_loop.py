"""A common decoder baseline: a Python loop that calls a jitted step for every token.

The step is the same as in our compiled loop, with the same cached forward pass and sampler, so only
the loop differs. Optionally, top-p sorts the vocabulary, as in most implementations.

Shapes: B sequences, T prompt tokens, R new tokens, V vocabulary size.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from qwen_jax.config import ModelConfig
from qwen_jax.inference.decoder.cached_forward import forward_cached
from qwen_jax.inference.decoder.kv_cache import init_cache
from qwen_jax.inference.loop import DecodeState, take
from qwen_jax.inference.sampling import SamplingArrays, SamplingParams, sampling_arrays


class PythonLoop:
    """decode(params, prompts, top_p=...) -> new tokens, int32 [B, R], read after every step."""

    def __init__(self, config: ModelConfig, *, new_tokens: int, donate: bool, sort: bool = False):
        """
        Args:
          donate: whether to donate the cache to the step, which then updates it in place.
          sort: whether to implement top-p by sorting.
        """
        self._config, self._new_tokens = config, new_tokens
        choose = by_sorting if sort else take
        self._prefill = jax.jit(
            functools.partial(prefill, choose=choose, config=config, room=new_tokens)
        )
        self._step = jax.jit(
            functools.partial(step, choose=choose, config=config),
            donate_argnums=(1,) if donate else (),
        )

    def __call__(self, params, prompts: np.ndarray, *, top_p: float) -> np.ndarray:
        B = len(prompts)

        settings = SamplingParams(self._new_tokens, temperature=1.0, top_p=top_p)
        sampling = sampling_arrays(
            [settings] * B,
            vocab_size=self._config.vocab_size,
            num_stop_ids=1,
            streams=range(B),
        )
        sampling = jax.tree.map(jnp.asarray, sampling)  # transferred once, not in every step
        state, token = self._prefill(params, prompts, sampling)
        tokens = [np.asarray(token)]
        while len(tokens) < self._new_tokens:
            state, token = self._step(params, state, sampling)
            tokens.append(np.asarray(token))
        return np.stack(tokens, axis=1)


def prefill(params, prompts, sampling: SamplingArrays, *, choose, config: ModelConfig, room: int):
    """Returns the state after prompts [B, T], and the first new token of each sequence."""
    B, T = prompts.shape
    logits, cache = forward_cached(params, prompts, init_cache(config, B, T + room), config=config)
    state = DecodeState(
        cache=cache,
        last=jnp.zeros((B,), jnp.int32),
        counts=jnp.zeros((B,), jnp.int32),
        active=jnp.ones((B,), bool),
        seen=jnp.zeros((B, config.vocab_size), bool),
    )
    return choose(state, logits, sampling)[:2]


def step(params, state: DecodeState, sampling: SamplingArrays, *, choose, config: ModelConfig):
    """Decodes one token per sequence; returns the new state and the tokens, int32 [B]."""
    logits, cache = forward_cached(
        params,
        state.last[:, None],
        state.cache,
        config=config,
        num_tokens=state.active.astype(jnp.int32),
    )
    return choose(state.replace(cache=cache), logits, sampling)[:2]


def by_sorting(state: DecodeState, logits_BV, sampling: SamplingArrays):
    """Like inference.loop.take without stop conditions; sorts for top-p, with one random key."""
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    probs_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
    kept_BV = jnp.where(before_BV < sampling.top_p[:, None], sorted_BV, jnp.inf)
    smallest_B1 = jnp.min(kept_BV, axis=-1, keepdims=True)
    key = jax.random.fold_in(jax.random.key(0), state.counts[0])
    chosen_B = jax.random.categorical(
        key, jnp.where(logits_BV >= smallest_B1, logits_BV, -jnp.inf)
    ).astype(jnp.int32)
    return state.replace(last=chosen_B, counts=state.counts + 1), chosen_B
