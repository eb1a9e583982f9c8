"""The tables of the released layouts: complete, reversible, and with the released sizes."""

import dataclasses
import math
import pathlib

import jax
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.config import ModelConfig
from qwen_jax.model.spec import count, param_specs
from qwen_jax.pretrained.config_json import layout_of, read_config, write_config
from qwen_jax.pretrained.layouts import LAYOUTS, QWEN, QWEN2, Weight


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_list_every_weight_exactly_once(layout):
    paths = [
        jax.tree_util.keystr(path).lstrip(".")
        for path, _ in jax.tree_util.tree_leaves_with_path(
            param_specs(dataclasses.replace(sizes.TINY, variant=layout.variant))
        )
    ]
    assert sorted(weight.path for weight in layout.weights) == sorted(paths)


@pytest.mark.parametrize(
    "pattern, shape, released",
    [
        ("D N H -> (N H) D", (5, 2, 3), (6, 5)),
        ("N H D -> D (N H)", (2, 3, 5), (5, 6)),
        ("N H -> (N H)", (2, 3), (6,)),
        ("D F -> F D", (5, 7), (7, 5)),
        ("V D -> V D", (7, 5), (7, 5)),
    ],
)
def test_weight_pattern_is_invertible(pattern, shape, released):
    weight = Weight("", "", pattern)
    array = np.arange(math.prod(shape)).reshape(shape)
    assert weight.to_released(array).shape == weight.released_shape(shape) == released
    assert np.array_equal(weight.from_released(weight.to_released(array), shape), array)


def test_weight_to_released_computes_our_einsum():
    rng = np.random.default_rng(0)
    x, ours = rng.normal(size=5), rng.normal(size=(5, 2, 3))
    released = Weight("", "", "D N H -> (N H) D").to_released(ours)
    np.testing.assert_allclose((released @ x).reshape(2, 3), np.einsum("D,DNH->NH", x, ours))


@pytest.mark.parametrize(
    "config, total",
    [
        (sizes.QWEN_1_8B, 1_836_828_672),
        (sizes.QWEN_7B, 7_721_324_544),
        (sizes.QWEN_14B, 14_167_290_880),
    ],
    ids=["1.8b", "7b", "14b"],
)
def test_layout_groups_add_up_to_the_parameters_of_a_released_size(config, total):
    for layout in (QWEN, QWEN2):
        groups = list(layout.groups(param_specs(config)))
        assert sum(math.prod(group.shape()) * len(group.names()) for group in groups) == total


def qwen2(vocab, hidden, ffn, layers, heads, kv_heads, *, tied=False, base=1e6, length=32768):
    """Returns a config.json as released."""
    return {
        "model_type": "qwen2",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": tied,
        "rope_theta": base,
        "max_position_embeddings": length,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "use_sliding_window": False,
        "sliding_window": 32768,
        "max_window_layers": 21,
        "initializer_range": 0.02,
        "attention_dropout": 0.0,
        "torch_dtype": "bfloat16",
    }


def qwen(vocab, hidden, ffn, layers, heads, *, base=10000, length=8192, extend=True):
    return {
        "model_type": "qwen",
        "architectures": ["QWenLMHeadModel"],
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "kv_channels": 128,
        "rotary_emb_base": base,
        "rotary_pct": 1.0,
        "seq_length": length,
        "max_position_embeddings": 32768,
        "layer_norm_epsilon": 1e-6,
        "use_dynamic_ntk": extend,
        "use_logn_attn": extend,
        "no_bias": True,
        "scale_attn_weights": True,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
    }


@pytest.mark.parametrize(
    "raw, total",
    [
        (qwen(151936, 2048, 11008, 24, 16), 1_836_828_672),
        (qwen(151936, 4096, 22016, 32, 32), 7_721_324_544),
        (qwen(152064, 5120, 27392, 40, 40, length=2048), 14_167_290_880),
        (
            qwen(152064, 8192, 49152, 80, 64, base=1000000, length=32768, extend=False),
            72_287_920_128,
        ),
        (qwen2(151936, 1024, 2816, 24, 16, 16, tied=True), 463_987_712),  # Qwen1.5-0.5B
        (qwen2(151936, 2560, 6912, 40, 20, 20, base=5e6), 3_950_369_280),  # Qwen1.5-4B
        (qwen2(151936, 896, 4864, 24, 14, 2, tied=True), 494_032_768),  # Qwen2-0.5B
        (qwen2(151936, 1536, 8960, 28, 12, 2, tied=True), 1_543_714_304),  # Qwen2-1.5B
        (qwen2(152064, 3584, 18944, 28, 28, 4), 7_615_616_512),  # Qwen2-7B
        (qwen2(152064, 8192, 29568, 80, 64, 8), 72_706_203_648),  # Qwen2-72B
    ],
    ids=["1.8b", "7b", "14b", "72b", "1.5-0.5b", "1.5-4b", "2-0.5b", "2-1.5b", "2-7b", "2-72b"],
)
def test_read_config_gives_models_of_the_released_sizes(raw, total):
    layout = layout_of(raw, pathlib.Path("config.json"))
    config = ModelConfig(**read_config(raw, layout, pathlib.Path("config.json")))
    assert count(config) == total
    assert config.rope_base == raw.get("rope_theta", raw.get("rotary_emb_base"))
    assert config.extension.logn == raw.get("use_logn_attn", False)
    again = write_config(config, layout, dtype="bfloat16", end_of_text=None)
    stretch = 4 if config.extension.dynamic_ntk else 1
    assert again["max_position_embeddings"] == stretch * config.context_length
    same = raw.keys() - {"sliding_window", "max_window_layers", "max_position_embeddings"}
    assert {key: again[key] for key in same} == {key: raw[key] for key in same}


def test_layout_groups_have_the_names_and_shapes_of_the_released_7b():
    shapes = {
        name: group.shape()
        for group in QWEN.groups(param_specs(sizes.QWEN_7B))
        for name in group.names()
    }
    assert len(shapes) == 32 * 8 + 3
    assert shapes["transformer.wte.weight"] == shapes["lm_head.weight"] == (151936, 4096)
    assert shapes["transformer.h.31.attn.c_attn.weight"] == (12288, 4096)
    assert shapes["transformer.h.0.attn.c_attn.bias"] == (12288,)
    assert shapes["transformer.h.0.mlp.w1.weight"] == (11008, 4096)
    assert shapes["transformer.h.0.mlp.c_proj.weight"] == (4096, 11008)
    assert shapes["transformer.ln_f.weight"] == (4096,)
