"""transformers' Qwen2 of the size that ours has, for the peers beside this file."""

import transformers


def make_config(size: dict, *, positions: int, **more) -> transformers.Qwen2Config:
    """Args:
    size: the fields of our ModelConfig.
    positions: the most tokens in a row.
    more: of Qwen2Config.
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
    """Of what the peer runs on."""
    import torch

    return f"torch {torch.__version__}, transformers {transformers.__version__}"
