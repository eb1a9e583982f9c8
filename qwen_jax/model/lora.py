"""LoRA: trains two low-rank matrices on top of each frozen weight (Hu et al. 2021).

A layer computes x W + alpha / rank (x A) B instead of x W. W needs no gradient and no moments.
Training does not merge A B into W: in bfloat16, adding a small A B to W rounds it away. Without
merging, the gradient of W, a third of the work, is not needed. Export merges them
(pretrained/adapters/merged.py).

L layers, I inputs and O outputs of a weight (one or two axes each), R rank; B batch, T positions, D
inputs and E outputs of a matrix.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode, field
from jax.ad_checkpoint import checkpoint_name

from qwen_jax.config import ModelConfig, option
from qwen_jax.errors import ConfigError, unknown_name
from qwen_jax.model.layers import MATMUL_OUT, linear, matmul
from qwen_jax.model.spec import param_specs
from qwen_jax.parallel.sharding import constrain
from qwen_jax.ranges import ABOVE_ZERO, Checked, Range
from qwen_jax.types import Array, Params, Spec

FULLY_TRAINED = ("score",)  # small new weights of a scoring model, trained without an adapter
# Matrix of a layer -> number of its input axes.
_INPUT_AXES = {"wq": 1, "wk": 1, "wv": 1, "wo": 2, "w_gate": 1, "w_up": 1, "w_down": 1}
TARGETS = tuple(_INPUT_AXES)


@dataclasses.dataclass(frozen=True)
class LoRAConfig(Checked, where="--lora.{}"):
    """The weights that get LoRA adapters, and the adapters' rank and scale."""

    rank: int | None = option(
        None,
        "LoRA: rank of the adapters, with the model's weights frozen; None: train all weights",
        Range(1, 10**5),
    )
    alpha: float = option(
        16.0, "LoRA: scaling numerator; the adapters are scaled by alpha / rank", ABOVE_ZERO
    )
    targets: tuple[str, ...] = option(TARGETS, "LoRA: weights of each layer that get an adapter")

    def __post_init__(self):
        super().__post_init__()
        for name in self.targets:
            if name not in TARGETS:
                raise unknown_name("weight", name, TARGETS, "--lora.targets")
        if not self.targets:
            raise ConfigError(
                "the list of weights that get an adapter is empty.",
                "--lora.targets",
                f"list some of {', '.join(TARGETS)}, or omit the flag to use all of them.",
            )

    @property
    def scale(self) -> float:
        assert self.rank is not None, "without a rank no adapters exist"
        return self.alpha / self.rank


class Adapter(PyTreeNode):
    """The trained matrices for one weight, stacked over the layers like the weight."""

    a: Array  # [L, *I, R]
    b: Array  # [L, R, *O]; initially zero, so the model starts equal to its base


class Adapted(PyTreeNode):
    """A frozen weight together with its adapter; replaces the weight in a layer."""

    weight: Array  # [*I, *O]; [L, *I, *O] if stacked over layers
    adapter: Adapter
    scale: float = field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    def reshape(self, *shape: int) -> "Adapted":
        """Reshapes a layer's weight to a matrix [inputs, outputs], and its adapter to match."""
        a, b = self.adapter.a, self.adapter.b
        return self.replace(
            weight=self.weight.reshape(shape),
            adapter=Adapter(a=a.reshape(-1, a.shape[-1]), b=b.reshape(b.shape[0], -1)),
        )


def input_axes(target: str) -> int:
    """Returns the number of input axes of a layer's weight, without the layer axis."""
    return _INPUT_AXES[target]


def lora_specs(
    config: ModelConfig, lora: LoRAConfig, model_specs: Callable[[ModelConfig], Any] = param_specs
) -> Any:
    """Returns the Specs of the trained parameters, in the structure of the model's.

    A target has an Adapter of Specs, a FULLY_TRAINED weight its Spec, and any other weight None.
    Adapters are sharded like their weights. A is sampled with variance 1 / inputs, so x A has the
    scale of x.

    Args:
      model_specs: config -> Specs of the model, a language model or a scoring model.
    """

    rank = lora.rank
    assert rank is not None, "without a rank no adapters exist"

    def adapter(path, spec: Spec) -> Adapter | Spec | None:
        name = path[-1].name
        if name in FULLY_TRAINED:
            return spec
        if name not in lora.targets:
            return None
        split = 1 + input_axes(name)
        layers, inputs, outputs = spec.shape[0], spec.shape[1:split], spec.shape[split:]
        return Adapter(
            a=Spec(
                (layers, *inputs, rank),
                (*spec.axes[:split], "rank"),
                "normal",
                math.prod(inputs) ** -0.5,
            ),
            b=Spec((layers, rank, *outputs), ("layers", "rank", *spec.axes[split:]), "zeros"),
        )

    return jax.tree_util.tree_map_with_path(adapter, model_specs(config))


def with_adapters(base: Any, trained: Any, lora: LoRAConfig) -> Any:
    """Returns the parameters of the full model, with an Adapted weight for each target.

    model.transformer.hidden_states and model.value_head.scores accept them.

    Args:
      base, trained: parameters of a language or a scoring model; `trained` has the structure of
        lora_specs. FULLY_TRAINED weights may be None in the base.
    """

    def join(trained, weight):
        if trained is None:
            return weight
        return Adapted(weight, trained, lora.scale) if isinstance(trained, Adapter) else trained

    return jax.tree.map(join, trained, base, is_leaf=_is_adapter_or_none)


def merge_adapters(base: Params, adapters: Params, lora: LoRAConfig, *, dtype: str) -> Params:
    """Merges each adapter into its weight: W + scale A B, summed in float32, returned in `dtype`.

    Decoding is fastest with merged weights.
    """

    def add(adapter, weight):
        if adapter is not None:
            adapter = jax.tree.map(lambda x: x.astype(jnp.float32), adapter)
            weight = weight.astype(jnp.float32) + delta(adapter, lora.scale)
        return weight.astype(jnp.dtype(dtype))

    return jax.tree.map(
        lambda adapter, weight: None if weight is None else add(adapter, weight),
        adapters,
        base,
        is_leaf=_is_adapter_or_none,
    )


def init_fully_trained(base: Any, trained: Any) -> Any:
    """Initializes the FULLY_TRAINED weights in `trained` with copies of the base's weights."""

    def init(trained, weight):
        if trained is None or isinstance(trained, Adapter) or weight is None:
            return trained
        return jnp.array(weight, trained.dtype, copy=True)  # the state's buffers are donated

    return jax.tree.map(init, trained, base, is_leaf=_is_adapter_or_none)


def _is_adapter_or_none(x: Any) -> bool:
    return x is None or isinstance(x, Adapter)


def delta(adapter: Adapter, scale: float) -> Any:
    """Returns scale A B, [L, *I, *O], which export adds to the weight. For NumPy or JAX arrays."""
    a, b = adapter.a, adapter.b
    layers, rank = b.shape[:2]
    ab = a.reshape(layers, -1, rank) @ b.reshape(layers, rank, -1)
    return (scale * ab).reshape(*a.shape[:-1], *b.shape[2:])


def adapted_linear(x_BTD: Array, weight: Array | Adapted, dtype=None) -> Array:
    """Like layers.linear, for a matrix with or without an adapter, which is cast to x's dtype."""
    if not isinstance(weight, Adapted):
        return linear(x_BTD, weight, dtype)
    a_DR, b_RE = weight.adapter.a, weight.adapter.b * weight.scale
    h_BTR = constrain(linear(x_BTD, a_DR), "batch", "length", "rank")
    # Name only the sum, so a remat policy does not save both terms.
    return checkpoint_name(
        matmul(x_BTD, weight.weight, dtype) + matmul(h_BTR, b_RE, dtype), MATMUL_OUT
    )
