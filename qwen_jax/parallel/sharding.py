"""Sharding rules: one table that maps the model's logical axis names to mesh axes.

Model code only names the axes of its arrays (`constrain(x_BTD, "batch", "length", "act_embed")`)
and does not depend on devices. To change the layout, use `dataclasses.replace` on the table.
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qwen_jax.errors import ShardingError, unknown_name
from qwen_jax.types import Spec

MeshAxes = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class Rules:
    """Maps each logical axis to a mesh axis or axes; None: the axis is replicated."""

    layers: MeshAxes = None
    vocab: MeshAxes = "tensor"
    embed: MeshAxes = "fsdp"  # the model dimension of every weight
    heads: MeshAxes = "tensor"
    kv_heads: MeshAxes = "tensor"
    head_dim: MeshAxes = None
    ffn: MeshAxes = "tensor"
    norm: MeshAxes = None  # D numbers per layer, too few to shard
    rank: MeshAxes = None  # rank of an adapter (model/lora.py), too small to shard
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
    """Makes `constrain` and `map_shards` use this mesh and these rules inside the block."""
    token = _layout.set((mesh, rules))
    try:
        yield
    finally:
        _layout.reset(token)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains the sharding of `x`, given the logical names of its dimensions.

    A dimension that its mesh axes do not divide (one head on two devices, at toy sizes) is
    replicated. Without a mesh, this is a no-op.
    """
    layout = _layout.get()
    if layout is None:
        return x
    mesh, rules = layout
    spec = _dividing(x.shape, axes, mesh, rules)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def replicated(tree: Any) -> Any:
    """Constrains all arrays to be complete on every device, for a host that reads them.

    With several processes, a host cannot read what other processes hold.
    """
    return jax.tree.map(lambda x: constrain(x, *[None] * x.ndim), tree)


def map_shards(
    function: Callable, *arrays: jax.Array, axes: Sequence[tuple[str | None, ...]], out_axes: tuple
):
    """Calls function(*arrays) on the local shards of each device, or directly without a mesh.

    It is for custom calls, which the compiler does not partition, and for sums that should be
    reduced across devices only once. An axis named None is replicated. An axis that its mesh axes
    do not divide in any one of the arrays is replicated in all of them.

    Args:
      axes: logical names of each array's dimensions.
      out_axes: logical names of the result's dimensions; for a tuple of results, a tuple of them.
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
    """Returns the mesh axes over which map_shards shards a logical axis; () if it is replicated."""
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
      ShardingError: the mesh does not divide a dimension of a weight; lists all such weights.
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
                problems.append(f"{name}: {axis} of size {size} over {names} of size {shards}")
        shardings.append(NamedSharding(mesh, pspec))
    if problems:
        raise ShardingError(
            "these weights cannot be divided evenly over the mesh: " + "; ".join(problems) + ".",
            f"mesh {dict(mesh.shape)}",
            "choose mesh.fsdp and mesh.tensor so that they divide these sizes.",
        )
    return treedef.unflatten(shardings)


def batch_sharding(mesh: Mesh, rules: Rules = DEFAULT_RULES) -> NamedSharding:
    """Returns the sharding of every [B, T] leaf of a Batch."""
    return NamedSharding(mesh, rules.partition_spec(("batch", "length")))
