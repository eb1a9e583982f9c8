"""The embedding's gradient in the compiled step: summed once over the devices, nothing lost.

XLA's while-loop-all-reduce-code-motion moves a sum over devices out of the loop over micro-batches.
Up to libtpu 0.0.48.1 it also did so where one device alone keeps the sum of earlier micro-batches
and the others start each micro-batch at zero, so their gradients were lost (openxla/xla#49143).
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from qwen_jax.config import MeshConfig
from qwen_jax.model.embedding import embed
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.parallel.sharding import DEFAULT_RULES, use_layout
from qwen_jax.plan import topologies
from qwen_jax.plan.program import compile_in_subprocess
from tests.helpers.accumulation import Trace, trace
from tests.helpers.tpu_programs import libtpu, tiny_workload

RIGHT = Trace(lost=set(), sums={1})


def first_group(data: int, fsdp: int, tensor: int, context: int) -> list[int]:
    """The first devices that hold different tokens for the same part of the table."""
    mesh = np.arange(data * fsdp * tensor * context).reshape(data, fsdp, tensor, context)
    return sorted(mesh[:, 0, 0, :].ravel().tolist())


# Two micro-batches on four devices, as XLA partitions a scatter that adds to the sum of earlier
# micro-batches. The sum over devices is in the loop, where it belongs: device 0 keeps the sum.
IN_THE_LOOP = """HloModule accumulate, num_partitions=4

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %a_plus_b = f32[] add(%a, %b)
}

%body (state: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %state = (s32[], f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %total = f32[8,4]{1,0} get-tuple-element(%state), index=1
  %device = u32[] partition-id()
  %not_first = pred[] convert(%device)
  %mask = pred[8,4]{1,0} broadcast(%not_first), dimensions={}
  %zero = f32[] constant(0)
  %zeros = f32[8,4]{1,0} broadcast(%zero), dimensions={}
  %start = f32[8,4]{1,0} select(%mask, %zeros, %total)
  %ids = s32[2,1]{1,0} constant({ {3}, {5} })
  %ones = f32[] constant(1)
  %updates = f32[2,4]{1,0} broadcast(%ones), dimensions={}
  %scatter = f32[8,4]{1,0} scatter(%start, %ids, %updates), update_window_dims={1}, inserted_window_dims={0}, scatter_dims_to_operand_dims={0}, index_vector_dim=1, to_apply=%sum, metadata={op_name="scatter-add"}
  %reduced = f32[8,4]{1,0} all-reduce(%scatter), replica_groups={{0,1,2,3}}, to_apply=%sum
  ROOT %after = (s32[], f32[8,4]{1,0}) tuple(%next, %reduced)
}

%condition (state: (s32[], f32[8,4])) -> pred[] {
  %state.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %number = s32[] constant(2)
  ROOT %less = pred[] compare(%i.1, %number), direction=LT
}

ENTRY %main (p: f32[8,4]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0)
  %first = s32[] constant(0)
  %init = (s32[], f32[8,4]{1,0}) tuple(%first, %p)
  %loop = (s32[], f32[8,4]{1,0}) while(%init), condition=%condition, body=%body
  ROOT %gradient = f32[8,4]{1,0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501  (compiler output)
# The same after the pass of libtpu 0.0.48: the sum over devices is after the loop.
MOVED = (
    re.sub(r" +%reduced = .*\n", "", IN_THE_LOOP)
    .replace("tuple(%next, %reduced)", "tuple(%next, %scatter)")
    .replace(
        "ROOT %gradient = f32[8,4]{1,0} get-tuple-element(%loop), index=1",
        "%local = f32[8,4]{1,0} get-tuple-element(%loop), index=1\n"
        "  ROOT %gradient = f32[8,4]{1,0} all-reduce(%local), replica_groups={{0,1,2,3}}, "
        "to_apply=%sum",
    )
)
KEPT = MOVED.replace("select(%mask, %zeros, %total)", "copy(%total)")  # every device keeps its sum


@pytest.mark.parametrize(
    "text, found",
    [
        (IN_THE_LOOP, Trace(set(), {1, 2})),  # the sum itself is summed again in the next iteration
        (MOVED, Trace({("loop", 1)}, {1})),
        (KEPT, RIGHT),
        (KEPT.replace("{{0,1,2,3}}", "{{0,1},{2,3}}"), Trace(set(), {0})),
        (re.sub(r"all-reduce\(%local.*", "copy(%local)", KEPT), Trace(set(), {0})),
        (
            KEPT.replace("tuple(%next, %scatter)", "tuple(%next, %twice)").replace(
                "  ROOT %after",
                "  %twice = f32[8,4]{1,0} all-reduce(%scatter), replica_groups={{0,1,2,3}}, "
                "to_apply=%sum\n  ROOT %after",
            ),
            Trace(set(), {2}),
        ),
    ],
    ids=["in the loop", "moved", "kept", "other groups", "never summed", "summed twice"],
)
def test_trace_finds_planted_errors(text, found):
    assert trace(text, source="scatter-add", group=[0, 1, 2, 3], devices=4) == found


@pytest.mark.parametrize("shape", [(2, 1, 1, 4), (2, 2, 2, 1)])
def test_embed_sums_each_gradient_once_over_the_devices(shape):
    mesh = make_mesh(MeshConfig(*shape))

    def accumulate(table, tokens):
        def add(total, tokens):
            def loss(table):
                return jnp.sum(embed(tokens, table, dtype=jnp.float32) ** 2)

            return total + jax.grad(loss)(table), None

        return jax.lax.scan(add, jnp.zeros_like(table), tokens)[0]

    def abstract(shape, dtype, *axes):
        sharding = NamedSharding(mesh, DEFAULT_RULES.partition_spec(axes))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    with use_layout(mesh):
        table = abstract((64, 16), jnp.float32, "vocab", "embed")
        tokens = abstract((2, 8, 12), jnp.int32, None, "batch", "length")
        compiled = jax.jit(accumulate, out_shardings=table.sharding).lower(table, tokens).compile()
    found = trace(compiled.as_text() or "", source="scatter", group=first_group(*shape), devices=8)
    assert found == RIGHT


@libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
    "topology, shape, tied",
    [
        ("v5e:2x2", (4, 1, 1, 1), False),
        ("v5e:2x2", (4, 1, 1, 1), True),
        ("v5p:2x2x1", (2, 1, 2, 1), False),
        ("v6e:2x2", (2, 2, 1, 1), True),
        ("v6e:2x2", (2, 1, 1, 2), False),
    ],
)
def test_compiled_step_loses_no_gradient_of_the_embedding(tmp_path, topology, shape, tied):
    mesh = dict(zip(("data", "fsdp", "tensor", "context"), shape, strict=True))
    workload = tiny_workload("pretrain", micro_batches=2, tied=tied, **mesh)
    text = tmp_path / "step.txt"
    result = compile_in_subprocess(workload, topologies.by_name(topology), keep=text)
    assert result.error is None
    found = trace(
        text.read_text(encoding="utf-8"),
        source="scatter-add",
        group=first_group(*shape),
        devices=4,
    )
    assert found == RIGHT
