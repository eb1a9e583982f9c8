"""Parsing of compiled programs: loops, collectives, traffic; and links of a torus."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from qwen_jax.config import MeshConfig
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.plan import costs, hlo, matmuls, topologies
from qwen_jax.plan.network import Network, first_group, source_target_pairs

MESH = make_mesh(MeshConfig(fsdp=4, tensor=2))
P = PartitionSpec
V5P_8 = topologies.by_name("v5p:2x2x2")
COORDS = tuple(itertools.product(range(2), range(2), range(2)))


def compiled(function, *shapes, specs=None) -> str:
    specs = specs or [P()] * len(shapes)
    arrays = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(MESH, spec))
        for shape, spec in zip(shapes, specs, strict=True)
    ]
    return jax.jit(function).lower(*arrays).compile().as_text()


def read(text: str) -> costs.Costs:
    return costs.read(text, V5P_8.chip, Network(V5P_8, COORDS))


def test_trips_of_nested_loops_multiply():
    def step(x, _):
        return jax.lax.scan(lambda y, _: (jnp.tanh(y @ y), None), x, None, length=5)[0], None

    text = compiled(lambda x: jax.lax.scan(step, x, None, length=7)[0], (64, 64))
    program, seen = hlo.parse(text), []
    for body in program.computations.values():
        seen += [program.trips(i) for i in body.values() if i.opcode == "while"]
    assert sorted(seen) == [5, 7]
    once = read(compiled(lambda x: jnp.tanh(x @ x), (64, 64))).hbm_bytes
    assert read(text).hbm_bytes == pytest.approx(35 * once, rel=0.2)  # plus copies and counters
    assert not read(text).unknown


# A loop from the TPU compiler: no trip count, the bound in the condition, unrolled by two.
TPU_LOOP = """HloModule loop, is_scheduled=true

%body (p: (f32[8,128], u32[])) -> (f32[8,128], u32[]) {
  %p = (f32[8,128]{1,0:T(8,128)}, u32[]{:T(128)}) parameter(0)
  %two = u32[]{:T(128)} constant(2)
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%p), index=0
  %i = u32[]{:T(128)} get-tuple-element(%p), index=1
  %next = u32[]{:T(128)} add(%i, %two)
  %start = (f32[8,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %y = f32[8,128]{1,0:T(8,128)} fusion(%x), kind=kOutput, calls=%inside, metadata={op_name="model/matmul"}, backend_config={"window_config":{"estimated_cycles":"1750"}}
  %done = f32[8,128]{1,0:T(8,128)} collective-permute-done(%start)
  ROOT %t = (f32[8,128]{1,0:T(8,128)}, u32[]{:T(128)}) tuple(%done, %next)
}

%inside (a: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0} parameter(0)
  ROOT %c = f32[8,128]{1,0} convolution(%a, %a), dim_labels=bf_io->bf
}

%condition (p.1: (f32[8,128], u32[])) -> pred[] {
  %p.1 = (f32[8,128]{1,0:T(8,128)}, u32[]{:T(128)}) parameter(0)
  %bound = u32[]{:T(128)} constant(16)
  %i.1 = u32[]{:T(128)} get-tuple-element(%p.1), index=1
  ROOT %less = pred[]{:T(512)} compare(%i.1, %bound), direction=LT
}

ENTRY %main (x.1: f32[8,128]) -> f32[8,128] {
  %x.1 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %zero = u32[]{:T(128)} constant(0)
  %begin = (f32[8,128]{1,0:T(8,128)}, u32[]{:T(128)}) tuple(%x.1, %zero)
  %while.1 = (f32[8,128]{1,0:T(8,128)}, u32[]{:T(128)}) while(%begin), condition=%condition, body=%body
  %wait = f32[8,128]{1,0:T(8,128)} all-reduce(%x.1), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%inside
  ROOT %out = f32[8,128]{1,0:T(8,128)} get-tuple-element(%while.1), index=0
}
"""  # noqa: E501  (compiler output)


def test_trips_of_a_loop_with_its_bound_only_in_the_condition():
    found = read(TPU_LOOP)
    assert found.work["matmuls"] == pytest.approx(8 * 1e-6)  # 1,750 cycles at 1.75 GHz, 8 times
    (permute,) = (one for one in found.collectives if one.kind == "collective-permute")
    assert (permute.times, permute.size, permute.hidden) == (8, 4096, True)
    blocking = sum(one.seconds for one in found.collectives if not one.hidden)
    # The permutation, 4,096 bytes at 90 GB/s, overlaps with the matmul; the sum does not.
    assert found.seconds == pytest.approx(8 * 1e-6 + blocking, rel=0.01)  # plus a counter
    slower = TPU_LOOP.replace("f32[8,128]", "f32[80000,128]")
    permute = next(one for one in read(slower).collectives if one.hidden)
    rest = sum(one.seconds for one in read(slower).collectives if not one.hidden)
    assert permute.seconds > 8 * 1e-6
    assert read(slower).seconds == pytest.approx(permute.seconds + rest)


# A sum on the sparse cores, from the TPU compiler.
SPARSE_CORES = """HloModule sum, is_scheduled=true

%on_sparse_core (q: f32[1024,128]) -> f32[1024,128] {
  %q = f32[1024,128]{1,0:T(8,128)} parameter(0)
  ROOT %sum = f32[1024,128]{1,0:T(8,128)} all-reduce(%q), replica_groups={{0,1},{2,3}}
}, execution_thread="sparsecore"

ENTRY %main (x: f32[1024,128]) -> f32[1024,128] {
  %x = f32[1024,128]{1,0:T(8,128)} parameter(0)
  %begin = ((), (), (s32[8192]{0:T(1024)}, s32[0]{0:S(2)})) custom-call-start(), custom_call_target="x", called_computations={%on_sparse_core}
  ROOT %end = f32[1024,128]{1,0:T(8,128)} custom-call-done(%begin)
}
"""  # noqa: E501  (compiler output)


def test_collective_on_sparse_cores_is_hidden():
    (one,) = read(SPARSE_CORES).collectives
    assert (one.kind, one.group, one.size, one.hidden) == ("all-reduce", 2, 2**19, True)


# A gather that two matmuls advance in the background, from the v5e compiler: it is started, passed
# through both matmuls (operands aliased to results), and awaited.
ADVANCED = """HloModule advanced, is_scheduled=true

%begin (p.0: f32[8,32]) -> (f32[8,32], f32[8,128]) {
  %p.0 = f32[8,32]{1,0:T(8,128)} parameter(0)
  %g.0 = f32[8,128]{1,0:T(8,128)} all-gather(%p.0), channel_id=5, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={1}, frontend_attributes={chain_id="0"}
  ROOT %t.0 = (f32[8,32]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}) tuple(%p.0, %g.0)
}

%async_collective_fusion.1 (p.1: f32[8,32], q.1: f32[8,128], x.1: f32[8,128], w.1: f32[128,128]) -> (f32[8,128], f32[8,32], f32[8,128]) {
  %x.1 = f32[8,128]{1,0:T(8,128)} parameter(2)
  %w.1 = f32[128,128]{1,0:T(8,128)} parameter(3)
  %c.1 = f32[8,128]{1,0:T(8,128)} convolution(%x.1, %w.1), dim_labels=bf_io->bf
  %p.1 = f32[8,32]{1,0:T(8,128)} parameter(0)
  %q.1 = f32[8,128]{1,0:T(8,128)} parameter(1)
  %g.1 = f32[8,128]{1,0:T(8,128)} all-gather(%p.1), channel_id=5, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={1}, frontend_attributes={chain_id="0"}
  ROOT %t.1 = (f32[8,128]{1,0:T(8,128)}, f32[8,32]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}) tuple(%c.1, %p.1, %g.1)
}

%end (p.2: f32[8,32], q.2: f32[8,128]) -> f32[8,128] {
  %p.2 = f32[8,32]{1,0:T(8,128)} parameter(0)
  %q.2 = f32[8,128]{1,0:T(8,128)} parameter(1)
  ROOT %g.2 = f32[8,128]{1,0:T(8,128)} all-gather(%p.2), channel_id=5, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={1}, frontend_attributes={chain_id="0"}
}

ENTRY %main (shard: f32[8,32], x: f32[8,128], w: f32[128,128]) -> f32[8,128] {
  %shard = f32[8,32]{1,0:T(8,128)} parameter(0)
  %x = f32[8,128]{1,0:T(8,128)} parameter(1)
  %w = f32[128,128]{1,0:T(8,128)} parameter(2)
  %async-collective-start = (f32[8,32]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}) fusion(%shard), kind=kCustom, calls=%begin
  %a.0 = f32[8,32]{1,0:T(8,128)} get-tuple-element(%async-collective-start), index=0
  %a.1 = f32[8,128]{1,0:T(8,128)} get-tuple-element(%async-collective-start), index=1
  %fusion.1 = (f32[8,128]{1,0:T(8,128)}, f32[8,32]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}) fusion(%a.0, %a.1, %x, %w), kind=kOutput, output_to_operand_aliasing={{1}: (0, {}), {2}: (1, {})}, calls=%async_collective_fusion.1, backend_config={"window_config":{"estimated_cycles":"1750"}}
  %b.0 = f32[8,32]{1,0:T(8,128)} get-tuple-element(%fusion.1), index=1
  %b.1 = f32[8,128]{1,0:T(8,128)} get-tuple-element(%fusion.1), index=2
  %y = f32[8,128]{1,0:T(8,128)} get-tuple-element(%fusion.1), index=0
  %fusion.2 = (f32[8,128]{1,0:T(8,128)}, f32[8,32]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}) fusion(%b.0, %b.1, %y, %w), kind=kOutput, output_to_operand_aliasing={{1}: (0, {}), {2}: (1, {})}, calls=%async_collective_fusion.1, backend_config={"window_config":{"estimated_cycles":"1750"}}
  %c.0 = f32[8,32]{1,0:T(8,128)} get-tuple-element(%fusion.2), index=1
  %c.1 = f32[8,128]{1,0:T(8,128)} get-tuple-element(%fusion.2), index=2
  ROOT %async-collective-done = f32[8,128]{1,0:T(8,128)} fusion(%c.0, %c.1), kind=kCustom, calls=%end
}
"""  # noqa: E501  (compiler output)


def test_collective_that_matmuls_advance_counts_once_as_does_each_matmul():
    found = read(ADVANCED)
    (one,) = found.collectives
    assert (one.kind, one.group, one.size, one.times, one.hidden) == (
        "all-gather",
        4,
        8 * 128 * 4,
        1,
        True,
    )
    assert found.flops == 2 * 2 * 8 * 128 * 128
    assert found.seconds == found.compute == pytest.approx(2 * 1e-6)  # of 1,750 cycles each
    assert found.hbm_bytes == 2 * 4 * (128 * 128 + 2 * 8 * 128)  # without the buffers of the gather


def test_collective_fused_with_a_matmul_but_not_started_counts_as_both():
    text = (
        ADVANCED.replace("async_collective_fusion", "together")
        .replace("%async-collective-start", "%begun")
        .replace("%async-collective-done", "%ended")
    )
    found = read(text)
    assert found.flops == 2 * 2 * 8 * 128 * 128 and len(found.collectives) == 4
    assert not any(one.hidden for one in found.collectives)


@pytest.mark.parametrize(
    "kind, function, spec, sent",
    [
        # [1024, 64] float32 is 256 KiB in full; each of 4 devices has 64 KiB of it.
        (
            "all-gather",
            lambda x: jax.lax.all_gather(x, "fsdp", tiled=True),
            P("fsdp"),
            3 / 4 * 2**18,
        ),
        ("all-reduce", lambda x: jax.lax.psum(x, "fsdp"), P("fsdp"), 2 * 3 / 4 * 2**16),
        (
            "reduce-scatter",
            lambda x: jax.lax.psum_scatter(x, "fsdp", tiled=True),
            P(),
            3 / 4 * 2**18,
        ),
        (
            "collective-permute",
            lambda x: jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 4) for i in range(4)]),
            P("fsdp"),
            2**16,
        ),
    ],
)
def test_collective_bytes_in_a_loop(kind, function, spec, sent):
    def run(x):
        def body(x, _):  # each depends on the previous one: none is hoisted out of the loop
            return jnp.sin(x + jnp.max(jnp.sin(function(x)))), None

        return jnp.sum(jax.lax.scan(body, x, None, length=3)[0])[None]

    mapped = jax.shard_map(run, mesh=MESH, in_specs=spec, out_specs=P("fsdp"), check_vma=False)
    found = [
        one
        for one in read(compiled(mapped, (1024, 64), specs=[spec])).collectives
        if one.kind == kind and one.size > 64
    ]
    assert len(found) == 1 and found[0].times == 3
    assert found[0].group == (8 if kind == "collective-permute" else 4)  # pairs of all devices
    assert found[0].sent == pytest.approx(3 * sent)


@pytest.mark.parametrize(
    "attributes, group",
    [
        ("replica_groups={{0,2},{1,3}}, x", [0, 2]),
        ("replica_groups=[4,2]<=[8], x", [0, 1]),
        ("replica_groups=[2,4]<=[4,2]T(1,0), x", [0, 2, 4, 6]),
        ("replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}, x", [0, 1, 2, 3]),
        ("replica_groups=mesh['data'=2,'fsdp'=4] {'data'}, x", [0, 4]),
        ("replica_groups=mesh['a'=8] {'a':(2)4}, x", [0, 1, 2, 3]),
        ("replica_groups={}, x", list(range(8))),
    ],
)
def test_first_group_parses_every_format(attributes, group):
    assert first_group(attributes, 8) == group


def test_network_bandwidth_and_seconds_on_a_torus():
    pod = topologies.by_name("v5p:4x4x4")  # wraps around in every dimension
    coords = tuple(itertools.product(range(4), range(4), range(4)))
    network, link = Network(pod, coords), pod.chip.link_bandwidth
    line, plane = list(range(4)), list(range(16))
    assert network.bandwidth(line) == 2 * link and network.bandwidth(plane) == 4 * link
    assert network.seconds("all-gather", 4000, line) == pytest.approx(3000 / (2 * link))
    assert network.seconds("all-reduce", 4000, line) == pytest.approx(6000 / (2 * link))
    assert network.seconds("all-gather", 4000, [3]) == 0
    ring = [(i, (i + 1) % 4) for i in range(4)]
    assert network.permute_seconds(1000, ring) == pytest.approx(1000 / link)
    across = [(0, 2), (1, 3)]  # both use the link from 1 to 2
    assert network.permute_seconds(1000, across) == pytest.approx(2000 / link)
    part = topologies.by_name("v5p:2x4x4")  # not a full cube of 4: no dimension wraps around
    lines = Network(part, tuple(itertools.product(range(2), range(4), range(4))))
    assert lines.bandwidth(range(32)) == 3 * link
    small = topologies.by_name("v5e:2x2")  # does not wrap around
    network = Network(small, tuple(itertools.product(range(2), range(2))))
    assert network.bandwidth([0, 1]) == small.chip.link_bandwidth
    assert network.seconds("all-to-all", 1000, [0, 1]) == pytest.approx(
        500 / small.chip.link_bandwidth
    )


def test_source_target_pairs_parses_all_pairs():
    assert source_target_pairs("source_target_pairs={{0,3},{1,0}}, x") == [(0, 3), (1, 0)]


def test_traffic_of_a_slice_counts_only_the_slice():
    def one_layer(x, i):
        return jnp.sin(jax.lax.dynamic_index_in_dim(x, i, keepdims=False))

    text = (
        jax.jit(one_layer)
        .lower(
            jax.ShapeDtypeStruct((100, 256, 256), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
        )
        .compile()
        .as_text()
    )
    assert read(text).hbm_bytes < 4 * 2**18


NESTED = """HloModule nested, is_scheduled=true

%slice (p: f32[100,8,128], i: s32[]) -> f32[8,128] {
  %p = f32[100,8,128]{2,1,0:T(8,128)} parameter(0)
  %i = s32[]{:T(128)} parameter(1)
  %z = s32[]{:T(128)} constant(0)
  %one = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%p, %i, %z, %z), dynamic_slice_sizes={1,8,128}
  ROOT %r = f32[8,128]{1,0:T(8,128)} bitcast(%one)
}

%matmul (q: f32[100,8,128], w: f32[128,128], j: s32[]) -> f32[8,128] {
  %q = f32[100,8,128]{2,1,0:T(8,128)} parameter(0)
  %w = f32[128,128]{1,0:T(8,128)} parameter(1)
  %j = s32[]{:T(128)} parameter(2)
  %x = f32[8,128]{1,0:T(8,128)} fusion(%q, %j), kind=kLoop, calls=%slice
  ROOT %c = f32[8,128]{1,0:T(8,128)} convolution(%x, %w), dim_labels=bf_io->bf
}

ENTRY %main (stack: f32[100,8,128], weight: f32[128,128], n: s32[]) -> f32[8,128] {
  %stack = f32[100,8,128]{2,1,0:T(8,128)} parameter(0)
  %weight = f32[128,128]{1,0:T(8,128)} parameter(1)
  %n = s32[]{:T(128)S(6)} parameter(2)
  ROOT %out = f32[8,128]{1,0:T(8,128)} fusion(%stack, %weight, %n), kind=kOutput, calls=%matmul
}
"""


def test_traffic_of_a_slice_within_a_matmul_counts_only_the_slice():
    assert read(NESTED).hbm_bytes == 4 * (8 * 128 + 128 * 128 + 8 * 128)


def test_in_hbm_excludes_vmem():
    assert costs._in_hbm("f32[8,128]{1,0:T(8,128)S(1)}") == 0
    assert costs._in_hbm("(f32[8,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)S(1)})") == 4096


def test_parse_finds_the_entry_and_every_operand():
    text = compiled(lambda x, y: jnp.concatenate([x @ y, y]), (64, 64), (64, 64))
    program = hlo.parse(text)
    assert re.search(rf"ENTRY %?{re.escape(program.entry)} ", text)
    names = {i.name for body in program.computations.values() for i in body.values()}
    for body in program.computations.values():
        for instruction in body.values():
            if instruction.opcode not in ("parameter", "constant"):
                assert set(instruction.operands) <= names, instruction
    assert (
        functools.reduce(
            np.add,
            [
                i.bytes
                for i in program.computations[program.entry].values()
                if i.opcode == "parameter"
            ],
        )
        == 2 * 64 * 64 * 4
    )


def test_read_counts_flops_of_matmuls_in_loops():
    def layer(x, _):
        return jnp.tanh(x @ x.T) @ x, None

    text = compiled(lambda x: jax.lax.scan(layer, x, None, length=5)[0], (48, 32))
    assert read(text).flops == 5 * (2 * 48 * 48 * 32 + 2 * 48 * 32 * 48)


@pytest.mark.parametrize(
    "line, shapes, out, multiplications",
    [
        # 8 x 2,048 tokens, contracted axis of 2 x 128, 32 heads of 128: an axis of the weight is a
        # window over padding.
        (
            "window={size=1x32x2 pad=0_0x31_31x0_0 rhs_reversal=0x1x0}, "
            "dim_labels=0b2f1_1o2i0->0b1f2",
            ((8, 2048, 2, 128, 1), (32, 128, 2, 128, 1)),
            (8, 2048, 32, 128, 1),
            8 * 2048 * 256 * 32 * 128,
        ),
        (
            "window={size=1}, dim_labels=0bf_io0->0bf",
            ((8, 64, 32), (32, 16, 1)),
            (8, 64, 16),
            8 * 64 * 32 * 16,
        ),
        # A weight gradient: 13 x 128 tokens are contracted.
        (
            "window={size=13}, dim_labels=0fb_0io->bf0",
            ((13, 128, 64), (13, 128, 256)),
            (64, 256, 1),
            13 * 128 * 64 * 256,
        ),
    ],
)
def test_flops_of_tpu_convolutions(line, shapes, out, multiplications):
    assert matmuls.flops(line, shapes, out) == 2 * multiplications
