"""Converts ModelConfig to and from config.json and generation_config.json."""

import dataclasses
import operator
import pathlib
from typing import Any

from qwen_jax.config import ContextExtension, ModelConfig
from qwen_jax.errors import ConfigError, unknown_name
from qwen_jax.pretrained.layouts import (
    LAYOUTS,
    QWEN,
    REASONS,
    REFUSED,
    REQUIRED,
    Layout,
    unsupported,
)

_KNOWN = (
    "use a dense Qwen, Qwen1.5 or Qwen2 checkpoint in float32, bfloat16 or float16 "
    "(model_type qwen or qwen2)."
)


def layout_of(raw: dict[str, Any], where: pathlib.Path) -> Layout:
    """Returns the layout of a config.json.

    Raises:
      ConfigError: the model type is not "qwen" or "qwen2".
    """
    name = raw.get("model_type")
    if name is None and raw.get("architectures") == QWEN.constants["architectures"]:
        name = QWEN.model_type  # some early folders lack a model type
    name = str(name)
    if name in REFUSED:
        raise ConfigError(
            f"a {name!r} model is not supported: {REFUSED[name]}.", str(where), _KNOWN
        )
    if name not in LAYOUTS:
        raise unknown_name("model_type", name, LAYOUTS, str(where))
    return LAYOUTS[name]


def read_config(raw: dict[str, Any], layout: Layout, where: pathlib.Path) -> dict[str, Any]:
    """Returns the fields of ModelConfig that a released config.json sets.

    Raises:
      ConfigError: keys are missing, or settings are not implemented here (scaled rotary positions,
        sliding windows, quantized weights, ...). The error lists all of them.
    """
    raw = _flatten_rope(raw, where)
    _refuse_unsupported(raw, layout, where)
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
    extension: dict[str, Any] = {"dynamic_ntk": False, "logn": False}  # qwen2 has neither
    if layout is QWEN:
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
        config = ModelConfig(**fields)
    except ConfigError as error:
        keys = {f"model.{setting.field}": setting.keys[0] for setting in layout.settings}
        what = f"{keys.get(error.where, error.where)} is invalid: {error.what}"
        raise ConfigError(what, str(where), "fix config.json, or download it again.") from None
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
    filled = dataclasses.replace(config, num_kv_heads=config.kv_heads, head_size=config.head_dim)
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
    if layout is QWEN:
        # The length limit of the released code: 4 times the training length in released configs.
        stretch = 4 if config.extension.dynamic_ntk else 1
        written["max_position_embeddings"] = stretch * config.context_length
    elif config.head_dim * config.num_heads == config.hidden_size:
        del written["head_dim"]  # as in released configs
    return written


def write_generation_config(
    layout: Layout, *, end_of_text: int | None, im_end: int | None
) -> dict[str, Any]:
    """Returns the generation_config.json: greedy decoding, and the ids that end a response.

    Chat models end with <|im_end|>. Base models never generate it, so both ids always stop.
    """
    stops = [token for token in (end_of_text, im_end) if token is not None]
    written = {
        "bos_token_id": end_of_text,
        "eos_token_id": stops or None,
        "pad_token_id": end_of_text,
        "do_sample": False,
        "max_new_tokens": 512,
    }
    if layout is QWEN:
        written |= {"chat_format": "chatml", "max_window_size": 6144}  # for the released code
    return written


def _refuse_unsupported(raw: dict[str, Any], layout: Layout, where: pathlib.Path) -> None:
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
    if odd_layers := kinds - {"full_attention"}:
        found["layer_types"] = f"layer_types with {', '.join(sorted(odd_layers))}"
    if found:
        reasons = [
            text[:200] + (f" ({REASONS[key]})" if key in REASONS else "")
            for key, text in found.items()
        ]
        raise ConfigError(
            f"the model needs features that qwen_jax does not implement: {'; '.join(reasons)}.",
            str(where),
            _KNOWN,
        )


def _flatten_rope(raw: dict[str, Any], where: pathlib.Path) -> dict[str, Any]:
    """Moves the rotary settings that transformers 5 nests in a dict to top-level keys."""
    raw = dict(raw)
    for key in ("rope_parameters", "rope_scaling"):
        if not isinstance(raw.get(key) or {}, dict):
            what = f"{key}={str(raw[key])[:60]!r} is not a JSON object."
            raise ConfigError(what, str(where), "fix config.json, or download it again.")
    rope, scaling = raw.pop("rope_parameters", None) or {}, raw.pop("rope_scaling", None) or {}
    raw |= {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    for settings in (rope, scaling):
        kind = settings.get("rope_type", settings.get("type", "default"))
        per_layer_type = any(isinstance(value, dict) for value in settings.values())
        if kind != "default" or per_layer_type:
            raw["rope_scaling"] = settings
    return raw


def _converted(read, value: Any, key: str, where: pathlib.Path) -> Any:
    if not isinstance(value, (int, float)):
        what = f"{key}={str(value)[:60]!r} is not a number."
        raise ConfigError(what, str(where), "fix config.json.")
    return read(value)
