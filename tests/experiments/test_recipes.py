"""Recipes have the report's numbers; the smoke recipe runs, learns and does not recompile."""

import dataclasses
import logging

import jax
import numpy as np
import pytest

from experiments import dpo, grpo, ppo, pretrain, quickstart, reward_model, sft
from qwen_jax import sizes
from qwen_jax.config import DataConfig, ModelConfig
from qwen_jax.data import shards
from qwen_jax.data.document import Document
from qwen_jax.errors import QwenJaxError
from qwen_jax.model.spec import count
from qwen_jax.pretrained.huggingface import load_pretrained
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train.supervised_examples import for_epochs
from tests.helpers.alignment import on_devices

# Report, Table 1 and 2.4: layers, hidden, heads, learning rate, tokens in a batch, tokens.
TABLE_1 = {
    "1.8b": (24, 2048, 16, 3.0e-4, 4e6, 2.2e12),
    "7b": (32, 4096, 32, 3.0e-4, 4e6, 2.4e12),
    "14b": (40, 5120, 40, 3.0e-4, 4e6, 3.0e12),
}


@pytest.mark.parametrize("name", TABLE_1)
def test_pretrain_recipes_match_table_1(name):
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


@pytest.mark.parametrize(
    "name, millions",
    [
        ("0.6m", 0.6),
        ("2.6m", 2.6),
        ("toy_8m", 8.4),
        ("25m", 25),
        ("50m", 51),
        ("toy_110m", 134),
        ("350m", 348),
    ],
)
def test_pretrain_recipes_of_ours_train_on_20_tokens_per_parameter(name, millions):
    config = pretrain.RECIPES[name]
    assert config.model == sizes.by_name(name)
    assert count(config.model) == pytest.approx(millions * 1e6, rel=0.07)
    tokens = config.train.num_steps * config.train.batch_size * config.model.context_length
    assert tokens == pytest.approx(20 * count(config.model), rel=0.01)
    assert config.optimizer.warmup_steps <= config.train.num_steps / 20


def test_alignment_recipes_match_sections_3_1_and_3_2():
    tuned, reward, rl = (stage.RECIPE for stage in (sft, reward_model, ppo))
    for config in (tuned, reward, rl, dpo.RECIPE, grpo.RECIPE):
        for size in TABLE_1:
            pretrained = pretrain.RECIPES[size].model
            computed = dataclasses.replace(config.model, dropout=0.0).apply(pretrained)
            assert computed == pretrained
        assert (config.optimizer.beta1, config.optimizer.beta2) == (0.9, 0.95)
        assert config.optimizer.epsilon == 1e-8
    # 3.1.2: 2048 tokens, batch 128, 4000 steps, the first 1430 up to 2e-6, decay, dropout, clip.
    assert (tuned.data.context_length, tuned.data.mask) == (2048, "assistant")
    assert (tuned.train.batch_size, tuned.train.num_steps) == (128, 4000)
    assert (tuned.optimizer.peak_learning_rate, tuned.optimizer.warmup_steps) == (2e-6, 1430)
    assert (tuned.optimizer.weight_decay, tuned.optimizer.clip_norm) == (0.1, 1.0)
    assert tuned.model.dropout == 0.1
    # 3.2.1: constant 3e-6, batch 64, 2048 tokens, one epoch.
    assert reward.optimizer.schedule == "constant" and reward.optimizer.warmup_steps == 0
    assert reward.optimizer.peak_learning_rate == 3e-6 and reward.train.batch_size == 64
    assert (reward.data.context_length, reward.data.epochs) == (2048, 1.0)
    assert for_epochs(reward, 6400).train.num_steps == 100
    # 3.2.2: 50 steps of only the value model, two samples, KL 0.04, clip 0.15, top-p 0.9.
    assert (rl.ppo.value_warmup_steps, rl.ppo.samples_per_prompt) == (50, 2)
    assert (rl.ppo.kl_coefficient, rl.ppo.value_clip, rl.ppo.top_p) == (0.04, 0.15, 0.9)
    assert rl.optimizer.peak_learning_rate == 1e-6
    assert rl.value_optimizer.peak_learning_rate == 5e-6
    assert rl.ppo.pretrain_coefficient > 0 and rl.ppo.pretrain_ratio > 1  # mostly pretraining data


def test_grpo_recipe_has_the_rollout_clip_and_kl_coefficient_of_ppo():
    group, rl = grpo.RECIPE, ppo.RECIPE
    assert (group.grpo.beta, group.grpo.epsilon) == (rl.ppo.kl_coefficient, rl.ppo.ratio_clip)
    assert group.grpo.sampling == rl.ppo.sampling and group.optimizer == rl.optimizer
    assert (group.train, group.model) == (rl.train, rl.model)
    # TRL's defaults
    assert (group.grpo.num_generations, group.grpo.loss_type) == (8, "dapo")
    assert (group.grpo.scale_rewards, group.grpo.epochs) == ("group", 1)


def test_quickstart_vocabulary_fills_the_embedding():
    config = quickstart.RECIPE
    specials = 3 + 205  # of ChatML, and the extra ones
    assert config.learned_tokens + config.grown_tokens + specials == config.model.vocab_size


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Shards of sentences that a tiny model can learn, with a vocabulary of bytes."""
    folder = tmp_path_factory.mktemp("text")
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)})
    rng = np.random.default_rng(0)
    words = ["red", "green", "blue", "one", "two", "three"]
    documents = [Document(str(i), " ".join(rng.choice(words, 40))) for i in range(300)]
    shards.write(documents, folder / "colors", tokenizer, eval_fraction=0.05)
    return folder / "colors"


def smoke(text, run_dir, **train) -> pretrain.Config:
    return dataclasses.replace(
        pretrain.SMOKE,
        run_dir=str(run_dir),
        train=dataclasses.replace(pretrain.SMOKE.train, **train),
        data=DataConfig(sources=(f"{text}/train",), eval_sources=(f"{text}/eval",)),
    )


def run(config) -> list[str]:
    lines = []
    pretrain.pretrain(config, pretrain.tokenizer_of(config.data), log=lines.append)
    return lines


class Messages(logging.Handler):
    """Collects log messages. Unlike caplog, a fixture of the module can use it."""

    def __init__(self):
        super().__init__()
        self.found = []

    def emit(self, record):
        self.found.append(record.getMessage())


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    """A run of the smoke recipe on one device: its folder, its output and what JAX logged."""
    folder, messages = tmp_path_factory.mktemp("smoke") / "run", Messages()
    logger = logging.getLogger("jax")
    logger.addHandler(messages)
    try:
        with jax.log_compiles(), on_devices(1):
            lines = run(smoke(text, folder))
    finally:
        logger.removeHandler(messages)
    return folder, lines, messages.found


def test_pretrain_smoke_learns_compiles_once_and_logs(finished):
    folder, lines, logged = finished
    compiled = [
        message for message in logged if "Finished XLA compilation of jit(train_step)" in message
    ]
    assert len(compiled) == 1, compiled
    shown = "\n".join(lines)
    for part in (
        "parameters",
        "memory:",
        "batch: 16 x 64 = 1,024 tokens",
        "cost:",
        "ETA",
        "held-out colors",
        "1.12 epochs",
    ):
        assert part in shown
    losses = [
        float(line.split("loss ")[1].split()[0])
        for line in lines
        if line.startswith("step") and "held out" not in line
    ]
    assert losses[-1] < losses[0] - 2
    model, params = load_pretrained(folder)
    assert model == pretrain.SMOKE.model and params.embed.shape == (512, 64)


def test_pretrain_refuses_invalid_settings_and_leaves_no_folder(text, tmp_path):
    small = dataclasses.replace(
        smoke(text, tmp_path / "a"),
        model=ModelConfig(vocab_size=300, hidden_size=64, num_layers=1, num_heads=2, ffn_size=64),
    )
    with pytest.raises(QwenJaxError, match="464 ids"):
        run(small)
    with pytest.raises(QwenJaxError, match="num_steps"):
        run(smoke(text, tmp_path / "b", num_steps=5))
    with pytest.raises(QwenJaxError, match="no training data is set"):
        pretrain.main(dataclasses.replace(smoke(text, tmp_path), data=DataConfig()))
    assert list(tmp_path.iterdir()) == []


def test_pretrain_refuses_to_resume_with_another_config(text, finished):
    with pytest.raises(QwenJaxError, match="train.seed: was 0, now 1"):
        run(smoke(text, finished[0], seed=1))
