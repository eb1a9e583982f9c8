"""Ring attention equals attention: forward, gradients and the train step, on 1 to 8 devices."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from qwen_jax import sizes
from qwen_jax.config import MeshConfig
from qwen_jax.kernels import reference, tiles, xla
from qwen_jax.kernels.platform import interpret_kernels
from qwen_jax.kernels.tpu import backend as tpu
from qwen_jax.kernels.validation import Case, masks
from qwen_jax.model.attention import partitioned_attention
from qwen_jax.model.spec import param_specs
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.parallel.ring import Ring, from_ring, ring_of, to_ring
from qwen_jax.parallel.sharding import batch_sharding, sharding_for, use_layout
from qwen_jax.train.language_model import make_objective
from qwen_jax.train.state import abstract_state, make_state
from qwen_jax.train.step import make_train_step
from qwen_jax.types import Batch
from tests.helpers.kernel_validation import with_gradients

SMALL = {
    "tpu_forward": {"query": 128, "key": 128, "compute": 128},
    "tpu_backward": {"query": 128, "key": 128, "compute": 128, "chunk": 256},
}


def mesh_of(context: int, **others):
    number = context * math.prod(others.values())
    return make_mesh(
        MeshConfig(**{"fsdp": 1} | others, context=context), devices=jax.devices()[:number]
    )


def ring_gradients(
    case: Case, mesh, implementation: str, *, balanced: bool, gradients: bool = True
):
    """Returns out, dq, dk, dv of partitioned_attention on a mesh, in sequence order."""
    arrays, options = case.arrays(), case.options()
    with use_layout(mesh):
        ring = ring_of(case.T, balanced=balanced)
        assert ring is not None and ring.balanced == balanced
        order = ring.order()

        def attend(q, k, v):
            out = partitioned_attention(
                *(x[:, order] for x in (q, k, v)),
                segment_ids=options.get("segment_ids"),
                window=options.get("window"),
                implementation=implementation,
                ring=ring,
            )
            return out[:, np.argsort(order)]

        return with_gradients(attend, *arrays) if gradients else (jax.jit(attend)(*arrays[:3]),)


def reference_gradients(case: Case):
    options = {
        "segment_ids": np.ones((case.B, case.T), np.int32),
        "window": np.int32(case.T),
    } | case.options()
    return _reference_gradients(*case.arrays(), options)


@jax.jit
def _reference_gradients(q, k, v, dout, options):
    """Masks are arguments, so cases of one shape share a program."""
    attend = functools.partial(
        reference.attention, positions=None, scale=q.shape[-1] ** -0.5, **options
    )
    out, pull = jax.vjp(attend, q, k, v)
    return (out, *pull(dout))


def assert_close(got, expected):
    for name, a, b in zip(("out", "dq", "dk", "dv")[: len(expected)], got, expected, strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max() + 2e-6, err_msg=name)


MASKS = masks(64)
QUICK = {  # with two devices: test_ring_attention_with_fsdp_and_tensor_axes
    (4, False, "packed, window, padding"),
    (4, True, "causal"),
    (8, True, "packed, window, padding"),
}


@pytest.mark.parametrize(
    "context, balanced, mask_name",
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for case in itertools.product((2, 4, 8), (True, False), MASKS)
    ],
)
def test_ring_attention_equals_the_reference(context, balanced, mask_name):
    case = Case(T=64, B=2, N=4, K=2, H=16, dtype="float32", **MASKS[mask_name])
    assert_close(
        ring_gradients(case, mesh_of(context), "xla", balanced=balanced), reference_gradients(case)
    )


def test_ring_attention_with_fsdp_and_tensor_axes():
    case = Case(T=64, B=2, N=4, K=2, H=16, dtype="float32", documents=(19, 24, 16))
    assert_close(
        ring_gradients(case, mesh_of(2, fsdp=2, tensor=2), "xla", balanced=True),
        reference_gradients(case),
    )


@pytest.mark.parametrize(
    "context, changes",
    [
        (2, {"documents": (150, 200, 100)}),
        pytest.param(4, {"window": 130}, marks=pytest.mark.slow),
        pytest.param(2, {"N": 1, "K": 1}, marks=pytest.mark.slow),
    ],
)
def test_ring_attention_with_tpu_kernels(context, changes):
    case = Case(**{"T": 512, "B": 1, "N": 2, "K": 1, "dtype": "float32"} | changes)
    with interpret_kernels(True), tiles.override(**SMALL):
        got = ring_gradients(case, mesh_of(context), "tpu", balanced=True)
    assert_close(got, reference_gradients(case))


@pytest.mark.parametrize("module", [tpu, xla])
def test_block_attends_only_to_its_interval(module):
    """Blocks anywhere in the sequence: any interval of keys, none, all."""
    rng = np.random.default_rng(0)
    T, case = 300, Case(T=300, N=2, K=1, dtype="float32")
    q, k, v, dout = case.arrays()
    first = np.sort(rng.integers(0, 200, T))
    last = np.sort(rng.integers(0, 300, T))
    last[:40] = -1
    first[-20:] = T
    seen = (np.arange(T)[None] >= first[:, None]) & (np.arange(T)[None] <= last[:, None])
    bounds = [jnp.asarray(x, jnp.int32)[None] for x in (first, last)]

    def definition(q, k, v):
        scores = jnp.einsum("BTNH,BSNH->BNTS", q, jnp.repeat(k, 2, axis=2)) * case.H**-0.5
        scores = jnp.where(seen[None, None], scores, -1e30)
        weights = jnp.where(seen[None, None], jax.nn.softmax(scores, axis=-1), 0.0)
        return jnp.einsum("BNTS,BSNH->BTNH", weights, jnp.repeat(v, 2, axis=2))

    with interpret_kernels(True), tiles.override(**SMALL):
        forward, backward = (  # one program each, not one per operation
            jax.jit(functools.partial(function, scale=case.H**-0.5))
            for function in (module.BLOCK.forward, module.BLOCK.backward)
        )
        out, lse = forward(q, k, v, *bounds)
        grads = backward(q, k, v, *bounds, out, lse, dout)
    assert_close((out, *grads), with_gradients(definition, q, k, v, dout))
    nothing = ~seen.any(axis=1)
    assert nothing.any() and np.all(np.asarray(lse)[:, :, nothing] == np.float32(1e30))


@pytest.mark.parametrize("size, balanced", [(2, True), (4, True), (8, True), (4, False)])
def test_ring_balances_work_in_every_step(size, balanced):
    """Counts the query-key pairs that each device computes in each step."""
    ring = Ring("context", size, 16 * size, balanced)
    works = []
    for step in range(size):
        counts = []
        for here in range(size):
            positions = np.asarray(ring.positions(here))
            shard = (here - step) % size
            counts.append(int(np.sum(np.asarray(ring.tokens_before(positions + 1, shard)))))
        works.append(counts)
    assert sum(map(sum, works)) == 16 * size * (16 * size + 1) // 2  # each pair once
    equal = all(len(set(counts)) == 1 for counts in works)
    assert equal == balanced


def test_from_ring_inverts_the_ring_order():
    x = np.arange(2 * 64 * 3, dtype=np.float32).reshape(2, 64, 3)
    for context in (2, 4, 8):
        mesh = mesh_of(context)
        with use_layout(mesh):
            ring = ring_of(64)
            x = jax.device_put(x, NamedSharding(mesh, PartitionSpec(None, "context", None)))
            back, weights = jax.jit(
                lambda x, ring=ring: (
                    from_ring(x[:, ring.order()], ring),
                    jax.grad(lambda y, ring=ring: jnp.sum(from_ring(y, ring) * x))(x),
                )
            )(x)
        np.testing.assert_array_equal(back, x)
        np.testing.assert_array_equal(weights, np.asarray(x)[:, ring.order()])
        np.testing.assert_array_equal(to_ring(jnp.arange(64)[None], None), np.arange(64)[None])


def test_ring_of_lengths_that_do_not_divide():
    with use_layout(mesh_of(4)):
        assert ring_of(63) is None
        assert not ring_of(60).balanced
    assert ring_of(64) is None


CONFIG = dataclasses.replace(sizes.TINY, initializer_range=0.1, num_kv_heads=2, context_length=32)
# Its state is the gradients, and it compiles fast; tests/train/test_step.py has AdamW on meshes.
OPTIMIZER = optax.sgd(0.01, momentum=0.0)


def packed_batch() -> Batch:
    rng = np.random.default_rng(3)
    ids = np.zeros((4, 33), np.int32)
    positions = np.zeros((4, 33), np.int32)
    for row in range(4):
        ends = [0, *np.sort(rng.choice(np.arange(1, 30), 3, replace=False)), 31 + row % 3]
        for number, (begin, end) in enumerate(itertools.pairwise(ends), start=1):
            ids[row, begin:end], positions[row, begin:end] = number, np.arange(end - begin)
    tokens = rng.integers(0, CONFIG.vocab_size, (4, 33), dtype=np.int32)
    weights = (ids[:, :-1] == ids[:, 1:]) & (ids[:, 1:] > 0)
    return Batch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        segment_ids=ids[:, :-1],
        positions=positions[:, :-1],
        loss_weights=weights.astype(np.float32),
    )


@functools.cache
def start():
    """The state before the step, which is equal on every mesh (test_step.py)."""
    mesh, specs = mesh_of(1), param_specs(CONFIG)
    abstract = abstract_state(specs, OPTIMIZER, mesh, dtype="float32")
    return jax.device_get(make_state(0, specs, OPTIMIZER, abstract))


def one_step(mesh, config=CONFIG):
    """Returns metrics and the state after a step, which has the gradients."""
    with use_layout(mesh):
        abstract = abstract_state(param_specs(config), OPTIMIZER, mesh, dtype="float32")
        state = jax.device_put(start(), jax.tree.map(lambda leaf: leaf.sharding, abstract))
        step = make_train_step(make_objective(config), OPTIMIZER, seed=0)
        state, metrics = step(state, jax.device_put(packed_batch(), batch_sharding(mesh)))
    return jax.device_get((metrics, state))


@pytest.fixture(scope="module")
def single_device():
    return one_step(mesh_of(1))


@pytest.mark.parametrize(
    "shape, changes",
    [
        pytest.param({"context": 2}, {}, marks=pytest.mark.slow),
        ({"context": 4}, {"remat": "dots"}),
        pytest.param({"context": 8}, {"remat": "block"}, marks=pytest.mark.slow),
        ({"context": 2, "fsdp": 2, "tensor": 2}, {}),
        ({"context": 4}, {"attention": "reference"}),
    ],
)  # the reference has no blocks: the ring gathers sequences
def test_train_step_is_equal_on_a_ring(single_device, shape, changes):
    metrics, state = one_step(mesh_of(**shape), dataclasses.replace(CONFIG, **changes))
    for name, value in single_device[0].items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-5, err_msg=name)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(single_device[1]), jax.tree.leaves(state), strict=True
    ):
        scale = np.abs(a).max() + 1e-9
        np.testing.assert_allclose(b / scale, a / scale, atol=5e-5, err_msg=str(path))


def test_dropout_mask_is_equal_on_every_mesh():
    """With dropout, sequences keep their order, and every mesh samples the same mask."""
    objective = make_objective(dataclasses.replace(CONFIG, dropout=0.3))

    def loss(mesh, seed=0):
        with use_layout(mesh):
            params = jax.device_put(start().params, sharding_for(param_specs(CONFIG), mesh))
            batch = jax.device_put(packed_batch(), batch_sharding(mesh))
            return float(jax.jit(objective)(params, batch, jax.random.key(seed)).loss_sum)

    one = loss(mesh_of(1))
    np.testing.assert_allclose(loss(mesh_of(4)), one, rtol=2e-5)
    assert abs(loss(mesh_of(1), seed=1) - one) > 1e-3 * one


def test_ring_attention_errors_show_a_planted_bug(monkeypatch):
    """The planted bug: keys arrive a step late."""
    monkeypatch.setattr(
        Ring,
        "tokens_before",
        lambda ring, position, shard: sum(
            jnp.clip(position - start, 0, ring.chunk)
            for start in ring.starts((shard + 1) % ring.size)
        ),
    )
    case = Case(T=64, B=2, N=4, K=2, H=16, dtype="float32")
    found = ring_gradients(case, mesh_of(4), "xla", balanced=True, gradients=False)
    with pytest.raises(AssertionError, match="out"):
        assert_close(found, reference_gradients(case)[:1])


def test_ring_attention_permutes_keys_and_values_without_gathers():
    mesh = mesh_of(4)
    arrays = [
        jax.device_put(x, NamedSharding(mesh, PartitionSpec(None, "context")))
        for x in Case(T=64, N=2, K=1, H=16, dtype="float32").arrays()[:3]
    ]
    with use_layout(mesh):
        ring = ring_of(64)
        text = (
            jax.jit(
                lambda q, k, v: partitioned_attention(
                    q, k, v, segment_ids=None, window=None, implementation="xla", ring=ring
                )
            )
            .lower(*arrays)
            .compile()
            .as_text()
        )
    assert text.count(" collective-permute(") == 2 * 3 and "all-gather" not in text
