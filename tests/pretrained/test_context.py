"""The length of a row of training data is not the context of the model."""

import dataclasses
import json

import pytest

from experiments import convert, sft
from experiments import pretrain as experiment
from qwen_jax.align.train_sft import SFTData
from qwen_jax.attention_config import ContextExtension
from qwen_jax.config import DataConfig, OptimizerConfig, TrainConfig
from qwen_jax.errors import ConfigError
from qwen_jax.model.spec import param_specs
from qwen_jax.pretrained.huggingface import save_pretrained
from qwen_jax.pretrained.overrides import ModelOverrides
from qwen_jax.pretrained.start import start
from qwen_jax.train.job import at_row_length, row_length
from qwen_jax.train.pretrain import pretrain
from tests.helpers.alignment import config_of, run
from tests.helpers.tiny_checkpoint import CONFIG, TOKENIZER
from tests.helpers.weights import initial

LONG = dataclasses.replace(
    CONFIG,
    num_layers=1,
    num_kv_heads=2,
    context_length=32768,
    extension=ContextExtension(False, False),
)
GENERATION = b'{"eos_token_id": [258, 256], "top_k": 20}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Qwen2 folder of 32k, and conversations."""
    folder = tmp_path_factory.mktemp("long")
    params = initial(param_specs(LONG))
    save_pretrained(folder / "base", LONG, params, layout="qwen2", tokenizer=TOKENIZER)
    raw = json.loads((folder / "base" / "config.json").read_text()) | {"unsloth_fixed": True}
    (folder / "base" / "config.json").write_text(json.dumps(raw, indent=4))
    (folder / "base" / "generation_config.json").write_bytes(GENERATION)
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    rows = [json.dumps({"messages": turns}) for _ in range(8)]
    (folder / "chat.jsonl").write_text("\n".join(rows))
    return folder


def config(folder, run_dir, rows, context=None):
    return config_of(
        sft,
        folder,
        run_dir,
        data={
            "conversations": (str(folder / "chat.jsonl"),),
            "context_length": rows,
            "eval_fraction": 0.0,
        },
        train={"num_steps": 1, "batch_size": 8},
        optimizer=OptimizerConfig(),
        model=ModelOverrides(compute_dtype="float32", context_length=context),
    )


def test_a_model_of_32k_stays_one_after_a_step_on_rows_of_64(folder, tmp_path):
    output = run(sft, config(folder, tmp_path / "run", 64))
    assert "batch: 8 x 64 = 512 tokens" in output and "rows: " in output
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (record["model"]["context_length"], record["data"]["context_length"]) == (32768, 64)
    convert.main(convert.Config(input=str(tmp_path / "run"), output=str(tmp_path / "out")))
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / "base" / name).read_bytes(), name
    card = (tmp_path / "out" / "README.md").read_text()
    assert "supervised fine-tuning" in card and "chat.jsonl" in card
    # A run that starts from that run carries the settings on.
    again = dataclasses.replace(config(folder, tmp_path / "2", 64), init_from=str(tmp_path / "run"))
    run(sft, again)
    assert (tmp_path / "2" / "generation_config.json").read_bytes() == GENERATION
    assert (tmp_path / "2" / "released_config.json").exists()


def context_of(config, rows):
    return start(config, rows)[0].model.context_length


def test_start_keeps_the_context_unless_rows_are_longer_or_it_is_set(folder, tmp_path):
    assert context_of(config(folder, tmp_path, 64), 64) == 32768
    assert context_of(config(folder, tmp_path, None), None) == 32768
    assert context_of(config(folder, tmp_path, 65536), 65536) == 65536
    assert context_of(config(folder, tmp_path, 64, 1024), 64) == 1024
    with pytest.raises(ConfigError, match="rows of 2048 tokens are longer .* of 1024"):
        start(config(folder, tmp_path, 2048, 1024), 2048)


def test_start_of_a_resumed_run_keeps_the_context_that_it_has_recorded(folder, tmp_path):
    """Earlier versions recorded the length of rows."""
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps({"model": {"context_length": 64}}))
    assert context_of(config(folder, tmp_path, 64), 64) == 64


def test_row_length_is_that_of_the_data_or_the_context():
    @dataclasses.dataclass(frozen=True)
    class Run:
        model = LONG
        data: object = None

    assert row_length(Run()) == row_length(Run(SFTData())) == 32768
    assert row_length(Run(SFTData(context_length=128))) == 128
    assert at_row_length(Run(DataConfig(context_length=64))).context_length == 64


def test_pretrain_refuses_rows_longer_than_the_context(tmp_path):
    settings = experiment.Config(
        model=CONFIG,
        optimizer=OptimizerConfig(),
        train=TrainConfig(num_steps=1, batch_size=1),
        data=DataConfig(context_length=128),
        run_dir=str(tmp_path),
    )
    with pytest.raises(ConfigError, match="rows of 128 tokens are longer .* context of 64"):
        pretrain(settings, TOKENIZER)
