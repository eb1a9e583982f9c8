"""A fresh TrainState, each device filled with its own part alone."""

from typing import Any

import jax
import jax.numpy as jnp
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
    """The state's shapes, dtypes and shardings, nothing allocated. Moments lie with their weights.

    Args:
      specs: a tree of Specs, such as model.spec.param_specs gives.
      dtype: of the parameters.

    Raises:
      ShardingError: when weights do not divide over the mesh.
    """
    shapes = jax.eval_shape(lambda: _start(init_from(specs, jax.random.key(0), dtype), optimizer))
    by_path = {
        jax.tree_util.keystr(path): sharding
        for path, sharding in jax.tree_util.tree_leaves_with_path(sharding_for(specs, mesh, rules))
    }
    replicated = NamedSharding(mesh, PartitionSpec())

    def place(path, leaf):
        # A moment's path ends in its weight's path: ....mu.layers.mlp.w_up
        name = jax.tree_util.keystr(path)
        sharding = next((s for end, s in by_path.items() if name.endswith(end)), replicated)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, shapes)


def make_state(
    seed: int,
    specs: Any,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    *,
    params: Any = None,
) -> TrainState:
    """The TrainState that `abstract` describes, every weight made where it will live.

    Args:
      params: to start from, which are given away (donated); None: drawn from the seed.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    if params is not None:
        start = jax.jit(
            lambda params: _start(params, optimizer), out_shardings=shardings, donate_argnums=0
        )
        return start(params)
    dtype = jax.tree.leaves(abstract.params)[0].dtype
    make = jax.jit(
        lambda key: _start(init_from(specs, key, dtype), optimizer), out_shardings=shardings
    )
    return make(jax.random.key(seed))


def _start(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(step=jnp.int32(0), params=params, opt_state=optimizer.init(params))
