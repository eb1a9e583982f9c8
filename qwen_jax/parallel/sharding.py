"""Sharding rules: one table from the logical axis names of the model to mesh axes.

Model code only names the axes of its arrays (`constrain(x_BTD, "batch", "length", "act_embed")`)
and does not depend on devices. Another layout is a `dataclasses.replace` of the table.
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qwen_jax.errors import ShardingError, unknown_name
from qwen_jax.types import Spec

MeshAxes = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class Rules:
    """Logical axis -> mesh axis or axes; None: the axis is replicated."""

    layers: MeshAxes = None
    vocab: MeshAxes = "tensor"
    embed: MeshAxes = "fsdp"  # the model dimension of every weight
    heads: MeshAxes = "tensor"
    kv_heads: MeshAxes = "tensor"
    head_dim: MeshAxes = None
    ffn: MeshAxes = "tensor"
    norm: MeshAxes = None  # D numbers per layer: not worth sharding
    rank: MeshAxes = None  # of an adapter (model/lora.py): small
    batch: MeshAxes = ("data", "fsdp")
    length: MeshAxes = "context"
    act_embed: MeshAxes = None  # the residual stream
    act_heads: MeshAxes = "tensor"
    act_kv_heads: MeshAxes = "tensor"
    act_ffn: MeshAxes = "tensor"
    act_vocab: MeshAxes = "tensor"

    def partition_spec(self, axes: tuple[str | None, ...]) -> PartitionSpec:
        """Returns the PartitionSpec of an array whose dimensions have these logical names."""
        known = {field.name for field in dataclasses.fields(self)}
        for name in axes:
            if name is not None and name not in known:
                raise unknown_name("logical axis", name, known, "parallel.sharding", ShardingError)
        return PartitionSpec(*(getattr(self, name) if name else None for name in axes))


DEFAULT_RULES = Rules()

_layout: contextvars.ContextVar[tuple[Mesh, Rules] | None] = contextvars.ContextVar(
    "layout", default=None
)


@contextlib.contextmanager
def use_layout(mesh: Mesh, rules: Rules = DEFAULT_RULES) -> Iterator[None]:
    """Makes `constrain` and `map_shards` use this mesh and these rules."""
    token = _layout.set((mesh, rules))
    try:
        yield
    finally:
        _layout.reset(token)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains the sharding of `x` by the logical names of its dimensions; no-op without a mesh.

    A dimension that its mesh axes do not divide (one head on two devices, at toy sizes) is
    replicated.
    """
    layout = _layout.get()
    if layout is None:
        return x
    mesh, rules = layout
    spec = _dividing(x.shape, axes, mesh, rules)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def map_shards(
    function: Callable, *arrays: jax.Array, axes: Sequence[tuple[str | None, ...]], out_axes: tuple
):
    """Calls function(*arrays) on the local shards of each device; a plain call without a mesh.

    For custom calls, which the compiler does not partition, and for sums that should cross devices
    only once. An axis named None is replicated, and so is one that its mesh axes do not divide in
    some array.

    Args:
      axes: the logical names of each array's dimensions.
      out_axes: the logical names of the result, or a tuple of them for a tuple of results.
    """
    layout = _layout.get()
    if layout is None:
        return function(*arrays)
    mesh, rules = layout
    replicated = {
        name
        for array, names in zip(arrays, axes, strict=True)
        for size, name, mesh_axes in zip(
            array.shape, names, rules.partition_spec(names), strict=True
        )
        if size % _axis_size(mesh, mesh_axes)
    }

    def spec(names):
        return rules.partition_spec(tuple(None if name in replicated else name for name in names))

    several = bool(out_axes) and isinstance(out_axes[0], tuple)
    out_specs = tuple(spec(names) for names in out_axes) if several else spec(out_axes)
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=tuple(spec(names) for names in axes),
        out_specs=out_specs,
        check_vma=False,
    )(*arrays)


def sharded_axes(size: int, axis: str) -> tuple[str, ...]:
    """Returns the mesh axes that map_shards shards a logical axis over; () if replicated."""
    layout = _layout.get()
    if layout is None or not shards_evenly(size, axis):
        return ()
    names = getattr(layout[1], axis) or ()
    names = (names,) if isinstance(names, str) else names
    return tuple(name for name in names if layout[0].shape[name] > 1)


def axis_size(name: str) -> int:
    """Returns the number of devices along a mesh axis; 1 without a mesh."""
    layout = _layout.get()
    return 1 if layout is None else layout[0].shape[name]


def shards_evenly(size: int, axis: str) -> bool:
    """Returns whether the mesh divides a logical axis of this size; True without a mesh."""
    layout = _layout.get()
    return layout is None or size % _axis_size(layout[0], getattr(layout[1], axis)) == 0


def _dividing(shape, axes, mesh: Mesh, rules: Rules) -> PartitionSpec:
    return PartitionSpec(
        *(
            names if size % _axis_size(mesh, names) == 0 else None
            for size, names in zip(shape, rules.partition_spec(axes), strict=True)
        )
    )


def _axis_size(mesh: Mesh, names: MeshAxes) -> int:
    if names is None:
        return 1
    return math.prod(mesh.shape[name] for name in ((names,) if isinstance(names, str) else names))


def sharding_for(specs, mesh: Mesh, rules: Rules = DEFAULT_RULES):
    """Returns a tree of NamedShardings for a tree of Specs.

    Raises:
      ShardingError: the mesh does not divide a dimension of a weight; lists all of them by name.
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(specs)
    problems, shardings = [], []
    for path, spec in flat:
        assert isinstance(spec, Spec), path
        pspec = rules.partition_spec(spec.axes)
        for size, axis, names in zip(spec.shape, spec.axes, pspec, strict=True):
            shards = _axis_size(mesh, names)
            if size % shards:
                name = jax.tree_util.keystr(path).lstrip(".")
                problems.append(f"{name}: {axis} of {size} over {names} of {shards}")
        shardings.append(NamedSharding(mesh, pspec))
    if problems:
        raise ShardingError(
            f"{len(problems)} weights do not divide over the mesh: " + "; ".join(problems) + ".",
            f"mesh {dict(mesh.shape)}",
            "choose mesh.fsdp and mesh.tensor that divide these sizes.",
        )
    return treedef.unflatten(shardings)


def batch_sharding(mesh: Mesh, rules: Rules = DEFAULT_RULES) -> NamedSharding:
    """Returns the sharding of every [B, T] leaf of a Batch."""
    return NamedSharding(mesh, rules.partition_spec(("batch", "length")))
