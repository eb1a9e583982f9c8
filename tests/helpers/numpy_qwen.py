"""A released Qwen2 or Qwen3 folder in plain NumPy and float64: the definition of its logits.

It reads config.json and the tensors by their released names, and nothing of our package.

T tokens, D model, N heads, K key-value heads, H head size, V vocabulary.
"""

import json
import math
import pathlib

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy)
import numpy as np
from safetensors.numpy import load_file


def logits(folder: pathlib.Path, tokens_T: np.ndarray) -> np.ndarray:
    """Returns the logits after each token of one sequence, float64 [T, V]."""
    config = json.loads((folder / "config.json").read_text())
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= {name: array.astype(np.float64) for name, array in load_file(file).items()}
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_size = config.get("head_dim", config["hidden_size"] // heads)
    cos, sin = _rotation(config, len(tokens_T), head_size)
    distance = np.arange(len(tokens_T))[:, None] - np.arange(len(tokens_T))[None]

    def norm(x, name):
        inverse = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + config["rms_norm_eps"])
        return x * inverse * tensors[name + ".weight"]

    def linear(x, name):
        return x @ tensors[name + ".weight"].T + tensors.get(name + ".bias", 0.0)

    def rotate(x_TNH):
        one, two = np.split(x_TNH, 2, axis=-1)
        return np.concatenate([one * cos - two * sin, two * cos + one * sin], axis=-1)

    x = tensors["model.embed_tokens.weight"][tokens_T]
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        attention = block + "self_attn."
        y = norm(x, block + "input_layernorm")
        q = linear(y, attention + "q_proj").reshape(-1, heads, head_size)
        k = linear(y, attention + "k_proj").reshape(-1, kv_heads, head_size)
        v = linear(y, attention + "v_proj").reshape(-1, kv_heads, head_size)
        if config["model_type"] == "qwen3":
            q, k = norm(q, attention + "q_norm"), norm(k, attention + "k_norm")
        q, k = rotate(q), rotate(k)
        k, v = (np.repeat(each, heads // kv_heads, axis=1) for each in (k, v))
        scores = np.einsum("tnh,snh->nts", q, k) / math.sqrt(head_size)
        visible = (distance >= 0) & (distance < _window(config, layer))
        scores = np.where(visible, scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        out = np.einsum("nts,snh->tnh", weights, v).reshape(len(tokens_T), -1)
        x = x + linear(out, attention + "o_proj")
        y = norm(x, block + "post_attention_layernorm")
        gate = linear(y, block + "mlp.gate_proj")
        hidden = gate / (1 + np.exp(-gate)) * linear(y, block + "mlp.up_proj")
        x = x + linear(hidden, block + "mlp.down_proj")
    head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
    return linear(norm(x, "model.norm"), head)


def _window(config: dict, layer: int) -> float:
    if not config["use_sliding_window"]:
        return math.inf
    kinds = config.get("layer_types")
    sliding = layer >= config["max_window_layers"]
    if kinds is not None:
        sliding = kinds[layer] == "sliding_attention"
    return config["sliding_window"] if sliding else math.inf


def _rotation(config: dict, length: int, head_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns cos and sin of the angles, [T, 1, H / 2]."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    base = scaling.get("rope_theta", config.get("rope_theta"))
    kind = scaling.get("rope_type", scaling.get("type", "default"))  # the former name
    factor = scaling.get("factor", 1.0)
    frequency = base ** -(np.arange(0, head_size, 2) / head_size)
    size = 1.0
    if kind == "linear":
        frequency = frequency / factor
    elif kind == "yarn":
        original = scaling["original_max_position_embeddings"]
        low, high = (
            head_size * math.log(original / (2 * math.pi * turns)) / (2 * math.log(base))
            for turns in (scaling.get("beta_fast", 32), scaling.get("beta_slow", 1))
        )
        if scaling.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_size - 1)
        ramp = np.clip((np.arange(head_size // 2) - low) / ((high - low) or 0.001), 0, 1)
        frequency = frequency * (1 - ramp) + frequency / factor * ramp
        size = scaling.get("attention_factor", 0.1 * math.log(factor) + 1)
    angle = (np.arange(length)[:, None] * frequency)[:, None]
    return size * np.cos(angle), size * np.sin(angle)
