"""The config of transformers' Qwen2 at our model's size, for the peers in this folder."""

import transformers


def make_config(size: dict, *, positions: int, **more) -> transformers.Qwen2Config:
    """Returns the Qwen2Config of the given size.

    Args:
      size: fields of our ModelConfig.
      positions: maximum sequence length in tokens.
      more: other fields of Qwen2Config.
    """
    return transformers.Qwen2Config(
        vocab_size=size["vocab_size"],
        hidden_size=size["hidden_size"],
        num_hidden_layers=size["num_layers"],
        num_attention_heads=size["num_heads"],
        num_key_value_heads=size["num_heads"],
        intermediate_size=size["ffn_size"],
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        **more,
    )


def versions() -> str:
    """Returns the versions of the peer's libraries."""
    import torch

    return f"torch {torch.__version__}, transformers {transformers.__version__}"
