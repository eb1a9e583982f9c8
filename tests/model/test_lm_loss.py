"""The chunked cross-entropy against its definition, on meshes, and what it costs."""

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


def draw(dtype=jnp.float32, tokens=(B, T), vocab_size=V, seed=0):
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


@pytest.mark.parametrize("z_loss", [None, 0.1])
@pytest.mark.parametrize("tokens", [128, 256, 384])  # three chunks, two (the last half full), one
def test_value_and_gradients_equal_the_definition(chunks, tokens, z_loss):
    chunks(tokens)
    arguments = draw()
    wanted = value_and_grad(by_definition, arguments, z_loss)
    assert_same(value_and_grad(cross_entropy, arguments, z_loss), wanted)
    assert_same(jax.jit(cross_entropy, static_argnums=4)(*arguments, z_loss), wanted[:2])


def test_the_gradient_is_scaled_by_what_follows(chunks):
    chunks(128)
    x, head, targets, weights = draw()
    ours, wanted = (
        jax.jit(jax.grad(lambda x, f=f: jnp.square(f(x, head, targets, weights)[0])))(x)
        for f in (cross_entropy, by_definition)
    )
    assert_same([ours], [wanted])


def test_bfloat16_rounds_what_plain_jax_rounds(chunks):
    """Against float32, at most twice the error of the plain form in the same precision; and less in
    the projection's gradient, which the plain form rounds to bfloat16 at the end."""
    chunks(128)
    x, head, targets, weights = draw(jnp.bfloat16)
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
    """What it gives, and the gradient of a weighted sum of the first."""
    x, head, targets, weights = arguments

    def weighted(x, head):
        log_p, entropy = function(x, head, targets, temperature)
        return jnp.sum(weights * log_p), (log_p, entropy)

    (_, found), gradients = jax.jit(jax.value_and_grad(weighted, (0, 1), has_aux=True))(x, head)
    return *found, *gradients


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("tokens", [128, 256, 384])
def test_likelihoods_and_their_gradients_equal_the_definition(chunks, tokens, temperature):
    chunks(tokens)
    arguments = draw()
    assert_same(
        likelihoods_and_grad(log_likelihoods, arguments, temperature),
        likelihoods_and_grad(likelihoods_by_definition, arguments, temperature),
    )


def test_no_gradient_comes_from_the_entropy(chunks):
    chunks(128)
    x, head, targets, _ = draw()
    slope = jax.jit(jax.grad(lambda x: jnp.sum(log_likelihoods(x, head, targets)[1])))(x)
    assert not np.any(slope)


def on_mesh(shape, function):
    """function() under a mesh of this shape: what jit makes of it is partitioned."""
    mesh = make_mesh(MeshConfig(*shape), devices=jax.devices()[: int(np.prod(shape))])
    with use_layout(mesh):
        return function(mesh)


@pytest.mark.parametrize(
    "shape, vocab_size",
    [
        ((2, 2, 2, 1), V),
        ((1, 4, 2, 1), V),
        ((8, 1, 1, 1), V),
        ((1, 2, 2, 2), V),
        ((1, 2, 4, 1), 39),
    ],
)  # 39 columns are whole on every device
def test_every_mesh_gives_the_same(chunks, shape, vocab_size):
    chunks(128, vocab_size // (shape[2] if vocab_size == V else 1))
    arguments = draw(tokens=(8, 192), vocab_size=vocab_size)
    ours = on_mesh(shape, lambda mesh: value_and_grad(cross_entropy, arguments, 0.1))
    assert_same(jax.device_get(ours), value_and_grad(by_definition, arguments, 0.1))
    ours = on_mesh(shape, lambda mesh: likelihoods_and_grad(log_likelihoods, arguments, 0.7))
    assert_same(
        jax.device_get(ours), likelihoods_and_grad(likelihoods_by_definition, arguments, 0.7)
    )


def placed(mesh, arguments):
    """Abstract arguments as a training step holds them: the projection cut in both dimensions."""
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
        # The second loop is that of the backward pass.
        (lambda x, head, targets, w: jnp.sum(w * jnp.exp(log_likelihoods(x, head, targets)[0])), 2),
    ],
)
def test_the_projection_crosses_devices_once_and_not_with_every_chunk(chunks, loss, number):
    chunks(128, V // 2)
    arguments = draw(tokens=(8, 256))

    def compiled(mesh):
        gradient = jax.grad(loss, (0, 1))
        return jax.jit(gradient).lower(*placed(mesh, arguments)).compile().as_text()

    text = on_mesh((2, 2, 2, 1), compiled)
    loops = [
        body
        for body in re.split(r"\n\n", text)
        if body.startswith("%")
        and any(f"body=%{body.split()[0][1:]}" in line for line in text.splitlines())
    ]
    assert len(loops) == number, "four chunks are one loop"
    inside = re.findall(
        r"= (\S+) (all-gather|all-reduce|reduce-scatter|all-to-all)\(", "".join(loops)
    )
    assert all(f"{D}," not in shape and f"{V // 2}" not in shape for shape, _ in inside), inside
    gathered = re.findall(rf"= f32\[{D},{V // 2}\]\S* all-gather\(", text)
    assert len(gathered) == 1


def products(function, *arguments) -> int:
    return str(jax.make_jaxpr(function)(*arguments)).count("dot_general[")


def test_three_products_with_the_projection_for_a_gradient_and_one_without(chunks):
    chunks(128)
    arguments = draw()
    assert products(cross_entropy, *arguments) == 1
    assert products(jax.grad(lambda *a: cross_entropy(*a)[0], (0, 1)), *arguments) == 3


def test_memory_follows_the_chunk_and_not_the_logits(chunks):
    def workspace(tokens, vocab_size):
        chunks(256, vocab_size)
        arguments = draw(tokens=(1, tokens), vocab_size=vocab_size)
        gradient = jax.jit(jax.grad(lambda *a: cross_entropy(*a)[0], (0, 1)))
        return gradient.lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    few, many = workspace(512, 4096), workspace(4096, 4096)
    logits = 4 * 4096 * 4096
    # What grows is x and its gradient, not the logits, of which there are never all.
    assert many - few < 4 * 4 * D * 4096 and many < logits / 2, (few, many, logits)


def test_a_chunk_is_everything_or_whole_tiles():
    size = functools.partial(module._chunk_size, vocab_size=1000, limit=4 * 1000 * 300)
    assert [size(n) for n in (7, 300, 301, 600, 700)] == [7, 300, 256, 384, 256]
    assert size(16384) == 384
