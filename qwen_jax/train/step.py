"""THE train step of every objective: accumulates, normalizes and clips gradients, then updates."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from qwen_jax.types import Array, Batch, Sums, TrainState

Objective = Callable[[Any, Any, Array | None], Sums]  # (params, batch, key) -> Sums
Metrics = dict[str, Array]


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    micro_batches: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns train_step(state, batch) -> (state, metrics), which is jitted and donates the state.

    Gradients of summed losses are accumulated over micro-batches and divided once by the weight of
    the full batch, so accumulation is exact for any loss mask.

    A step with a non-finite loss or gradient halts the state (see `unless_halted`).
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def loss(params, micro, index):
            sums = objective(params, micro, jax.random.fold_in(key, index))
            return sums.loss_sum, sums

        def micro_step(params, index, micro):
            (_, sums), grads = jax.value_and_grad(loss, has_aux=True)(params, micro, index)
            return grads, sums

        if micro_batches == 1:
            grads, sums = micro_step(state.params, 0, batch)
        else:

            def accumulate(total, indexed):
                return jax.tree.map(jnp.add, total, micro_step(state.params, *indexed)), None

            indexed = (jnp.arange(micro_batches), split(batch, micro_batches))
            first = jax.tree.map(lambda x: x[0], indexed)
            shapes = jax.eval_shape(lambda i: micro_step(state.params, *i), first)
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            (grads, sums), _ = jax.lax.scan(accumulate, zeros, indexed)

        grads = jax.tree.map(lambda g: g / sums.weight_sum.astype(g.dtype), grads)
        grad_norm = optax.tree.norm(grads)
        mean_loss = sums.loss_sum / sums.weight_sum
        finite = jnp.isfinite(mean_loss) & jnp.isfinite(grad_norm)
        old: Any = state.params  # a pytree, for optax's types
        updates, opt_state = optimizer.update(grads, state.opt_state, old)
        params = optax.apply_updates(old, updates)
        new = dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state)

        means = {f"train/{name}": total / sums.weight_sum for name, total in sums.extras.items()}
        return unless_halted(finite, new, state), {
            "train/loss": mean_loss,
            "train/grad_norm": grad_norm,
            "train/weight": sums.weight_sum,
            **means,
        }

    return jax.jit(train_step, donate_argnums=0)


def unless_halted(finite: Array, new: Any, old: Any) -> Any:
    """Returns `new`; or a halted `old`, if the step was not finite or `old` was already halted.

    The loop reads metrics one step late. Halting keeps the last good state until then.

    Args:
      new, old: the states after and before the step, with a field `halted`.
    """
    accept = finite & ~old.halted
    halted = old.replace(halted=jnp.ones_like(old.halted))
    return jax.tree.map(lambda new, old: jnp.where(accept, new, old), new, halted)


def split(batch: Batch, number: int) -> Batch:
    """Splits a batch into `number` micro-batches: [B, ...] -> [number, B / number, ...].

    Micro-batch i contains examples i, i + number, ..., so each device only splits the examples that
    it already holds.
    """
    return jax.tree.map(lambda x: x.reshape(-1, number, *x.shape[1:]).swapaxes(0, 1), batch)
