"""The original implementation's logits, loss and gradients, on a tiny checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax.config import ContextExtension
from qwen_jax.model import transformer
from qwen_jax.pretrained.huggingface import load_pretrained
from qwen_jax.train.language_model import make_objective
from qwen_jax.types import Batch

forward = jax.jit(transformer.forward, static_argnames="config")


@pytest.fixture(scope="module")
def original(shared):
    folder = shared / "reference" / "qwen1_tiny"
    config, params = load_pretrained(folder)
    return config, params, np.load(folder / "expected.npz")


@pytest.mark.parametrize("length", [7, 32, 33, 100])
def test_forward_equals_the_original_within_and_beyond_training_length(original, length):
    config, params, expected = original
    assert config.context_length == 32 and config.extension == ContextExtension()
    logits = forward(params, expected[f"ids_{length}"].astype(np.int32), config=config)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected[f"logits_{length}"], atol=2e-4, rtol=0)


def test_forward_beyond_training_length_depends_on_ntk_and_logn(original):
    import dataclasses

    config, params, expected = original
    tokens = expected["ids_100"].astype(np.int32)
    for off in ({"dynamic_ntk": False}, {"logn": False}):
        extension = dataclasses.replace(config.extension, **off)
        logits = forward(params, tokens, config=dataclasses.replace(config, extension=extension))
        assert np.abs(logits - expected["logits_100"]).max() > 0.1


def test_forward_extension_ignores_right_padding(original):
    config, params, expected = original
    padded = np.pad(expected["ids_33"].astype(np.int32), ((0, 0), (0, 67)))
    segment_ids = (np.arange(100)[None] < 33).astype(np.int32).repeat(2, axis=0)
    logits = forward(params, padded, config=config, segment_ids=segment_ids)
    np.testing.assert_allclose(np.asarray(logits)[:, :33], expected["logits_33"], atol=2e-4, rtol=0)


def training_batch(expected) -> Batch:
    ids, labels = expected["train_ids"], expected["train_labels"]
    targets = np.concatenate([labels[:, 1:], np.full((2, 1), -100)], axis=1)
    weights = (targets != -100).astype(np.float32)
    B, T = ids.shape
    return Batch(
        tokens=ids.astype(np.int32),
        targets=np.where(targets == -100, 0, targets).astype(np.int32),
        loss_weights=weights,
        segment_ids=np.ones((B, T), np.int32),
        positions=np.tile(np.arange(T, dtype=np.int32)[None], (B, 1)),
    )


def test_make_objective_loss_and_gradients_equal_the_original(original):
    config, params, expected = original
    objective = make_objective(config)
    batch = training_batch(expected)

    def loss(params):
        sums = objective(params, batch, None)
        return sums.loss_sum / sums.weight_sum

    value, grads = jax.device_get(jax.jit(jax.value_and_grad(loss))(params))
    assert abs(float(value) - float(expected["train_loss"])) < 1e-5

    D = config.hidden_size
    first = jax.tree.map(lambda x: x[0], grads.layers)
    attention = first.attention
    ours = {
        "transformer.wte.weight": grads.embed,
        "transformer.h.0.ln_1.weight": first.attention_norm,
        "transformer.h.0.attn.c_attn.weight": np.concatenate(
            [w.reshape(D, -1).T for w in (attention.wq, attention.wk, attention.wv)]
        ),
        "transformer.h.0.attn.c_attn.bias": np.concatenate(
            [b.reshape(-1) for b in (attention.bq, attention.bk, attention.bv)]
        ),
        "transformer.h.0.attn.c_proj.weight": attention.wo.reshape(-1, D).T,
        "transformer.h.0.ln_2.weight": first.mlp_norm,
        "transformer.h.0.mlp.w1.weight": first.mlp.w_up.T,
        "transformer.h.0.mlp.w2.weight": first.mlp.w_gate.T,
        "transformer.h.0.mlp.c_proj.weight": first.mlp.w_down.T,
        "transformer.ln_f.weight": grads.final_norm,
        "lm_head.weight": grads.head.T,
    }
    assert {f"grad.{name}" for name in ours} == {k for k in expected if k.startswith("grad.")}
    for name, grad in ours.items():
        wanted = expected[f"grad.{name}"]
        error = np.linalg.norm(grad - wanted) / np.linalg.norm(wanted)
        assert error < 1e-4, (name, error)
        np.testing.assert_allclose(
            grad, wanted, atol=1e-4 * np.abs(wanted).max(), rtol=1e-4, err_msg=name
        )
