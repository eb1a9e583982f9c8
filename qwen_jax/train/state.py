"""Initializes a TrainState. Each device creates only its own shards."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qwen_jax.model.spec import init_from
from qwen_jax.parallel.sharding import DEFAULT_RULES, Rules, sharding_for
from qwen_jax.types import TrainState


def abstract_state(
    specs: Any,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    dtype: str,
    rules: Rules = DEFAULT_RULES,
) -> TrainState:
    """Returns the shapes, dtypes and shardings of a state without allocating it.

    Moments are sharded like their weights.

    Args:
      specs: a tree of Specs, such as that of model.spec.param_specs.
      dtype: dtype of the parameters.

    Raises:
      ShardingError: weights cannot be divided evenly over the mesh.
    """
    shapes = jax.eval_shape(lambda: _start(init_from(specs, jax.random.key(0), dtype), optimizer))
    by_path = {
        jax.tree_util.keystr(path): sharding
        for path, sharding in jax.tree_util.tree_leaves_with_path(sharding_for(specs, mesh, rules))
    }
    replicated = NamedSharding(mesh, PartitionSpec())

    def add_sharding(path, leaf):
        # A moment's path ends in its weight's path: ....mu.layers.mlp.w_up
        name = jax.tree_util.keystr(path)
        sharding = next((s for end, s in by_path.items() if name.endswith(end)), replicated)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(add_sharding, shapes)


def make_state(
    seed: int,
    specs: Any,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    *,
    params: Any = None,
) -> TrainState:
    """Creates the TrainState that `abstract` describes; each device creates its own shards.

    Args:
      params: initial parameters, whose buffers are donated; None: sampled with the seed.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)

    def start(params) -> TrainState:
        state = _start(params, optimizer)
        return state if abstract.halted is not None else dataclasses.replace(state, halted=None)

    if params is not None:
        return jax.jit(start, out_shardings=shardings, donate_argnums=0)(params)
    dtype = jax.tree.leaves(abstract.params)[0].dtype
    make = jax.jit(lambda key: start(init_from(specs, key, dtype)), out_shardings=shardings)
    return make(jax.random.key(seed))


def for_checkpoint(state: Any) -> Any:
    """Returns the part of a state that a checkpoint stores: everything except `halted`.

    The flag is not needed, because only finite states are saved.
    """
    return state.replace(halted=None)


def from_checkpoint(state: Any, abstract: Any) -> Any:
    """Returns the full state, as described by `abstract`, from the result of `for_checkpoint`."""
    return state.replace(halted=jax.device_put(np.bool_(False), abstract.halted.sharding))


def _start(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=optimizer.init(params),
        halted=jnp.bool_(False),
    )
