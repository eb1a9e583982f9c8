"""The chunked cross-entropy: against its definition, on meshes, and its cost."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax.config import MeshConfig
from qwen_jax.model import lm_loss as module
from qwen_jax.model.lm_loss import cross_entropy, log_likelihoods
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.parallel.sharding import use_layout

B, T, D, V = 4, 96, 16, 40  # 384 tokens; chunks are multiples of 128


@pytest.fixture
def chunks(monkeypatch):
    """Chunks of 128 tokens, or one, for a vocabulary (or a part of it) of V."""

    def use(tokens: int, vocab_size: int = V) -> None:
        monkeypatch.setitem(module._CHUNK_BYTES, "cpu", 4 * tokens * vocab_size)

    return use


def make_arguments(dtype=jnp.float32, tokens=(B, T), vocab_size=V, seed=0):
    rng = np.random.default_rng(seed)
    x = 2 * rng.normal(size=(*tokens, D)).astype(np.float32)
    head = rng.normal(size=(D, vocab_size)).astype(np.float32)
    targets = rng.integers(0, vocab_size, tokens).astype(np.int32)
    weights = np.where(np.arange(tokens[1]) % 3 > 0, rng.random(tokens), 0.0).astype(np.float32)
    return jnp.asarray(x, dtype), *map(jnp.asarray, (head, targets, weights))


def by_definition(x, head, targets, weights, z_loss=None):
    logits = jnp.einsum(
        "BTD,DV->BTV", x.astype(jnp.float32), head, precision=jax.lax.Precision.HIGHEST
    )
    log_z = jax.nn.logsumexp(logits, axis=-1)
    nll = log_z - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    total = jnp.sum(weights * nll)
    return total + (z_loss or 0.0) * jnp.sum(weights * jnp.square(log_z)), total


def value_and_grad(function, arguments, z_loss=None):
    def loss(x, head):
        return function(x, head, *arguments[2:], z_loss)

    (value, total), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(
        *arguments[:2]
    )
    return value, total, *gradients


def assert_same(ours, wanted, tolerance=2e-5):
    for x, y in zip(ours, wanted, strict=True):
        scale = np.abs(y).max()
        np.testing.assert_allclose(np.asarray(x, np.float32) / scale, y / scale, atol=tolerance)


def grid(settings, quick):
    """Three chunks, two (the last half full), and one, each with one setting by default."""
    return [
        pytest.param(tokens, setting, marks=() if (tokens, setting) in quick else pytest.mark.slow)
        for tokens in (128, 256, 384)
        for setting in settings
    ]


@pytest.mark.parametrize(
    "tokens, z_loss", grid([None, 0.1], quick=[(128, 0.1), (256, None), (384, 0.1)])
)
def test_cross_entropy_and_gradients_equal_the_definition(chunks, tokens, z_loss):
    chunks(tokens)
    arguments = make_arguments()
    wanted = value_and_grad(by_definition, arguments, z_loss)
    assert_same(value_and_grad(cross_entropy, arguments, z_loss), wanted)
    assert_same(jax.jit(cross_entropy, static_argnums=4)(*arguments, z_loss), wanted[:2])


def test_cross_entropy_gradient_is_scaled_by_its_cotangent(chunks):
    chunks(128)
    x, head, targets, weights = make_arguments()
    ours, wanted = (
        jax.jit(jax.grad(lambda x, f=f: jnp.square(f(x, head, targets, weights)[0])))(x)
        for f in (cross_entropy, by_definition)
    )
    assert_same([ours], [wanted])


def test_cross_entropy_in_bfloat16_is_as_exact_as_plain_jax(chunks):
    """Compared with float32, at most twice the error of the plain form in bfloat16. The error of
    the projection's gradient is smaller, because the plain form rounds it to bfloat16."""
    chunks(128)
    x, head, targets, weights = make_arguments(jnp.bfloat16)
    rounded = head.astype(jnp.bfloat16)
    exact = value_and_grad(
        by_definition, (x.astype(jnp.float32), rounded.astype(jnp.float32), targets, weights)
    )

    def plain(x, head, targets, weights, z_loss):
        logits = jax.lax.dot_general(
            x, head.astype(x.dtype), (((2,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
        log_z = jax.nn.logsumexp(logits, axis=-1)
        nll = log_z - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return jnp.sum(weights * nll), jnp.sum(weights * nll)

    def errors(function):
        found = value_and_grad(function, (x, head, targets, weights))
        assert found[2].dtype == jnp.bfloat16 and found[3].dtype == jnp.float32
        return [
            np.abs(np.asarray(a, np.float32) - b).max() / np.abs(b).max()
            for a, b in zip(found, exact, strict=True)
        ]

    ours, theirs = errors(cross_entropy), errors(plain)
    assert all(a <= 2 * b + 1e-6 for a, b in zip(ours, theirs, strict=True)), (ours, theirs)
    assert ours[3] < 0.75 * theirs[3], (ours, theirs)


def likelihoods_by_definition(x, head, targets, temperature):
    logits = jnp.einsum("BTD,DV->BTV", x, head, precision=jax.lax.Precision.HIGHEST)
    log_p = jax.nn.log_softmax(logits / temperature)
    chosen = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return chosen, -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def likelihoods_and_grad(function, arguments, temperature):
    """Returns both results, and the gradient of a weighted sum of the first."""
    x, head, targets, weights = arguments

    def weighted(x, head):
        log_p, entropy = function(x, head, targets, temperature)
        return jnp.sum(weights * log_p), (log_p, entropy)

    (_, found), gradients = jax.jit(jax.value_and_grad(weighted, (0, 1), has_aux=True))(x, head)
    return *found, *gradients


@pytest.mark.parametrize(
    "tokens, temperature", grid([1.0, 0.7], quick=[(128, 0.7), (256, 1.0), (384, 0.7)])
)
def test_log_likelihoods_and_gradients_equal_the_definition(chunks, tokens, temperature):
    chunks(tokens)
    arguments = make_arguments()
    assert_same(
        likelihoods_and_grad(log_likelihoods, arguments, temperature),
        likelihoods_and_grad(likelihoods_by_definition, arguments, temperature),
    )


def test_log_likelihoods_entropy_has_no_gradient(chunks):
    chunks(128)
    x, head, targets, _ = make_arguments()
    slope = jax.jit(jax.grad(lambda x: jnp.sum(log_likelihoods(x, head, targets)[1])))(x)
    assert not np.any(slope)


def on_mesh(shape, function):
    """Calls `function` under a mesh of this shape, over which jit partitions it."""
    mesh = make_mesh(MeshConfig(*shape), devices=jax.devices()[: int(np.prod(shape))])
    with use_layout(mesh):
        return function(mesh)


@pytest.mark.parametrize(
    "shape, vocab_size",
    [
        ((2, 2, 2, 1), V),
        pytest.param((1, 4, 2, 1), V, marks=pytest.mark.slow),
        pytest.param((8, 1, 1, 1), V, marks=pytest.mark.slow),
        ((1, 2, 2, 2), V),
        ((1, 2, 4, 1), 39),
    ],
)  # 39 columns are replicated
def test_cross_entropy_and_log_likelihoods_are_equal_on_every_mesh(chunks, shape, vocab_size):
    chunks(128, vocab_size // (shape[2] if vocab_size == V else 1))
    arguments = make_arguments(tokens=(8, 192), vocab_size=vocab_size)
    ours = on_mesh(shape, lambda mesh: value_and_grad(cross_entropy, arguments, 0.1))
    assert_same(jax.device_get(ours), value_and_grad(by_definition, arguments, 0.1))
    ours = on_mesh(shape, lambda mesh: likelihoods_and_grad(log_likelihoods, arguments, 0.7))
    assert_same(
        jax.device_get(ours), likelihoods_and_grad(likelihoods_by_definition, arguments, 0.7)
    )


def abstract_on(mesh, arguments):
    """Abstract arguments sharded as in a training step: the projection in both dimensions."""
    names = (
        (("data", "fsdp"), None, None),
        ("fsdp", "tensor"),
        (("data", "fsdp"),),
        (("data", "fsdp"),),
    )
    return [
        jax.ShapeDtypeStruct(
            a.shape,
            a.dtype,
            sharding=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*name)),
        )
        for a, name in zip(arguments, names, strict=True)
    ]


@pytest.mark.parametrize(
    "loss, number",
    [
        (lambda *a: cross_entropy(*a)[0], 1),
        # The second loop belongs to the backward pass.
        (lambda x, head, targets, w: jnp.sum(w * jnp.exp(log_likelihoods(x, head, targets)[0])), 2),
    ],
)
def test_cross_entropy_gathers_the_projection_once_for_all_chunks(chunks, loss, number):
    chunks(128, V // 2)
    arguments = make_arguments(tokens=(8, 256))

    def compiled(mesh):
        gradient = jax.grad(loss, (0, 1))
        return jax.jit(gradient).lower(*abstract_on(mesh, arguments)).compile().as_text()

    text = on_mesh((2, 2, 2, 1), compiled)
    loops = [
        body
        for body in re.split(r"\n\n", text)
        if body.startswith("%")
        and any(f"body=%{body.split()[0][1:]}" in line for line in text.splitlines())
    ]
    assert len(loops) == number, "one loop covers all four chunks"
    inside = re.findall(
        r"= (\S+) (all-gather|all-reduce|reduce-scatter|all-to-all)\(", "".join(loops)
    )
    assert all(f"{D}," not in shape and f"{V // 2}" not in shape for shape, _ in inside), inside
    gathered = re.findall(rf"= f32\[{D},{V // 2}\]\S* all-gather\(", text)
    assert len(gathered) == 1


def count_matmuls(function, *arguments) -> int:
    return str(jax.make_jaxpr(function)(*arguments)).count("dot_general[")


def test_cross_entropy_takes_one_matmul_and_three_with_gradients(chunks):
    chunks(128)
    arguments = make_arguments()
    assert count_matmuls(cross_entropy, *arguments) == 1
    assert count_matmuls(jax.grad(lambda *a: cross_entropy(*a)[0], (0, 1)), *arguments) == 3


def test_cross_entropy_memory_depends_on_the_chunk_not_the_logits(chunks):
    def workspace(tokens, vocab_size):
        chunks(256, vocab_size)
        arguments = make_arguments(tokens=(1, tokens), vocab_size=vocab_size)
        gradient = jax.jit(jax.grad(lambda *a: cross_entropy(*a)[0], (0, 1)))
        return gradient.lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    few, many = workspace(512, 4096), workspace(4096, 4096)
    logits = 4 * 4096 * 4096
    # Only x and its gradient grow; the full logits never exist.
    assert many - few < 4 * 4 * D * 4096 and many < logits / 2, (few, many, logits)


def test_chunk_size_is_all_tokens_or_a_multiple_of_the_tile():
    size = functools.partial(module._chunk_size, vocab_size=1000, limit=4 * 1000 * 300)
    assert [size(n) for n in (7, 300, 301, 600, 700)] == [7, 300, 256, 384, 256]
    assert size(16384) == 384
