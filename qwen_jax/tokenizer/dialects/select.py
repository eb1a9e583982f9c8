"""Which dialect of calls a tokenizer's model speaks: that of its chat template."""

import dataclasses

from qwen_jax.errors import TokenizerError
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.dialects.calls import Dialect
from qwen_jax.tokenizer.dialects.hermes import HERMES
from qwen_jax.tokenizer.dialects.react import REACT
from qwen_jax.tokenizer.settings import Settings
from qwen_jax.tokenizer.template import builtin
from qwen_jax.tokenizer.template.chat import template_source

DIALECTS = {each.name: each for each in (HERMES, REACT)}


def dialect_of(settings: Settings) -> Dialect:
    """Returns the dialect that the chat template tells the model to use; ReAct without a template.

    That of our exports of such models counts as none.

    Raises:
      TokenizerError: the template has no tools, or another dialect.
    """
    source = template_source(settings, None, has_tools=True)
    if source is None or source == builtin.CHAT_TEMPLATE:
        return REACT
    if "<tool_call>" in source and "<function=" not in source:  # the latter is XML in the tags
        return HERMES
    raise TokenizerError(
        "the chat template has no tools, or calls them in a dialect that is not supported.",
        "chat_template",
        "use a template with JSON in <tool_call> tags, as those of Qwen2.5 and Qwen3.",
    )


def with_tools(tokenizer: Tokenizer) -> Tokenizer:
    """Returns the tokenizer without its template, if that is ChatML and has no tools.

    Such is Qwen1.5's. ReAct is a prompt in an ordinary turn, so those models can call tools too.
    """
    source = template_source(tokenizer.settings, None, has_tools=True)
    if source is None or "tools" in source or "<|im_start|>" not in source:
        return tokenizer
    return tokenizer.with_settings(dataclasses.replace(tokenizer.settings, chat_templates={}))
