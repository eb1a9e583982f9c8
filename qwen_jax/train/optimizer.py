"""AdamW with decoupled weight decay, global-norm clipping, and the report's schedules.

Report: 2.4 (pretraining), 3.1 (SFT).
"""

import jax
import jax.numpy as jnp
import optax

from qwen_jax.config import OptimizerConfig
from qwen_jax.errors import ConfigError


def default_warmup(num_steps: int) -> int:
    """Returns the warm-up steps of a run that is too short for those of its recipe: a tenth."""
    return num_steps // 10


def make_schedule(
    config: OptimizerConfig, num_steps: int, section: str = "optimizer"
) -> optax.Schedule:
    """Returns the learning rate as a function of the step, counted from 0.

    After a linear warm-up, "cosine" decays to final_fraction of the peak at num_steps, and
    "constant" stays at the peak. The first of w warm-up steps uses peak / w, not zero.

    Args:
      section: the flags of `config` begin with it.

    Raises:
      ConfigError: the warm-up is at least as long as the run.
    """
    warmup = config.warmup_steps
    if warmup >= num_steps:
        raise ConfigError(
            f"the warm-up of {warmup:,} steps is not shorter than the run of {num_steps:,}.",
            f"{section}.warmup_steps",
            f"use --{section}.warmup_steps={default_warmup(num_steps)}, a tenth of the run, or "
            f"more than {warmup:,} steps (--train.num_steps, --data.epochs).",
        )
    peak = config.peak_learning_rate
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(
            peak, max(num_steps - warmup, 1), alpha=config.final_fraction
        )
    else:
        main = optax.constant_schedule(peak)

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        rising = jnp.float32(peak) * (step + 1.0) / max(warmup, 1)
        return jnp.where(step < warmup, rising, main(step - warmup))

    return schedule


def make_optimizer(
    config: OptimizerConfig, num_steps: int, section: str = "optimizer"
) -> optax.GradientTransformation:
    """Returns AdamW with clipping and a schedule. Weight decay applies only to matrices, not to
    norm scales and biases."""
    stages = []
    if config.clip_norm is not None:
        stages.append(optax.clip_by_global_norm(config.clip_norm))
    stages.append(
        optax.adamw(
            make_schedule(config, num_steps, section),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=decay_mask,
            mu_dtype=jnp.dtype(config.moment_dtype),
        )
    )
    return _with_library_promotion(optax.chain(*stages))


def _with_library_promotion(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Runs optax under standard dtype promotion.

    optax mixes Python floats with integer counts, which strict promotion forbids.
    """

    def init(params):
        with jax.numpy_dtype_promotion("standard"):
            return inner.init(params)

    def update(updates, state, params=None):
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params)

    return optax.GradientTransformation(init, update)


def decay_mask(params):
    """Returns True for each weight to decay: all but norm scales and biases, matched by name."""

    def decays(path, _) -> bool:
        name = path[-1].name
        return not (name.endswith("norm") or name in ("bq", "bk", "bv"))

    return jax.tree_util.tree_map_with_path(decays, params)
