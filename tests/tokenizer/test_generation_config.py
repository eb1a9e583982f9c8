"""generation_config.json: stop ids, sampling defaults, and its bytes in runs and exports."""

import json

import pytest

from qwen_jax.errors import TokenizerError
from qwen_jax.tokenizer import generation_config
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.carry import save_tokenizer
from qwen_jax.tokenizer.huggingface import write_tokenizer
from qwen_jax.tokenizer.load import load_tokenizer
from qwen_jax.tokenizer.model_folder import find_tokenizer
from qwen_jax.tokenizer.settings import Settings
from tests.helpers import tokenizer_folders as folders

GENERATION = b'{\n "eos_token_id": [258, 256],\n "temperature": 0.6, "top_k": 20, "top_p": 1}'


def test_eos_ids_and_sampling_read_what_released_files_have():
    settings = Settings(generation=json.loads(GENERATION) | {"do_sample": True, "max_length": 9})
    assert generation_config.eos_ids(settings) == (258, 256)
    assert generation_config.sampling(settings) == {"temperature": 0.6, "top_k": 20, "top_p": 1.0}
    assert generation_config.eos_ids(Settings(generation={"eos_token_id": 3})) == (3,)
    assert generation_config.eos_ids(Settings()) == ()
    assert generation_config.sampling(Settings()) == {}
    assert generation_config.sampling(Settings(generation={"top_k": 0, "top_p": None})) == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"eos_token_id": "x"},
        {"eos_token_id": [True]},
        {"temperature": "x"},
        {"top_k": 1.5},
        {"top_p": True},
        {"temperature": -1},
        {"temperature": float("inf")},
        {"top_k": -5},
        {"top_p": 5},
        {"repetition_penalty": 0},
    ],
)
def test_a_wrong_value_is_named(wrong):
    settings = Settings(generation=wrong)
    with pytest.raises(TokenizerError, match=next(iter(wrong))):
        generation_config.eos_ids(settings), generation_config.sampling(settings)


@pytest.mark.parametrize("form", ["transformers 5", "tiktoken"])
@pytest.mark.parametrize("layout", ["qwen", "qwen2"])
def test_runs_and_exports_keep_the_file_byte_for_byte(tmp_path, form, layout):
    folders.write(tmp_path / "a", form)
    (tmp_path / "a/generation_config.json").write_bytes(GENERATION)
    tokenizer = load_tokenizer(tmp_path / "a")
    for name in ("run", "export"):
        (tmp_path / name).mkdir()
    save_tokenizer(tmp_path / "run", tokenizer)
    again = load_tokenizer(tmp_path / "run")
    write_tokenizer(tmp_path / "export", again, layout=layout, context_length=64)
    for name in ("run", "export"):
        assert (tmp_path / name / "generation_config.json").read_bytes() == GENERATION
        assert load_tokenizer(tmp_path / name).fingerprint == tokenizer.fingerprint


def test_another_tokenizer_gets_the_file_of_the_model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/generation_config.json").write_bytes(GENERATION)
    Tokenizer(folders.ranks()).save(tmp_path / "own.tiktoken")
    found = find_tokenizer(tmp_path / "model", str(tmp_path / "own.tiktoken"))
    assert generation_config.eos_ids(found.settings) == (258, 256)
    (tmp_path / "run").mkdir()
    files = {"generation_config.json": GENERATION}  # of a vocabulary that was made here
    made = found.with_settings(Settings(files=files, generation=found.settings.generation))
    save_tokenizer(tmp_path / "run", made)
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["generation_config.json", "tokenizer.tiktoken"]


def test_resolve_lets_only_flags_that_are_set_override_the_file():
    settings = Settings(generation={"temperature": 0.6, "top_k": 20})
    given = {"temperature": None, "top_k": None, "top_p": None, "seed": 3}
    ours = {"temperature": 0.7, "top_k": None, "top_p": 0.8}
    found, said = generation_config.resolve(settings, given, ours)
    assert found == {"temperature": 0.6, "top_k": 20, "top_p": 0.8, "seed": 3}
    assert said == "temperature 0.6, top_k 20 (generation_config.json)"
    found, said = generation_config.resolve(settings, given | {"temperature": 0.7}, ours)
    assert found["temperature"] == 0.7 and "temperature" not in said
    assert generation_config.resolve(Settings(), given, ours)[1] == ""
