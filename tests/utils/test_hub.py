"""Names of models on the Hub: a made-up cache, a local folder of that name, no network."""

import json
import sys

import pytest

from qwen_jax.errors import CheckpointError, ConfigError
from qwen_jax.utils import hub

NAME = "Someone/Qwen9-1M"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder of the cache of NAME, with a config.json and no weights; no network."""
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="the extra hub")
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "cache" / "models--Someone--Qwen9-1M"
    snapshot = model / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("a" * 40)
    (snapshot / "config.json").write_text("{}")
    original = huggingface_hub.snapshot_download

    def download(name, *, local_files_only=False, **options):
        if not local_files_only:
            raise OSError("there is no network")
        return original(name, cache_dir=tmp_path / "cache", local_files_only=True, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return snapshot


def test_local_folder_uses_a_complete_model_of_the_cache(cache):
    (cache / "model.safetensors").write_bytes(b"")
    assert hub.local_folder(NAME) == str(cache)
    assert hub.name_of(cache) == NAME


def test_local_folder_of_an_incomplete_model_says_the_command_that_brings_it(cache):
    for weights in ({}, {"weight_map": {"a": "model-1.safetensors"}}):
        if weights:
            (cache / "model.safetensors.index.json").write_text(json.dumps(weights))
        with pytest.raises(CheckpointError, match=f"hf download {NAME}") as error:
            hub.local_folder(NAME, where="--init_from")
        assert error.value.where == "--init_from"
    with pytest.raises(CheckpointError, match="hf download Someone/Other"):
        hub.local_folder("Someone/Other")


def test_local_folder_prefers_a_local_folder_of_that_name(cache, tmp_path):
    (cache / "model.safetensors").write_bytes(b"")
    (tmp_path / "Someone" / "Qwen9-1M").mkdir(parents=True)
    assert hub.local_folder(NAME) == NAME


def test_local_folder_leaves_paths_to_whoever_opens_them(cache, tmp_path):
    (tmp_path / "runs").mkdir()
    for path in ("runs/sfft", "/nowhere/at/all", "one", "./a/b", "a/b/c", "~/models", "runs/"):
        assert hub.local_folder(path) == path


def test_local_folder_without_the_library_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"qwen_jax\[hub\]"):
        hub.local_folder(NAME)


def test_adapter_base_is_relative_to_the_working_directory_or_the_adapter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adapter = tmp_path / "models" / "adapter"
    (adapter / "base").mkdir(parents=True)
    settings = adapter / hub.ADAPTER
    settings.write_text(json.dumps({"base_model_name_or_path": "base"}))
    assert hub.is_adapter(adapter) and hub.adapter_base(adapter) == str(adapter / "base")
    (tmp_path / "base").mkdir()
    assert hub.adapter_base(adapter) == "base"
    settings.write_text(json.dumps({"base_model_name_or_path": "/nowhere"}))
    with pytest.raises(CheckpointError, match="set base_model_name_or_path"):
        hub.adapter_base(adapter)
    settings.write_text("{}")
    with pytest.raises(CheckpointError, match="does not name its base"):
        hub.adapter_base(adapter)
