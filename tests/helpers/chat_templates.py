"""Tokenizers with released chat templates, and what transformers renders with these."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import pytest

from qwen_jax.tokenizer.added_tokens import AddedToken
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.settings import Settings
from tests.helpers import tokenizer_folders as folders

NAMES = ("qwen2.5", "qwen3", "qwen3_thinking_2507")


def renderings(shared: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows of renderings.jsonl with a text; skips without jinja2."""
    pytest.importorskip("jinja2", reason="jinja2 is not installed")
    path = shared / "reference/chat_templates/renderings.jsonl"
    rows = [json.loads(line) for line in path.open(encoding="utf-8")]
    return [row for row in rows if "error" not in row]


def released(
    shared: pathlib.Path, name: str, generation: Mapping[str, Any] | None = None
) -> Tokenizer:
    """Returns a small tokenizer with a released template, and a generation_config."""
    pytest.importorskip("jinja2", reason="jinja2 is not installed")
    source = (shared / f"reference/chat_templates/{name}.jinja").read_text(encoding="utf-8")
    tokenizer = with_template(source)
    return tokenizer.with_settings(
        dataclasses.replace(tokenizer.settings, generation=generation or {})
    )


@functools.cache
def with_template(source: str) -> Tokenizer:
    """Returns a small tokenizer with the added tokens of Qwen3 and a chat template."""
    ranks = folders.ranks()
    added = [
        AddedToken(each["content"], each["id"], each["special"], each["normalized"])
        for each in folders.added(len(ranks))
    ]
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    settings = Settings(named=named, chat_templates={"default": source})
    return Tokenizer(ranks, added, settings=settings)
