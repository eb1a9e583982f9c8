"""Small files of model and run folders, damaged in many ways: the error is always ours."""

import contextlib
import json
import pathlib
import tarfile

import pytest

from qwen_jax.data.shard_manifest import own_hash
from qwen_jax.data.shards import open_shards
from qwen_jax.errors import CheckpointError, ConfigError, QwenJaxError
from qwen_jax.pretrained.adapters.merged import adapters_of, read_base
from qwen_jax.pretrained.from_run import is_run, run_config
from qwen_jax.pretrained.huggingface import load_pretrained, open_pretrained, save_pretrained
from qwen_jax.tokenizer.load import load_tokenizer
from qwen_jax.tokenizer.model_folder import find_tokenizer
from qwen_jax.train.run_folder import identity
from qwen_jax.utils.files import read_json
from tests.helpers import tiny_checkpoint
from tests.helpers.damage import ARCHIVES, check_reader, odd_files, seeds


def read_run(folder: pathlib.Path) -> None:
    raw = read_json(folder / "config.json", error=CheckpointError)
    if is_run(raw):
        run_config(raw, folder)
        adapters_of(raw, folder)
        identity(raw)


# File -> its reader, given its folder.
READERS = {
    "released/config.json": open_pretrained,
    "sharded/tokenizer.json": load_tokenizer,
    "released/tokenizer_config.json": load_tokenizer,
    "sharded/config.json": open_pretrained,
    "sharded/model.safetensors.index.json": open_pretrained,
    "run/config.json": read_run,
    "run/base.json": read_base,
    "run/tokenizer.tiktoken": find_tokenizer,
    "shards/manifest.json": open_shards,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders with small files of every kind."""
    root = tmp_path_factory.mktemp("folders")
    for name in ("pretrain", "sft_lora"):
        with tarfile.open(ARCHIVES / f"{name}.tar.gz") as tar:
            tar.extractall(root / name, filter="data")
    (root / "sft_lora/runs/sft_lora").rename(root / "run")
    (root / "pretrain/data/text/train").rename(root / "shards")
    base = json.loads((root / "run/base.json").read_text())
    (root / "run/base.json").write_text(
        json.dumps(base | {"folder": str(root / "sft_lora/runs/base")})
    )
    tiny_checkpoint.write(root / "released", num_layers=1)
    config, params = load_pretrained(root / "released")
    save_pretrained(
        root / "sharded",
        config,
        params,
        layout="qwen2",
        tokenizer=tiny_checkpoint.TOKENIZER,
        max_shard_size=100_000,
    )
    return root


@seeds(20)
@pytest.mark.parametrize("name", READERS)
def test_readers_name_a_damaged_file(folders, name, seed):
    path = folders / name
    found = check_reader(path, lambda: READERS[name](path.parent), seed=seed, times=60)
    assert found.get("read", 0) < 60, found


@pytest.mark.parametrize("name", READERS)
def test_readers_refuse_what_is_not_a_file(folders, name):
    path = folders / name
    for kind in odd_files(path):
        with contextlib.suppress(QwenJaxError):
            READERS[name](path.parent)
            assert "tokenizer_config" in name, kind  # optional: without it, Qwen's special tokens


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"num_hidden_layers": 10**9},
            "num_hidden_layers is invalid: num_layers=1000000000 is not",
        ),
        ({"vocab_size": 151936.5}, "vocab_size is invalid"),
        ({"hidden_size": True}, "hidden_size is invalid"),
        ({"seq_length": "2048"}, "seq_length='2048' is not a number"),
        ({"rotary_emb_base": 1e300}, "rotary_emb_base is invalid"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon is invalid"),
        ({"model_type": ["qwen"]}, "unknown model_type"),
        ({"rope_scaling": "linear"}, "rope_scaling='linear' is not a JSON object"),
        ({"layer_types": [3, "sliding"]}, "layer_types with 3, sliding"),
    ],
)
def test_open_pretrained_names_a_wrong_setting(folders, change, message):
    path = folders / "released/config.json"
    raw = path.read_text()
    path.write_text(json.dumps(json.loads(raw) | change))
    try:
        with pytest.raises(ConfigError, match=message) as caught:
            open_pretrained(path.parent)
        assert str(path) in caught.value.where
    finally:
        path.write_text(raw)


def test_run_config_names_a_wrong_setting(folders):
    raw = json.loads((folders / "run/config.json").read_text())
    for change, message in (
        ({"num_layers": 10**9}, "model.num_layers: num_layers=1000000000 is not"),
        ({"hidden_size": 64.0}, "hidden_size=64.0 is not an integer"),
        ({"extension": [1]}, "extension is not a JSON object"),
        ({"extension": {"windows": 3}}, "windows=3 is not a list"),
        ({"dropout": None}, "dropout=None is not"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_config(raw | {"model": raw["model"] | change}, folders / "run")
    del raw["model"]["vocab_size"]
    with pytest.raises(ConfigError, match="has no vocab_size"):
        run_config(raw, folders / "run")


def test_read_base_refuses_adapters_on_themselves(folders, tmp_path):
    record = json.loads((folders / "run/base.json").read_text())
    for name, base in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        changed = record | {"folder": str(tmp_path / base)}
        (tmp_path / name / "base.json").write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match="in the end itself"):
        read_base(tmp_path / "a")


@pytest.mark.parametrize(
    "name", ["../train/tokens-00000.bin", "/etc/passwd", "..", "a/b", "C:x", ""]
)
def test_open_shards_refuses_files_of_other_folders(folders, tmp_path, name):
    record = json.loads((folders / "shards/manifest.json").read_text())
    record["files"][0]["file"] = name
    del record["sha256"]
    record["sha256"] = own_hash(record)  # by who wants to mislead
    (tmp_path / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(QwenJaxError, match="is not in this folder"):
        open_shards(tmp_path)
