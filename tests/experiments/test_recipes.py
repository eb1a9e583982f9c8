"""Every number of the report in the recipes; every smoke runs, learns and does not recompile."""

import dataclasses
import logging

import jax
import numpy as np
import pytest

from experiments import pretrain, quickstart
from qwen_jax.config import DataConfig, ModelConfig
from qwen_jax.data import shards
from qwen_jax.data.sources import Document
from qwen_jax.errors import QwenJaxError
from qwen_jax.export.huggingface import load_pretrained
from qwen_jax.tokenizer.bpe import Tokenizer

# Report, Table 1 and 2.4: layers, hidden, heads, learning rate, tokens in a batch, tokens.
TABLE_1 = {"1.8b": (24, 2048, 16, 3.0e-4, 4e6, 2.2e12), "7b": (32, 4096, 32, 3.0e-4, 4e6, 2.4e12),
           "14b": (40, 5120, 40, 3.0e-4, 4e6, 3.0e12)}


@pytest.mark.parametrize("name", TABLE_1)
def test_recipes_are_table_1(name):
    layers, hidden, heads, rate, batch, tokens = TABLE_1[name]
    config = pretrain.RECIPES[name]
    model, optimizer = config.model, config.optimizer
    assert (model.num_layers, model.hidden_size, model.num_heads) == (layers, hidden, heads)
    assert model.context_length == 2048 and model.compute_dtype == "bfloat16"
    assert model.dropout == 0 and not model.tie_embeddings and model.param_dtype == "float32"
    assert optimizer.peak_learning_rate == rate
    assert (optimizer.beta1, optimizer.beta2, optimizer.epsilon) == (0.9, 0.95, 1e-8)
    assert (optimizer.schedule, optimizer.final_fraction) == ("cosine", 0.1)
    in_batch = config.train.batch_size * model.context_length
    assert in_batch == pytest.approx(batch, rel=0.06)  # 4M is 2^22
    assert config.train.num_steps * in_batch == pytest.approx(tokens, rel=1e-4)


def test_the_quickstart_vocabulary_fills_the_embedding():
    config = quickstart.RECIPE
    specials = 3 + 205  # of ChatML and the 205 extra ones
    assert config.learnt_tokens + config.grown_tokens + specials == config.model.vocab_size


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Shards of sentences that a tiny model can learn, with a byte vocabulary."""
    folder = tmp_path_factory.mktemp("text")
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)})
    draw = np.random.default_rng(0)
    words = ["red", "green", "blue", "one", "two", "three"]
    documents = [Document(str(i), " ".join(draw.choice(words, 40))) for i in range(300)]
    shards.write(documents, folder / "colours", tokenizer, eval_fraction=0.05)
    return folder / "colours"


def smoke(text, run_dir, **train) -> pretrain.Config:
    return dataclasses.replace(
        pretrain.SMOKE, run_dir=str(run_dir),
        train=dataclasses.replace(pretrain.SMOKE.train, **train),
        data=DataConfig(sources=(f"{text}/train",), eval_sources=(f"{text}/eval",)))


def run(config) -> list[str]:
    lines = []
    pretrain.pretrain(config, Tokenizer.from_file(
        f"{config.data.sources[0].rsplit('/', 1)[0]}/tokenizer.tiktoken"), emit=lines.append)
    return lines


def test_smoke_learns_compiles_once_and_says_what_it_does(text, tmp_path, caplog):
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        lines = run(smoke(text, tmp_path / "run"))
    compiled = [record.getMessage() for record in caplog.records
                if "Finished XLA compilation of jit(train_step)" in record.getMessage()]
    assert len(compiled) == 1, compiled
    shown = "\n".join(lines)
    for what in ("parameters", "memory:", "batch: 16 x 64 = 1,024 tokens", "cost:", "ETA",
                 "held out colours", "read"):
        assert what in shown
    losses = [float(line.split("loss ")[1].split()[0]) for line in lines
              if line.startswith("step") and "held out" not in line]
    assert losses[-1] < losses[0] - 2
    model, params = load_pretrained(tmp_path / "run")
    assert model == pretrain.SMOKE.model and params.embed.shape == (512, 64)


def test_bad_runs_are_refused_before_they_leave_anything(text, tmp_path):
    small = dataclasses.replace(smoke(text, tmp_path / "a"), model=ModelConfig(
        vocab_size=300, hidden_size=64, num_layers=1, num_heads=2, ffn_size=64))
    with pytest.raises(QwenJaxError, match="464 ids"):
        run(small)
    with pytest.raises(QwenJaxError, match="num_steps"):
        run(smoke(text, tmp_path / "b", num_steps=5))
    with pytest.raises(QwenJaxError, match="no text"):
        pretrain.main(dataclasses.replace(smoke(text, tmp_path), data=DataConfig()))
    assert list(tmp_path.iterdir()) == []


def test_another_config_is_refused_on_resume(text, tmp_path):
    run(smoke(text, tmp_path / "run", num_steps=12))
    with pytest.raises(QwenJaxError, match="train.seed: 0 then, 1 now"):
        run(smoke(text, tmp_path / "run", num_steps=12, seed=1))
