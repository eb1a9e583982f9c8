"""The model sizes of Table 1, some of Qwen3, and toy sizes for one machine.

FFN widths and padded vocabularies are those of the released configs. Report 2.3 gives 8/3 of the
hidden size as the FFN width; the configs round it up to a multiple of 128. tests/test_sizes.py
checks the parameter counts against the released checkpoints.
"""

import dataclasses

from qwen_jax.attention_config import AttentionVariant, ContextExtension
from qwen_jax.config import ModelConfig
from qwen_jax.errors import unknown_name

QWEN_1_8B = ModelConfig(  # 1,836,828,672 parameters
    vocab_size=151936, hidden_size=2048, num_layers=24, num_heads=16, ffn_size=5504
)
QWEN_7B = ModelConfig(  # 7,721,324,544 parameters
    vocab_size=151936, hidden_size=4096, num_layers=32, num_heads=32, ffn_size=11008
)
QWEN_14B = ModelConfig(  # 14,167,290,880 parameters
    vocab_size=152064, hidden_size=5120, num_layers=40, num_heads=40, ffn_size=13696
)

QWEN3_8B = ModelConfig(  # 8,190,735,360 parameters
    vocab_size=151936,
    hidden_size=4096,
    num_layers=36,
    num_heads=32,
    num_kv_heads=8,
    ffn_size=12288,
    context_length=40960,
    rope_base=1e6,
    variant=AttentionVariant(qkv_bias=False, qk_norm=True),
    extension=ContextExtension(dynamic_ntk=False, logn=False),
)
QWEN3_0_6B = dataclasses.replace(  # 596,049,920 parameters
    QWEN3_8B,
    hidden_size=1024,
    num_layers=28,
    num_heads=16,
    head_size=128,
    ffn_size=3072,
    tie_embeddings=True,
)

TOY_8M = ModelConfig(  # 8.4M parameters, the size used in benchmarks/train/train_step.py
    vocab_size=8192,
    hidden_size=256,
    num_layers=4,
    num_heads=4,
    ffn_size=1024,
    context_length=256,
    compute_dtype="float32",
    unroll_layers=4,
)
TOY_110M = ModelConfig(
    vocab_size=32000,
    hidden_size=768,
    num_layers=12,
    num_heads=12,
    ffn_size=2048,
    context_length=1024,
)
TINY = ModelConfig(  # for tests: all dimensions are distinct and even
    vocab_size=128,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    ffn_size=48,
    context_length=16,
    compute_dtype="float32",
)

SIZES = {
    "1.8b": QWEN_1_8B,
    "7b": QWEN_7B,
    "14b": QWEN_14B,
    "qwen3-0.6b": QWEN3_0_6B,
    "qwen3-8b": QWEN3_8B,
    "toy_8m": TOY_8M,
    "toy_110m": TOY_110M,
    "tiny": TINY,
}


def by_name(name: str) -> ModelConfig:
    """Returns the config of a size in Table 1 (1.8b, 7b, 14b) or of a toy size.

    Raises:
      ConfigError: the name is unknown.
    """
    if name not in SIZES:
        raise unknown_name("size", name, SIZES, "sizes.by_name")
    return SIZES[name]
