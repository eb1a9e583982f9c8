"""Tiny folders in the layouts of Qwen2.5 and Qwen3, with their templates and settings."""

import dataclasses
import json
import pathlib

import pytest

from qwen_jax.attention_config import AttentionVariant
from qwen_jax.config import ContextExtension, ModelConfig
from qwen_jax.model.spec import param_specs
from qwen_jax.pretrained.huggingface import save_pretrained
from qwen_jax.tokenizer.load import load_tokenizer
from tests.helpers import tokenizer_folders
from tests.helpers.tiny_checkpoint import CONFIG
from tests.helpers.weights import initial

LAYOUTS = {"qwen2.5": "qwen2", "qwen3": "qwen3"}
# Files that training and exports keep byte for byte.
KEPT = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def model_of(name: str) -> ModelConfig:
    variant = AttentionVariant(qkv_bias=False, qk_norm=True) if name == "qwen3" else None
    return dataclasses.replace(
        CONFIG,
        num_layers=1,
        num_kv_heads=2,
        context_length=1024,
        initializer_range=0.02,
        extension=ContextExtension(dynamic_ntk=False, logn=False),
        **({} if variant is None else {"variant": variant}),
    )


def write(folder: pathlib.Path, name: str, shared: pathlib.Path) -> pathlib.Path:
    """Writes a folder as transformers 5 would: "qwen2.5" or "qwen3"; skips without jinja2."""
    pytest.importorskip("jinja2", reason="jinja2 is not installed")
    model = model_of(name)
    params = initial(param_specs(model))
    tokenizer_folders.write(folder / "tokenizer", "transformers 5")
    template = (shared / f"reference/chat_templates/{name}.jinja").read_text(encoding="utf-8")
    (folder / "tokenizer/chat_template.jinja").write_text(template, encoding="utf-8")
    tokenizer = load_tokenizer(folder / "tokenizer")
    ids = [tokenizer.im_end, tokenizer.end_of_text]
    (folder / "tokenizer/generation_config.json").write_text(
        json.dumps({"eos_token_id": ids, "temperature": 0.6, "top_k": 20, "top_p": 0.95})
    )
    save_pretrained(
        folder / "model", model, params, layout=LAYOUTS[name],
        tokenizer=load_tokenizer(folder / "tokenizer"),
    )  # fmt: skip
    return folder / "model"


def write_data(folder: pathlib.Path) -> pathlib.Path:
    """Writes conversations.jsonl, with a call and thoughts, and pairs.jsonl."""
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    conversations = [
        {"messages": [{"role": "user", "content": "1+1 <|im_end|>"},
                      {"role": "assistant", "content": "2"},
                      {"role": "user", "content": "2+1"},
                      {"role": "assistant", "content": "3"}]},
        {"tools": TOOLS, "messages": [
            {"role": "user", "content": "1+2"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "3"},
            {"role": "assistant", "content": "It is 3."}]},
    ]  # fmt: skip
    pairs = [{"prompt": "1+1", "chosen": "2", "rejected": "three"}]
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("conversations", conversations), ("pairs", pairs)):
        lines = "".join(json.dumps(row) + "\n" for row in rows * 8)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder
