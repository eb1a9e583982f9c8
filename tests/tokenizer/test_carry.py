"""The files of a tokenizer come out as they went in."""

import dataclasses

import jax
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.model.spec import param_specs
from qwen_jax.pretrained.from_run import save_run
from qwen_jax.pretrained.huggingface import save_pretrained
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.carry import save_tokenizer
from qwen_jax.tokenizer.load import load_tokenizer
from tests.helpers import tokenizer_folders as folders


def contents(folder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("form", folders.FORMS)
def test_save_tokenizer_keeps_every_byte(tmp_path, form):
    folders.write(tmp_path / "from", form)
    (tmp_path / "from/additional_chat_templates").mkdir()
    (tmp_path / "from/additional_chat_templates/tool_use.jinja").write_text("{{ tools }}")
    tokenizer = load_tokenizer(tmp_path / "from")
    (tmp_path / "to").mkdir()
    Tokenizer(folders.ranks()).save(tmp_path / "to" / "tokenizer.tiktoken")  # an earlier version's
    save_tokenizer(tmp_path / "to", tokenizer)
    assert contents(tmp_path / "to") == contents(tmp_path / "from")
    assert load_tokenizer(tmp_path / "to").settings == tokenizer.settings


def test_save_tokenizer_writes_a_vocabulary_that_was_made_here(tmp_path):
    save_tokenizer(tmp_path, Tokenizer(folders.ranks()))
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.tiktoken"]
    save_tokenizer(tmp_path, load_tokenizer(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.tiktoken"]


@pytest.mark.parametrize("form", ["released", "transformers 4", "transformers 5", "slow"])
def test_exports_and_runs_have_the_files_of_the_tokenizer(tmp_path, form):
    folders.write(tmp_path / "from", form)
    tokenizer = load_tokenizer(tmp_path / "from")
    config = dataclasses.replace(sizes.TINY, vocab_size=384)
    params = jax.tree.map(lambda spec: np.zeros(spec.shape, np.float32), param_specs(config))
    save_pretrained(tmp_path / "out", config, params, layout="qwen2", tokenizer=tokenizer)
    assert contents(tmp_path / "from").items() <= contents(tmp_path / "out").items()
    save_pretrained(tmp_path / "out", config, params, layout="qwen2", tokenizer=tokenizer)
    save_run(tmp_path / "run", config, params, tokenizer=tokenizer)
    assert contents(tmp_path / "from").items() <= contents(tmp_path / "run").items()
    assert load_tokenizer(tmp_path / "run").settings == tokenizer.settings
