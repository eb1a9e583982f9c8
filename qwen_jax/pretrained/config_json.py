"""Converts ModelConfig to and from config.json and generation_config.json."""

import dataclasses
import json
import operator
import pathlib
from typing import Any

from absl import logging

from qwen_jax.attention_config import ContextExtension, RopeScaling
from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError, unknown_name
from qwen_jax.pretrained.layouts import (
    LAYOUTS,
    QWEN,
    REQUIRED,
    Layout,
    unsupported,
)
from qwen_jax.pretrained.refused import (
    REASONS,
    REFUSED,
    UNRELATED,
    changes_the_model,
    warn_of_unknown,
)

_KNOWN = (
    "use a dense checkpoint of Qwen to Qwen3 in float32, bfloat16 or float16 "
    f"(model_type {', '.join(LAYOUTS)})."
)
_FIX = "fix config.json, or download it again."
# Keys of rope_parameters -> fields of RopeScaling.
_ROPE_FIELDS = {
    "factor": "factor",
    "original_max_position_embeddings": "original_length",
    "attention_factor": "attention_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
    "truncate": "truncate",
}
_ROPE_KEYS = {"default": (), "linear": ("factor",), "yarn": tuple(_ROPE_FIELDS)}
_OUTSIDE = ("rope_theta", "partial_rotary_factor")  # keys that are also at the top level
_SLIDING = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}


def layout_of(raw: dict[str, Any], where: pathlib.Path) -> Layout:
    """Returns the layout of a config.json.

    Raises:
      ConfigError: the model type is not a key of LAYOUTS.
    """
    name = raw.get("model_type")
    if name is None and raw.get("architectures") == QWEN.constants["architectures"]:
        name = QWEN.model_type  # some early folders lack a model type
    name = str(name)
    if name in REFUSED:
        raise ConfigError(
            f"a {name!r} model is not supported: {REFUSED[name]}.", str(where), _KNOWN
        )
    if name not in LAYOUTS and name.startswith("qwen"):  # no typing error: nothing is close to it
        raise ConfigError(f"a {name!r} model is not supported.", str(where), _KNOWN)
    if name not in LAYOUTS:
        raise unknown_name("model_type", name, LAYOUTS, str(where))
    return LAYOUTS[name]


def read_config(raw: dict[str, Any], layout: Layout, where: pathlib.Path) -> dict[str, Any]:
    """Returns the fields of ModelConfig that a released config.json sets.

    Raises:
      ConfigError: keys are missing, or settings are not implemented here (other scalings of rotary
        positions, quantized weights, experts, ...). The error lists all of them.
    """
    raw, rope = _separate_rope(raw, where)
    _refuse_unsupported(raw, rope, layout, where)
    fields, missing = {}, []
    for setting in layout.settings:
        present = [key for key in setting.keys if raw.get(key) is not None]
        if present:
            fields[setting.field] = _converted(setting.read, raw[present[-1]], present[-1], where)
        elif setting.default is REQUIRED:
            missing.append(" or ".join(setting.keys))
        else:
            fields[setting.field] = setting.default
    if missing:
        raise ConfigError(
            f"config.json has no {', '.join(missing)}.",
            str(where),
            f"use the complete config.json of a {layout.model_type!r} model.",
        )
    extension: dict[str, Any] = {"dynamic_ntk": False, "logn": False}  # later layouts have neither
    if layout.is_qwen1:
        extension = {
            name.partition(".")[2]: fields.pop(name) for name in list(fields) if "." in name
        }
    if fields.get("num_kv_heads") == fields["num_heads"]:
        fields["num_kv_heads"] = None
    if fields["head_size"] is not None and (
        fields["head_size"] * fields["num_heads"] == fields["hidden_size"]
    ):
        fields["head_size"] = None
    try:
        fields["extension"] = ContextExtension(**extension)
        config = ModelConfig(**fields)  # first, because the variant depends on valid sizes
        fields["variant"] = dataclasses.replace(
            layout.variant,
            rope_scaling=_rope_scaling(rope, config, where),
            **_sliding_window(raw, layout, config, where),
        )
        config = ModelConfig(**fields)
    except ConfigError as error:
        if error.where == str(where):
            raise
        keys = {f"model.{setting.field}": setting.keys[0] for setting in layout.settings}
        scaling = "model.variant.rope_scaling"
        keys |= {f"{scaling}.{field}": f"rope_scaling.{key}" for key, field in _ROPE_FIELDS.items()}
        keys["model.variant.sliding_window"] = "sliding_window"
        what = f"{keys.get(error.where, error.where)} is invalid: {error.what}"
        raise ConfigError(what, str(where), _FIX) from None
    if problems := unsupported(layout, config):
        raise ConfigError(
            f"the settings are invalid for a {layout.model_type!r} model: {'; '.join(problems)}.",
            str(where),
            "check the file and its model_type.",
        )
    return fields


def write_config(
    config: ModelConfig, layout: Layout, *, dtype: str, end_of_text: int | None
) -> dict[str, Any]:
    """Returns the config.json of `config`.

    Args:
      dtype: dtype of the weights.
      end_of_text: the id of <|endoftext|>; None: there is no tokenizer.
    """
    filled = _filled(config)
    written = {
        "model_type": layout.model_type,
        "torch_dtype": dtype,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        **layout.constants,
        **layout.required_values,
    }
    for setting in layout.settings:
        written[setting.keys[0]] = setting.write(operator.attrgetter(setting.field)(filled))
    written |= _written_variant(config) if not layout.is_qwen1 else {}
    if layout.is_qwen1:
        # The length limit of the released code: 4 times the training length in released configs.
        stretch = 4 if config.extension.dynamic_ntk else 1
        written["max_position_embeddings"] = stretch * config.context_length
    elif layout.model_type == "qwen2" and config.head_dim * config.num_heads == config.hidden_size:
        del written["head_dim"]  # as in released configs
    return written


def update_config(
    original: bytes, config: ModelConfig, layout: Layout, *, dtype: str, more: dict[str, Any]
) -> bytes | None:
    """Returns a released config.json with what has changed; the same bytes if nothing has.

    Args:
      original: content of the config.json that the model came from.
      dtype: dtype of the weights.
      more: keys that are set whatever the original has.

    Returns:
      None if the original is of another layout.
    """
    where = pathlib.Path("config.json")
    raw = json.loads(original)
    if layout_of(raw, where).model_type != layout.model_type:
        return None
    before = _filled(ModelConfig(**read_config(raw, layout, where)))
    now, written = _filled(config), write_config(config, layout, dtype=dtype, end_of_text=None)
    changed = dict(more)
    for setting in layout.settings:
        read = operator.attrgetter(setting.field)
        if read(before) != read(now):
            present = [key for key in setting.keys if raw.get(key) is not None]
            changed[present[-1] if present else setting.keys[0]] = setting.write(read(now))
    kept = dict(raw)
    if before.variant != now.variant or "rope_theta" in changed:
        for key in ("rope_parameters", "rope_scaling", "layer_types", *_SLIDING):
            kept.pop(key, None)
        changed |= {"rope_theta": written["rope_theta"]} | _written_variant(config)
    key = "dtype" if "dtype" in raw else "torch_dtype"
    if raw.get(key) not in (None, dtype):
        changed[key] = dtype
    changed = {key: value for key, value in changed.items() if kept.get(key) != value}
    if not changed:
        return original
    changes = "; ".join(f"{key} {raw.get(key)} -> {value}" for key, value in changed.items())
    logging.info("config.json is the original one with changes: %s.", changes)
    return json.dumps(kept | changed, indent=2).encode()


def _filled(config: ModelConfig) -> ModelConfig:
    """Returns the config without derived sizes."""
    return dataclasses.replace(config, num_kv_heads=config.kv_heads, head_size=config.head_dim)


def write_generation_config(
    layout: Layout, *, end_of_text: int | None, im_end: int | None, eos: int | None = None
) -> dict[str, Any]:
    """Returns the generation_config.json: greedy decoding, and the ids that end a response.

    Chat models end with <|im_end|>. Base models never generate it, so both ids always stop, and
    `eos`, the end token that the tokenizer names.
    """
    stops = list(dict.fromkeys(t for t in (end_of_text, im_end, eos) if t is not None))
    written = {
        "bos_token_id": end_of_text,
        "eos_token_id": stops or None,
        "pad_token_id": end_of_text,
        "do_sample": False,
        "max_new_tokens": 512,
    }
    if layout.is_qwen1:
        written |= {"chat_format": "chatml", "max_window_size": 6144}  # for the released code
    return written


def _refuse_unsupported(
    raw: dict[str, Any], rope: dict[str, Any], layout: Layout, where: pathlib.Path
) -> None:
    """Raises ConfigError, with all settings that would make another model than ours."""
    allowed = {
        key: (value,) for key, value in layout.required_values.items()
    } | layout.allowed_values
    found = {
        key: f"{key}={raw[key]!r}"
        for key, values in allowed.items()
        if key in raw and raw[key] not in values
    }
    layers = raw.get("layer_types") or []
    kinds = set(map(str, layers)) if isinstance(layers, list) else {str(layers)}
    kinds -= {"full_attention"} if layout.is_qwen1 else {"full_attention", "sliding_attention"}
    if kinds:
        found["layer_types"] = f"layer_types with {', '.join(sorted(kinds))}"
    kind = str(rope["rope_type"])
    if kind not in _ROPE_KEYS or (layout.is_qwen1 and kind != "default"):
        found["rope_type"] = f"scaled rotary positions with rope_type={kind!r}"
    else:
        unread = [key for key in rope if key not in (*_OUTSIDE, "rope_type", *_ROPE_KEYS[kind])]
        found |= {
            f"rope.{key}": f"{key}={rope[key]!r} of rope_type={kind!r}"
            for key in unread
            if rope[key] is not None
        }
    known = {*allowed, *layout.constants, *layout.unused, *UNRELATED, "layer_types"}
    known |= {key for setting in layout.settings for key in setting.keys}
    known |= set() if layout.is_qwen1 else {*_SLIDING}
    # What has no effect if it is absent is off as None, False, 0 or empty.
    unknown = [key for key, value in raw.items() if key not in known and value]
    refused = [key for key in unknown if changes_the_model(key)]
    found |= {key: f"{key}={raw[key]!r} (unknown)" for key in refused}
    warn_of_unknown(set(unknown) - set(refused), str(where))
    if found:
        reasons = [
            text[:200] + (f" ({REASONS[key]})" if key in REASONS else "")
            for key, text in found.items()
        ]
        fix = _KNOWN
        if refused:
            fix += " Remove unknown keys from config.json only if they do not change the model."
        raise ConfigError(
            f"the model needs features that qwen_jax does not implement: {'; '.join(reasons)}.",
            str(where),
            fix,
        )


def _separate_rope(
    raw: dict[str, Any], where: pathlib.Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the settings without those of rotary positions, and these, with a rope_type.

    transformers 4 has them in rope_scaling, and transformers 5 in rope_parameters, with the base.
    """
    raw, rope = dict(raw), {}
    for key in ("rope_parameters", "rope_scaling"):
        settings = raw.pop(key, None) or {}
        if not isinstance(settings, dict):
            what = f"{key}={str(settings)[:60]!r} is not a JSON object."
            raise ConfigError(what, str(where), _FIX)
        settings = dict(settings)
        kind = settings.pop("type", "default")  # the key's name before transformers 4.43
        if settings:
            settings.setdefault("rope_type", kind)
        elif kind != "default":
            settings["rope_type"] = kind
        if differing := [key for key in settings if rope.get(key, settings[key]) != settings[key]]:
            raise ConfigError(
                f"rope_parameters and rope_scaling have another {', '.join(differing)}.",
                str(where),
                "remove one of them.",
            )
        rope |= settings
    rope.setdefault("rope_type", "default")
    original = raw.pop("original_max_position_embeddings", None)  # read only for yarn
    if original is not None and rope["rope_type"] == "yarn":
        rope["original_max_position_embeddings"] = original
    return raw | {key: rope[key] for key in _OUTSIDE if key in rope}, rope


def _rope_scaling(rope: dict[str, Any], config: ModelConfig, where: pathlib.Path) -> RopeScaling:
    """Returns the scaling of checked settings from _separate_rope."""
    kind = rope["rope_type"]
    if kind == "default":
        return RopeScaling()
    given = {key: rope[key] for key in _ROPE_KEYS[kind] if rope.get(key) is not None}
    for key, value in given.items():
        wants = "true or false" if key == "truncate" else "a number"
        right = (bool,) if key == "truncate" else (int, float)
        if type(value) not in right:
            what = f"{key}={str(value)[:60]!r} of rope_scaling is not {wants}."
            raise ConfigError(what, str(where), _FIX)
    if kind == "yarn":
        # In transformers, 0 of these means that they are not set.
        optional = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")
        given = {key: value for key, value in given.items() if value or key not in optional}
        given.setdefault("original_max_position_embeddings", config.context_length)
        if "factor" in rope and rope["factor"] is None:
            given["factor"] = config.context_length / given["original_max_position_embeddings"]
    if "factor" not in given:
        raise ConfigError(f"rope_scaling of type {kind!r} has no factor.", str(where), _FIX)
    return RopeScaling(kind, **{_ROPE_FIELDS[key]: value for key, value in given.items()})


def _sliding_window(
    raw: dict[str, Any], layout: Layout, config: ModelConfig, where: pathlib.Path
) -> dict[str, Any]:
    """Returns the fields of AttentionVariant for the sliding window that a config declares."""
    if layout.is_qwen1:
        return {}
    used, window, first = (raw.get(key, default) for key, default in _SLIDING.items())
    kinds = raw.get("layer_types")
    if kinds is not None and len(kinds) != config.num_layers:
        what = f"layer_types has {len(kinds)} layers, but the model has {config.num_layers}."
        raise ConfigError(what, str(where), _FIX)
    if not used or window is None:
        if kinds is not None and "sliding_attention" in kinds:
            what = "layer_types has sliding_attention, but no sliding window is used."
            raise ConfigError(what, str(where), "set use_sliding_window and sliding_window.")
        return {}
    if kinds is None and not isinstance(first, int):
        raise ConfigError(f"max_window_layers={first!r} is not an integer.", str(where), _FIX)
    layers = [
        layer
        for layer in range(config.num_layers)
        if (layer >= first if kinds is None else kinds[layer] == "sliding_attention")
    ]
    return {"sliding_window": window, "sliding_layers": tuple(layers)} if layers else {}


def _written_variant(config: ModelConfig) -> dict[str, Any]:
    """Returns the keys of the sliding window and of scaled rotary positions."""
    variant, scaling = config.variant, config.variant.rope_scaling
    written: dict[str, Any] = {"use_sliding_window": variant.sliding_window is not None}
    if variant.sliding_window is not None:
        written |= {
            "sliding_window": variant.sliding_window,
            "max_window_layers": variant.sliding_layers[0],  # for readers without layer_types
            "layer_types": [
                "full_attention" if variant.window(layer) is None else "sliding_attention"
                for layer in range(config.num_layers)
            ],
        }
    if scaling.kind != "none":
        written["rope_scaling"] = {"rope_type": scaling.kind} | {
            key: getattr(scaling, field)
            for key, field in _ROPE_FIELDS.items()
            if key in _ROPE_KEYS[scaling.kind]
            and (key == "factor" or getattr(scaling, field) != getattr(RopeScaling(), field))
        }
    return written


def _converted(read, value: Any, key: str, where: pathlib.Path) -> Any:
    if not isinstance(value, (int, float)):
        what = f"{key}={str(value)[:60]!r} is not a number."
        raise ConfigError(what, str(where), "fix config.json.")
    return read(value)
