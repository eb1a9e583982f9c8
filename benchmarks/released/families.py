"""The five families of Qwen, as far as their files differ: config.json, added tokens, settings.

Numbers of the released files, but for sizes, which are tiny.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_VISION = (
    "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>",
    "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
_TEXT = (  # these are not special: a tokenizer keeps them when it skips special tokens
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
    "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip
_THOUGHTS = ("<tool_response>", "</tool_response>", "<think>", "</think>")
_SYSTEM = "You are a helpful assistant"
# Qwen1.5 and Qwen2: no tools, and a system message where a conversation has none.
_PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nSYSTEM<|im_end|>\n"
    "{% endif %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' }}"
    "{% if not loop.last or add_generation_prompt %}{{ '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class Family:
    """What sets a family apart.

    Args:
      added: its added tokens, in the order of their ids.
      template: Jinja source, or the name of a released one; None: the code renders ChatML.
      config: keys of config.json, over `_CONFIG`.
      generation: generation_config.json; names of tokens stand for ids.
      length: model_max_length of the tokenizer.
    """

    model_type: str
    added: tuple[str, ...]
    template: str | None
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    length: int
    released_template: bool = False

    def is_special(self, token: str) -> bool:
        return token not in (*_TEXT, *_THOUGHTS)


CONFIG: dict[str, Any] = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "max_position_embeddings": 2048,
    "max_window_layers": 2,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 2048,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.40.0",
    "use_cache": True,
    "use_sliding_window": False,
}
_SAMPLED = {"do_sample": True, "top_k": 20, "top_p": 0.8}
_ENDS = {"pad_token_id": "<|endoftext|>", "eos_token_id": ["<|im_end|>", "<|endoftext|>"]}
_QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 16,
    "rope_scaling": None,
    "sliding_window": None,
}

FAMILIES = {
    "Qwen-1": Family(
        "qwen",
        (*CHATML, *(f"<|extra_{index}|>" for index in range(205))),
        None,
        {},
        {"eos_token_id": "<|endoftext|>", "pad_token_id": "<|endoftext|>", "top_p": 0.8},
        8192,
    ),
    "Qwen1.5": Family(
        "qwen2",
        CHATML,
        _PLAIN_TEMPLATE.replace("SYSTEM", _SYSTEM),
        _QWEN2 | {"transformers_version": "4.37.0"},
        _SAMPLED | _ENDS | {"repetition_penalty": 1.1},
        32768,
    ),
    "Qwen2": Family(
        "qwen2",
        CHATML,
        _PLAIN_TEMPLATE.replace("SYSTEM", _SYSTEM + "."),
        _QWEN2,
        _SAMPLED | _ENDS | {"repetition_penalty": 1.05, "temperature": 0.7},
        131072,
    ),
    "Qwen2.5": Family(
        "qwen2",
        (*CHATML, *_VISION, *_TEXT),
        "qwen2.5",
        _QWEN2 | {"transformers_version": "4.43.1"},
        _SAMPLED | _ENDS | {"repetition_penalty": 1.05, "temperature": 0.7},
        131072,
        released_template=True,
    ),
    "Qwen3": Family(
        "qwen3",
        (*CHATML, *_VISION, *_TEXT, *_THOUGHTS),
        "qwen3",
        _QWEN3 | {"transformers_version": "4.51.0"},
        _SAMPLED | _ENDS | {"temperature": 0.6, "top_p": 0.95},
        131072,
        released_template=True,
    ),
}
