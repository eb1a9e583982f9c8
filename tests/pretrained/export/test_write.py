"""Exports keep what training has not changed: settings byte for byte, weights bit for bit."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from qwen_jax import sizes
from qwen_jax.attention_config import AttentionVariant, ContextExtension
from qwen_jax.errors import CheckpointError, ConfigError
from qwen_jax.model.spec import param_specs
from qwen_jax.pretrained.from_run import save_run
from qwen_jax.pretrained.huggingface import (
    convert_pretrained,
    load_pretrained,
    open_pretrained,
    save_pretrained,
)
from qwen_jax.pretrained.tensors import shard_bytes
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.load import load_tokenizer
from qwen_jax.train.attempts.carried import read_released

BYTES = Tokenizer({bytes([byte]): byte for byte in range(256)})
MODEL = dataclasses.replace(
    sizes.TINY,
    vocab_size=464,
    context_length=4096,
    num_kv_heads=2,
    rope_base=1e6,
    extension=ContextExtension(False, False),
)
QWEN3 = dataclasses.replace(
    MODEL, head_size=10, variant=AttentionVariant(qkv_bias=False, qk_norm=True)
)
GENERATION = b'{"do_sample": true, "eos_token_id": [257, 256],   "top_k": 20}\n'


def weights(config, dtype="bfloat16"):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda spec: rng.normal(size=spec.shape).astype(dtype), param_specs(config))


def released(folder, config=MODEL, layout="qwen2", **changes):
    """Writes a folder whose JSON files are not as we would write them."""
    save_pretrained(folder, config, weights(config), layout=layout, tokenizer=BYTES)
    raw = json.loads((folder / "config.json").read_text())
    raw = {"_name_or_path": "x", "unsloth_fixed": True, "eos_token_id": 257} | raw | changes
    (folder / "config.json").write_bytes(json.dumps(raw, indent=4).encode() + b"\n\n")
    (folder / "generation_config.json").write_bytes(GENERATION)
    return folder


def through_a_run(source, tmp_path, **changes):
    """Converts to a run and back; `changes` are those of training."""
    config, params = load_pretrained(source)
    config = dataclasses.replace(config, **changes)
    save_run(tmp_path / "run", config, params, tokenizer=BYTES, released=read_released(source))
    convert_pretrained(
        open_pretrained(tmp_path / "run"),
        tmp_path / "out",
        layout="qwen2" if config.variant.qkv_bias else "qwen3",
        tokenizer=BYTES,
        released=read_released(tmp_path / "run"),
    )
    return tmp_path / "out"


@pytest.mark.parametrize("config, layout", [(MODEL, "qwen2"), (QWEN3, "qwen3")])
def test_a_folder_comes_out_of_a_run_byte_for_byte(tmp_path, config, layout):
    source = released(tmp_path / "in", config, layout)
    out = through_a_run(source, tmp_path)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "vocab.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
    before, after = (load_file(folder / "model.safetensors") for folder in (source, out))
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert after[name].dtype == "bfloat16" and after[name].tobytes() == array.tobytes(), name


def test_config_json_has_only_the_changes_of_training(tmp_path):
    source = released(tmp_path / "in", transformers_version="4.40.0")
    out = through_a_run(source, tmp_path, context_length=8192, rope_base=5e6)
    before, after = (json.loads((each / "config.json").read_text()) for each in (source, out))
    changes = {"max_position_embeddings": 8192, "rope_theta": 5000000}
    assert after == before | changes
    assert load_pretrained(out)[0].context_length == 8192


def test_config_json_of_transformers_5_keeps_its_rotary_settings_or_replaces_them(tmp_path):
    source = released(tmp_path / "in")
    raw = json.loads((source / "config.json").read_text())
    raw["rope_parameters"] = {"rope_theta": raw.pop("rope_theta"), "rope_type": "default"}
    raw["dtype"] = raw.pop("torch_dtype")
    (source / "config.json").write_text(json.dumps(raw))
    out = through_a_run(source, tmp_path)
    assert (out / "config.json").read_bytes() == (source / "config.json").read_bytes()
    changed = dataclasses.replace(load_pretrained(source)[0], rope_base=2e6)
    params = load_pretrained(source, param_dtype="float32")[1]
    save_pretrained(tmp_path / "again", changed, params, layout="qwen2", like=source)
    config = load_pretrained(tmp_path / "again")[0]
    assert (config.rope_base, config.param_dtype) == (2e6, "float32")
    found = json.loads((tmp_path / "again" / "config.json").read_text())
    assert found["dtype"] == "float32" and "rope_parameters" not in found


def test_another_layout_gets_a_config_json_of_its_own(tmp_path):
    plain = dataclasses.replace(MODEL, num_kv_heads=None)
    source = released(tmp_path / "in", plain)
    config, params = load_pretrained(source)
    save_pretrained(tmp_path / "out", config, params, layout="qwen", like=source)
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found["model_type"] == "qwen" and "unsloth_fixed" not in found


def test_eos_ids_are_those_of_the_tokenizer(tmp_path):
    save_pretrained(
        tmp_path / "out", MODEL, weights(MODEL), layout="qwen2", tokenizer=BYTES, max_shard_size=50
    )
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [BYTES.end_of_text, BYTES.im_end]


def test_generation_config_is_that_of_the_tokenizer_that_was_loaded(tmp_path):
    source = released(tmp_path / "in")
    save_pretrained(
        tmp_path / "out", MODEL, weights(MODEL), layout="qwen2", tokenizer=load_tokenizer(source)
    )
    assert (tmp_path / "out/generation_config.json").read_bytes() == GENERATION


@pytest.mark.parametrize(
    "size, expected",
    [
        ("5GB", 5 * 10**9),
        ("500 MB", 5 * 10**8),
        ("2gib", 2 << 30),
        ("1.5", 15 * 10**8),  # as --max_shard_gb was
        ("1e-3GB", 10**6),
        (700, 700),
    ],
)
def test_shard_bytes_reads_sizes(size, expected):
    assert shard_bytes(size, "--max_shard_size") == expected


@pytest.mark.parametrize("size", ["", "GB", "5 XB", "-1GB", "0", "1.2.3GB", 0, "nan"])
def test_shard_bytes_refuses_what_is_no_size(size):
    with pytest.raises(ConfigError, match="use a size such as 5GB"):
        shard_bytes(size, "--max_shard_size")


def test_save_pretrained_in_shards_lists_every_tensor_in_the_index(tmp_path):
    save_pretrained(tmp_path / "out", MODEL, weights(MODEL), layout="qwen2", max_shard_size="20KB")
    files = sorted(tmp_path.glob("out/model-*.safetensors"))
    assert len(files) > 2 and all(file.stat().st_size < 40_000 for file in files)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    found = {name: (file.name, array) for file in files for name, array in load_file(file).items()}
    assert index["weight_map"] == {name: file for name, (file, _) in found.items()}
    assert index["metadata"]["total_size"] == sum(array.nbytes for _, array in found.values())


def test_a_readme_of_the_user_stays_and_ours_is_replaced(tmp_path):
    out = tmp_path / "out"
    save_pretrained(tmp_path / "in", MODEL, weights(MODEL), layout="qwen2")
    source = open_pretrained(tmp_path / "in")
    from qwen_jax.pretrained.export.folder import CARD_MARK

    convert_pretrained(source, out, layout="qwen2", card=f"{CARD_MARK}\nfirst")
    convert_pretrained(source, out, layout="qwen2", card=f"{CARD_MARK}\nsecond")
    assert (out / "README.md").read_text().endswith("second")
    (out / "README.md").write_text("mine")
    convert_pretrained(source, out, layout="qwen2", card=f"{CARD_MARK}\nthird")
    assert (out / "README.md").read_text() == "mine"
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="thesis.tex"):
        convert_pretrained(source, out, layout="qwen2")
