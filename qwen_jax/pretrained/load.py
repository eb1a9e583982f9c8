"""A model's folder -> what inference starts from: config, weights and tokenizer."""

from jax.sharding import Mesh

from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError
from qwen_jax.pretrained.huggingface import load_pretrained
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.model_folder import check_vocabulary, find_tokenizer
from qwen_jax.types import Params


def load_model(
    checkpoint: str, tokenizer: str | None = None, *, mesh: Mesh | None = None
) -> tuple[ModelConfig, Params, Tokenizer]:
    """The model of a run folder or a released folder, and its tokenizer.

    Args:
      tokenizer: a .tiktoken file; None: the tokenizer in the folder.
      mesh: the devices that the weights are cut over; None: one device.

    Raises:
      ConfigError: no folder is named, no tokenizer is found, or one of another model.
      CheckpointError, TokenizerError: files that are missing or damaged.
    """
    if not checkpoint:
        raise ConfigError("no model.", "--checkpoint", "name a folder; --help shows how.")
    found = find_tokenizer(checkpoint, tokenizer)
    config, params = load_pretrained(checkpoint, mesh=mesh)
    check_vocabulary(found, config, flag="--tokenizer")
    return config, params, found
