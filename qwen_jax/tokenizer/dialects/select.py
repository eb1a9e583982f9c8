"""Which dialect of calls a tokenizer's model speaks: that of its chat template."""

from qwen_jax.errors import TokenizerError
from qwen_jax.tokenizer.dialects.calls import Dialect
from qwen_jax.tokenizer.dialects.hermes import HERMES
from qwen_jax.tokenizer.dialects.react import REACT
from qwen_jax.tokenizer.settings import Settings
from qwen_jax.tokenizer.template.chat import template_source


def dialect_of(settings: Settings) -> Dialect:
    """Returns the dialect that the chat template tells the model to use; ReAct without a template.

    Raises:
      TokenizerError: the template has no tools, or another dialect.
    """
    source = template_source(settings, None, has_tools=True)
    if source is None:
        return REACT
    if "<tool_call>" in source and "<function=" not in source:  # the latter is XML in the tags
        return HERMES
    raise TokenizerError(
        "the chat template has no tools, or calls them in a dialect that is not supported.",
        "chat_template",
        "use a template with JSON in <tool_call> tags, as those of Qwen2.5 and Qwen3.",
    )
