"""experiments.long_context (Table 3) on a model with random weights."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from experiments import long_context
from qwen_jax import sizes
from qwen_jax.config import ContextExtension
from qwen_jax.data import shards
from qwen_jax.data.document import Document
from qwen_jax.errors import QwenJaxError
from qwen_jax.evaluate.perplexity import perplexity
from qwen_jax.model import spec
from qwen_jax.pretrained.huggingface import load_pretrained, save_pretrained
from qwen_jax.tokenizer.bpe import Tokenizer

MODEL = dataclasses.replace(sizes.TINY, vocab_size=512, initializer_range=0.2)  # trained at 16


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    params = jax.jit(spec.init_params, static_argnums=0)(MODEL, jax.random.key(0))
    save_pretrained(folder / "model", MODEL, params, layout="qwen")
    rng = np.random.default_rng(0)
    documents = [Document(str(i), "".join(rng.choice(list("abcdef "), 300))) for i in range(4)]
    shards.write(documents, folder / "text", Tokenizer({bytes([b]): b for b in range(256)}))
    return dataclasses.replace(
        long_context.SMOKE,
        model=str(folder / "model"),
        data=str(folder / "text/train"),
        output=str(folder / "out"),
        multiples=(1, 4),
    )


def test_long_context_prints_the_table_and_writes_json_and_plot(smoke, capsys):
    long_context.main(smoke)
    shown = capsys.readouterr().out
    made = json.loads((pathlib.Path(smoke.output) / "long_context.json").read_text())
    assert made["lengths"] == [16, 64] and made["windows"] == [16, 32]
    assert made["tokens"] == 256
    rows = made["perplexity"]
    assert list(rows) == [
        "plain",
        "+ dynamic ntk",
        "+ dynamic ntk + logn",
        "+ dynamic ntk + logn + window",
    ]
    for name, values in rows.items():
        assert name in shown and all(f"{value:.2f}" in shown for value in values)
        # Up to the training length no technique changes the result; beyond it each does.
        np.testing.assert_allclose(values[0], rows["plain"][0], rtol=1e-5)
    assert len({round(values[1], 3) for values in rows.values()}) == 4
    picture = (pathlib.Path(smoke.output) / "long_context.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000


def test_measure_returns_the_perplexity_with_that_extension(smoke):
    model, params = load_pretrained(smoke.model)
    tokens = long_context.read(smoke.data, [64], 256)
    own = dataclasses.replace(model, extension=ContextExtension(logn=False))
    table = long_context.measure({"it": own}, params, tokens, [64])
    assert table["it"] == [perplexity(params, tokens, config=own, length=64).value]


def test_ramp_matches_the_example_of_qwens_maintainers():
    wide = dataclasses.replace(sizes.QWEN_7B, context_length=2048)
    assert long_context.ramp(wide) == (2048,) * 4 + (4096,) * 4 + (8192,) * 24


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model": ""}, "no model or no text is set"),
        ({"multiples": (3, 4)}, r"cannot be split into full sequences of lengths \[48, 64\]"),
        ({"windows": (16,)}, "windows has length 1, but the model has 2"),
    ],
)
def test_long_context_refuses_settings_that_cannot_be_measured(smoke, change, message):
    with pytest.raises(QwenJaxError, match=message):
        long_context.main(dataclasses.replace(smoke, **change))
