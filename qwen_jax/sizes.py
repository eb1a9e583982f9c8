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
QWEN3_1_7B = dataclasses.replace(  # 1,720,574,976 parameters
    QWEN3_0_6B, hidden_size=2048, ffn_size=6144, head_size=None
)
QWEN3_4B = dataclasses.replace(  # 4,022,468,096 parameters
    QWEN3_8B, hidden_size=2560, head_size=128, ffn_size=9728, tie_embeddings=True
)
QWEN3_14B = dataclasses.replace(  # 14,768,307,200 parameters
    QWEN3_8B, hidden_size=5120, num_layers=40, num_heads=40, ffn_size=17408
)
QWEN3_32B = dataclasses.replace(  # 32,762,123,264 parameters
    QWEN3_8B, hidden_size=5120, num_layers=64, num_heads=64, head_size=128, ffn_size=25600
)

# ours: sizes between a toy and 1.8B, for a learned vocabulary
TOY_0_6M = ModelConfig(  # 640,992 parameters
    vocab_size=1024,
    hidden_size=96,
    num_layers=4,
    num_heads=3,
    ffn_size=256,
    context_length=256,
    compute_dtype="float32",
    unroll_layers=4,
)
TOY_2_6M = ModelConfig(  # 2,583,840 parameters
    vocab_size=4096,
    hidden_size=160,
    num_layers=4,
    num_heads=5,
    ffn_size=448,
    context_length=256,
    compute_dtype="float32",
    unroll_layers=4,
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
TOY_25M = ModelConfig(
    vocab_size=16384,
    hidden_size=384,
    num_layers=7,
    num_heads=6,
    ffn_size=1024,
    context_length=1024,
)
TOY_50M = ModelConfig(
    vocab_size=32000,
    hidden_size=512,
    num_layers=6,
    num_heads=8,
    ffn_size=1280,
    context_length=1024,
)
TOY_110M = ModelConfig(  # 134M with the embedding
    vocab_size=32000,
    hidden_size=768,
    num_layers=12,
    num_heads=12,
    ffn_size=2048,
    context_length=1024,
)
TOY_350M = ModelConfig(
    vocab_size=32000,
    hidden_size=1024,
    num_layers=22,
    num_heads=16,
    ffn_size=2816,
    context_length=2048,
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
    "qwen3-1.7b": QWEN3_1_7B,
    "qwen3-4b": QWEN3_4B,
    "qwen3-8b": QWEN3_8B,
    "qwen3-14b": QWEN3_14B,
    "qwen3-32b": QWEN3_32B,
    "0.6m": TOY_0_6M,
    "2.6m": TOY_2_6M,
    "toy_8m": TOY_8M,
    "25m": TOY_25M,
    "50m": TOY_50M,
    "toy_110m": TOY_110M,
    "350m": TOY_350M,
    "tiny": TINY,
}
# Other names of a size.
ALIASES = {"8m": "toy_8m", "8.4m": "toy_8m", "110m": "toy_110m", "134m": "toy_110m"}


def by_name(name: str, *, where: str = "sizes.by_name") -> ModelConfig:
    """Returns the config of a size in Table 1 (1.8b, 7b, 14b), of Qwen3, or of a size of ours.

    qwen3-0.6b, -1.7b, -4b, -8b, -14b and -32b are released; 0.6m, 2.6m, toy_8m, 25m, 50m, toy_110m
    (134m with its embeddings) and 350m are ours. 1_8b and Qwen3-8B are names too.

    Raises:
      ConfigError: the name is unknown.
    """
    if (known := canonical(name)) is None:
        raise unknown_name("size", name, [*SIZES, *ALIASES], where)
    return SIZES[known]


def canonical(name: str) -> str | None:
    """Returns the key of SIZES that a name means, whatever its case; None: it is not a size."""
    for each in (name.lower(), name.lower().replace("_", ".")):
        each = ALIASES.get(each, each)
        if each in SIZES:
            return each
    return None
