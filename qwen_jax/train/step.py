"""THE train step: accumulate, normalise, clip, update, measure.
One function for every objective."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from qwen_jax.types import Array, Batch, Params, Sums, TrainState

Objective = Callable[[Params, Batch, Array | None], Sums]
Metrics = dict[str, Array]


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    micro_batches: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """train_step(state, batch) -> (state, metrics), jitted; the state is donated.

    Gradients of sums are added over micro-batches and divided once by the weight of the whole
    batch, so accumulation is exact under any masks.

    A step whose loss or gradient is not finite leaves the weights as they were and turns state.step
    negative (-1 - steps done), after which nothing changes any more: the loop reads metrics one
    step late, and the last good state is still there when it does.
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
        good = (state.step >= 0) & jnp.isfinite(mean_loss) & jnp.isfinite(grad_norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        new = TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)
        halted = state.replace(step=jnp.where(state.step < 0, state.step, -1 - state.step))
        state = jax.tree.map(lambda new, old: jnp.where(good, new, old), new, halted)

        means = {f"train/{name}": total / sums.weight_sum for name, total in sums.extras.items()}
        return state, {
            "train/loss": mean_loss,
            "train/grad_norm": grad_norm,
            "train/weight": sums.weight_sum,
            **means,
        }

    return jax.jit(train_step, donate_argnums=0)


def split(batch: Batch, pieces: int) -> Batch:
    """[B, ...] -> [pieces, B / pieces, ...]; piece i takes rows i, i + pieces, ..., so that each
    device splits the rows it already holds."""
    return jax.tree.map(lambda x: x.reshape(-1, pieces, *x.shape[1:]).swapaxes(0, 1), batch)
