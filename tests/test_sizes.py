"""sizes.py against Table 1 and the released checkpoints."""

import pytest

from qwen_jax import sizes
from qwen_jax.errors import ConfigError
from qwen_jax.model.spec import count


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("1.8b", 1_836_828_672),
        ("7b", 7_721_324_544),
        ("14b", 14_167_290_880),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-1.7b", 1_720_574_976),
        ("qwen3-4b", 4_022_468_096),
        ("qwen3-8b", 8_190_735_360),
        ("qwen3-14b", 14_768_307_200),
        ("qwen3-32b", 32_762_123_264),
        ("0.6m", 640_992),
        ("2.6m", 2_583_840),
        ("toy_8m", 8_393_984),
        ("25m", 24_983_040),
        ("50m", 50_871_808),
        ("toy_110m", 134_133_504),
        ("350m", 348_240_896),
    ],
)
def test_count_equals_the_released_checkpoint(name, parameters):
    assert count(sizes.by_name(name)) == parameters


@pytest.mark.parametrize(
    "name, hidden, layers, heads",
    [("1.8b", 2048, 24, 16), ("7b", 4096, 32, 32), ("14b", 5120, 40, 40)],
)
def test_sizes_equal_table_1(name, hidden, layers, heads):
    config = sizes.by_name(name)
    assert (config.hidden_size, config.num_layers, config.num_heads) == (hidden, layers, heads)
    assert config.head_dim == 128 and config.kv_heads == heads
    assert config.ffn_size == -(-(8 * hidden) // (3 * 128)) * 128
    assert not config.tie_embeddings


def test_by_name_suggests_the_closest_size():
    with pytest.raises(ConfigError, match="did you mean '14b'"):
        sizes.by_name("14bn")
