"""LoRA: a product of two thin matrices is learned beside a frozen weight (Hu et al. 2021).

Where a layer has x W, it has x W + alpha / rank (x A) B, and W gets no gradient and no moments. The
two are kept apart in training: in bfloat16 a small A B added to W is rounded away, and the gradient
of W, a third of the work, need not exist. An export adds them up (pretrained/merged.py).

L layers, I inputs and O outputs of a weight (one axis or two), R rank; B batch, T positions, D
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
from qwen_jax.types import Array, Params, Spec

FULLY_TRAINED = ("score",)  # weights that are small, and new in a scoring model: trained themselves
# The matrices of a layer, by the number of axes that their inputs have.
_INPUT_AXES = {"wq": 1, "wk": 1, "wv": 1, "wo": 2, "w_gate": 1, "w_up": 1, "w_down": 1}
TARGETS = tuple(_INPUT_AXES)


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Which weights get adapters, and how large."""

    rank: int | None = option(
        None, "of adapters beside frozen weights; none: the weights are trained"
    )
    alpha: float = option(16.0, "an adapter counts alpha / rank times")
    targets: tuple[str, ...] = option(TARGETS, "the weights of each layer that get one")

    def __post_init__(self):
        if self.rank is not None and self.rank < 1:
            raise ConfigError(
                f"rank={self.rank} is not positive.",
                "--lora.rank",
                "8 to 64 are usual; none trains the weights themselves.",
            )
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise ConfigError(
                f"alpha={self.alpha} is not positive.",
                "--lora.alpha",
                "once or twice the rank is usual.",
            )
        for name in self.targets:
            if name not in TARGETS:
                raise unknown_name("weight", name, TARGETS, "--lora.targets")
        if not self.targets:
            raise ConfigError(
                "no weight would get an adapter.",
                "--lora.targets",
                f"name some of {', '.join(TARGETS)}, or leave it out for all.",
            )

    @property
    def scale(self) -> float:
        assert self.rank is not None, "without a rank there are no adapters"
        return self.alpha / self.rank


class Adapter(PyTreeNode):
    """What is learned beside one weight, stacked as it is."""

    a: Array  # [L, *I, R]
    b: Array  # [L, R, *O]; zero at first, so that the model starts as its base


class Adapted(PyTreeNode):
    """A frozen weight and its adapter, where a layer has a weight."""

    weight: Array  # [*I, *O]; stacked [L, *I, *O]
    adapter: Adapter
    scale: float = field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    def reshape(self, *shape: int) -> "Adapted":
        """A layer's weight as a matrix [inputs, outputs], and its adapter to match."""
        a, b = self.adapter.a, self.adapter.b
        return self.replace(
            weight=self.weight.reshape(shape),
            adapter=Adapter(a=a.reshape(-1, a.shape[-1]), b=b.reshape(b.shape[0], -1)),
        )


def input_axes(target: str) -> int:
    """How many axes the inputs of a layer's weight have, its layers aside."""
    return _INPUT_AXES[target]


def lora_specs(
    config: ModelConfig, lora: LoRAConfig, whole: Callable[[ModelConfig], Any] = param_specs
) -> Any:
    """Specs of what is trained: an Adapter for each target, FULLY_TRAINED as it is, None elsewhere.

    Args:
      whole: config -> specs of the model: the language model's, or a scoring model's.

    Adapters are cut over a mesh as the weights are that they stand beside. A is drawn with variance
    1 / inputs, so that x A is of x's size.
    """

    rank = lora.rank
    assert rank is not None, "without a rank there are no adapters"

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

    return jax.tree_util.tree_map_with_path(adapter, whole(config))


def with_adapters(base: Any, trained: Any, lora: LoRAConfig) -> Any:
    """The whole model for model.transformer.hidden_states or model.heads.scores: Adapted weights
    where there are adapters.

    Args:
      base, trained: of a language or a scoring model, `trained` as lora_specs has it. What is
        trained in full may be None in the base.
    """

    def join(trained, weight):
        if trained is None:
            return weight
        return Adapted(weight, trained, lora.scale) if isinstance(trained, Adapter) else trained

    return jax.tree.map(join, trained, base, is_leaf=_is_place)


def merge_adapters(base: Params, adapters: Params, lora: LoRAConfig, *, dtype: str) -> Params:
    """W + scale A B as one weight, summed in float32 and held in `dtype`: what decodes fastest."""

    def add(adapter, weight):
        if adapter is not None:
            adapter = jax.tree.map(lambda x: x.astype(jnp.float32), adapter)
            weight = weight.astype(jnp.float32) + delta(adapter, lora.scale)
        return weight.astype(jnp.dtype(dtype))

    return jax.tree.map(
        lambda adapter, weight: None if weight is None else add(adapter, weight),
        adapters,
        base,
        is_leaf=_is_place,
    )


def init_fully_trained(base: Any, trained: Any) -> Any:
    """`trained` with a copy of the base's weights where weights are trained themselves."""

    def begin(trained, weight):
        if trained is None or isinstance(trained, Adapter) or weight is None:
            return trained
        return jnp.array(weight, trained.dtype, copy=True)  # the state's buffers are donated

    return jax.tree.map(begin, trained, base, is_leaf=_is_place)


def _is_place(x: Any) -> bool:
    return x is None or isinstance(x, Adapter)


def delta(adapter: Adapter, scale: float) -> Any:
    """scale A B, which an export adds to the weight: [L, *I, *O] of numpy or jax arrays."""
    a, b = adapter.a, adapter.b
    layers, rank = b.shape[:2]
    product = a.reshape(layers, -1, rank) @ b.reshape(layers, rank, -1)
    return (scale * product).reshape(*a.shape[:-1], *b.shape[2:])


def adapted_linear(x_BTD: Array, weight: Array | Adapted, dtype=None) -> Array:
    """layers.linear for a matrix with or without an adapter, which is cast to x's dtype as well."""
    if not isinstance(weight, Adapted):
        return linear(x_BTD, weight, dtype)
    a_DR, b_RE = weight.adapter.a, weight.adapter.b * weight.scale
    h_BTR = constrain(linear(x_BTD, a_DR), "batch", "length", "rank")
    # A remat policy keeps the sum, not both of its parts.
    return checkpoint_name(
        matmul(x_BTD, weight.weight, dtype) + matmul(h_BTR, b_RE, dtype), MATMUL_OUT
    )
