"""Loads the config, weights and tokenizer of a model folder for inference."""

from jax.sharding import Mesh

from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError
from qwen_jax.pretrained.huggingface import load_pretrained
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.model_folder import check_vocabulary, find_tokenizer
from qwen_jax.types import Params


def load_model(
    checkpoint: str,
    tokenizer: str | None = None,
    *,
    mesh: Mesh | None = None,
    allow_nonfinite: bool = False,
) -> tuple[ModelConfig, Params, Tokenizer]:
    """Loads the model of a run folder or a released folder, and its tokenizer.

    Args:
      checkpoint: path of the folder.
      tokenizer: a .tiktoken file; None: the tokenizer in the folder.
      mesh: the devices to shard the weights over; None: one device.
      allow_nonfinite: whether to accept weights with NaN or infinity.

    Raises:
      ConfigError: `checkpoint` is empty, no tokenizer is found, or it does not fit the model.
      CheckpointError, TokenizerError: files are missing or corrupted, or weights are not finite.
    """
    if not checkpoint:
        raise ConfigError("no model is set.", "--checkpoint", "pass a model folder; see --help.")
    found = find_tokenizer(checkpoint, tokenizer)
    config, params = load_pretrained(checkpoint, mesh=mesh, allow_nonfinite=allow_nonfinite)
    check_vocabulary(found, config, flag="--tokenizer")
    return config, params, found
