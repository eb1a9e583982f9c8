"""load_model: the config, weights and tokenizer for inference."""

import pytest

from qwen_jax.errors import QwenJaxError
from qwen_jax.pretrained.load import load_model
from tests.helpers.tiny_checkpoint import CONFIG, TOKENIZER, write


def test_load_model_gives_config_weights_and_a_tokenizer_that_fits(tmp_path):
    folder = write(tmp_path / "tiny")
    config, params, tokenizer = load_model(str(folder))
    assert config.vocab_size == params.embed.shape[0] == CONFIG.vocab_size
    assert tokenizer.fingerprint == TOKENIZER.fingerprint
    more = tmp_path / "more.tiktoken"
    larger = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256}
    type(TOKENIZER)(larger).save(more)
    with pytest.raises(QwenJaxError, match="465 ids, but the model has vocab_size=464"):
        load_model(str(folder), str(more))
    with pytest.raises(QwenJaxError, match="no model"):
        load_model("")
