"""A fresh TrainState, each device filled with its own part alone."""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qwen_jax.config import ModelConfig
from qwen_jax.model.spec import init_params, param_specs
from qwen_jax.parallel.rules import DEFAULT_RULES, Rules, sharding_for
from qwen_jax.types import Params, TrainState


def init_state(key, config: ModelConfig, optimizer: optax.GradientTransformation) -> TrainState:
    """Step 0: weights drawn from `key`, the optimizer's first state."""
    return _start(init_params(config, key), optimizer)


def abstract_state(config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh,
                   rules: Rules = DEFAULT_RULES) -> TrainState:
    """The state's shapes, dtypes and shardings, nothing allocated. Moments lie with their weights.

    Raises:
      ShardingError: when weights do not divide over the mesh.
    """
    shapes = jax.eval_shape(lambda: init_state(jax.random.key(0), config, optimizer))
    by_path = {
        jax.tree_util.keystr(path): sharding for path, sharding in
        jax.tree_util.tree_leaves_with_path(sharding_for(param_specs(config), mesh, rules))
    }
    replicated = NamedSharding(mesh, PartitionSpec())

    def place(path, leaf):
        # A moment's path ends in its weight's path: ....mu.layers.mlp.w_up
        name = jax.tree_util.keystr(path)
        sharding = next((s for end, s in by_path.items() if name.endswith(end)), replicated)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, shapes)


def make_state(seed: int, config: ModelConfig, optimizer: optax.GradientTransformation,
               abstract: TrainState, *, params: Params | None = None) -> TrainState:
    """The TrainState that `abstract` describes, every weight made where it will live.

    Args:
      params: to start from, which are given away (donated); None: drawn from the seed.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    if params is not None:
        start = jax.jit(lambda params: _start(params, optimizer), out_shardings=shardings,
                        donate_argnums=0)
        return start(params)
    make = jax.jit(lambda key: init_state(key, config, optimizer), out_shardings=shardings)
    return make(jax.random.key(seed))


def _start(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(step=jnp.int32(0), params=params, opt_state=optimizer.init(params))
