"""config.json of released folders: positions, windows, and what is refused by name."""

import pathlib

import pytest

from qwen_jax.attention_config import RopeScaling
from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError
from qwen_jax.pretrained import refused
from qwen_jax.pretrained.config_json import layout_of, read_config, write_config
from qwen_jax.pretrained.layouts import QWEN2

FILE = pathlib.Path("config.json")
RAW = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_theta": 10000,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
}


def read(**changes) -> ModelConfig:
    raw = RAW | changes
    return ModelConfig(**read_config(raw, layout_of(raw, FILE), FILE))


def yarn(**changes) -> RopeScaling:
    return RopeScaling("yarn", **{"factor": 4.0, "original_length": 64} | changes)


@pytest.mark.parametrize(
    "settings, expected",
    [
        # As people add it to Qwen2.5 and Qwen3; "type" is the name of transformers before 4.43.
        (
            {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
            {"original_length": 16},
        ),
        ({"rope_type": "yarn", "factor": 4.0}, {}),
        (
            {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 32},
            {"factor": 2.0, "original_length": 32},
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5, "truncate": False},
            {"attention_factor": 1.5, "truncate": False},
        ),
        ({"rope_type": "yarn", "factor": 4.0, "beta_fast": 0, "beta_slow": 2}, {"beta_slow": 2}),
        (
            {"rope_type": "yarn", "factor": 4.0, "mscale": 2.0, "mscale_all_dim": 1.0},
            {"mscale": 2.0, "mscale_all_dim": 1.0},
        ),
        ({"rope_type": "yarn", "factor": 4.0, "beta_fast": None}, {}),
    ],
)
def test_read_config_reads_yarn_of_transformers_4_and_5(settings, expected):
    config = read(rope_scaling=settings)
    assert config.variant.rope_scaling == yarn(**expected) and config.context_length == 64
    base = {key: value for key, value in RAW.items() if key != "rope_theta"}
    nested = base | {"rope_parameters": settings | {"rope_theta": 10000}}
    assert ModelConfig(**read_config(nested, QWEN2, FILE)) == config
    written = write_config(config, QWEN2, dtype="float32", end_of_text=None)
    assert ModelConfig(**read_config(written, QWEN2, FILE)) == config


def test_read_config_reads_linear_scaling():
    config = read(rope_scaling={"type": "linear", "factor": 2})
    assert config.variant.rope_scaling == RopeScaling("linear", 2)
    assert read(rope_scaling={"type": "default"}) == read(rope_scaling=None) == read()


@pytest.mark.parametrize(
    "settings, window, layers",
    [
        ({"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 2}, None, ()),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}, 8, (2, 3)),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 4}, None, ()),
        ({"use_sliding_window": True, "sliding_window": None, "max_window_layers": 2}, None, ()),
        ({"use_sliding_window": True, "max_window_layers": 0}, 4096, (0, 1, 2, 3)),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 8,
                "max_window_layers": 2,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            8,
            (0, 2),
        ),
        ({"layer_types": ["full_attention"] * 4}, None, ()),
    ],
)
def test_read_config_reads_the_sliding_window_of_qwen2(settings, window, layers):
    config = read(**settings)
    assert (config.variant.sliding_window, config.variant.sliding_layers) == (window, layers)
    written = write_config(config, QWEN2, dtype="float32", end_of_text=None)
    assert ModelConfig(**read_config(written, QWEN2, FILE)) == config


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type='dynamic'"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}, "rope_type='mrope'"),
        ({"rope_scaling": {"mrope_section": [1, 1, 2]}}, r"mrope_section=\[1, 1, 2\]"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "new": 3}},
            "new=3 of rope_type='yarn'",
        ),
        ({"rope_scaling": {"rope_type": "yarn"}}, "'yarn' has no factor"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": "4"}},
            "factor='4' of rope_scaling is not a number",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": True}}, "factor='True'"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": 1}},
            "is not true or false",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": -4.0}}, "rope_scaling.factor is invalid"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_slow": 64}},
            "rope_scaling.beta_fast",
        ),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "full_attention="),
        (
            {
                "rope_parameters": {"rope_type": "yarn", "factor": 4.0},
                "rope_scaling": {"rope_type": "linear", "factor": 4.0},
            },
            "another rope_type",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"layer_types": ["sliding_attention"] * 4}, "no sliding window is used"),
        ({"layer_types": ["full_attention"] * 3}, "has 3 layers, but the model has 4"),
        (
            {"use_sliding_window": True, "sliding_window": 0, "max_window_layers": 0},
            "sliding_window is invalid",
        ),
        ({"use_sliding_window": True, "max_window_layers": "2"}, "max_window_layers='2'"),
        ({"model_type": "qwen3", "attention_bias": True}, "attention_bias=True"),
        ({"attention_bias": False}, "attention_bias=False"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        (
            {"num_experts": 8, "vision_config": {"depth": 2}},
            r"num_experts=8 \(unknown\); vision_config",
        ),
        ({"logits_scaling": 0.5}, r"logits_scaling=0.5 \(unknown\)"),
        ({"embedding_multiplier": 12.0, "unsloth_fixed": True}, "embedding_multiplier=12.0"),
        ({"linear_num_key_heads": 16, "full_attention_interval": 4}, "full_attention_interval"),
        ({"use_qk_norm": True}, "use_qk_norm=True"),
        ({"kv_lora_rank": 512}, "kv_lora_rank=512"),
        ({"model_type": "qwen2_moe"}, "'qwen2_moe' model is not supported"),
        ({"model_type": "qwen3_moe"}, "mixtures of experts"),
        ({"model_type": "qwen3_next"}, "not attention layers"),
        ({"model_type": "qwen2_5_vl"}, "images"),
    ],
)
def test_read_config_refuses_what_would_be_another_model(changes, message):
    with pytest.raises(ConfigError, match=message):
        read(**changes)


def test_read_config_ignores_what_does_not_change_the_model():
    assert (
        read(
            _name_or_path="Qwen/Qwen2.5-0.5B",
            transformers_version="4.51.0",
            tool_version="2025.3",
            eos_token_id=[3, 4],
            id2label={"0": "LABEL_0"},
            temperature=0.7,
            vision_config=None,
            num_experts=0,
            mlp_only_layers=[],
        )
        == read()
    )


def test_read_config_warns_once_of_unknown_settings_without_effect(caplog):
    refused._warn.cache_clear()
    changes = {"unsloth_fixed": True, "trained_by": "me", "max_tokens_seen": 7, "num_experts": 0}
    assert read(**changes) == read(**changes) == read()
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.endswith("no effect: max_tokens_seen, trained_by, unsloth_fixed.")
