"""/tokenize, /detokenize and /tokenizer_info, with vLLM's fields: lm-eval's remote tokenizer.

Special tokens in a prompt are parsed, as vLLM does. /v1/completions reads them as text, so send it
ids where they matter.
"""

from typing import Any

from qwen_jax.serve.api.fields import Fields, Limits
from qwen_jax.serve.api.protocol import check_ids, tool_dialect
from qwen_jax.serve.api.responses import token_name
from qwen_jax.serve.chat.messages import read_messages
from qwen_jax.serve.chat.prompt import chat_prompt, take_ending
from qwen_jax.serve.chat.tools import take_tools
from qwen_jax.serve.errors import ApiError
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.huggingface import CHAT_TEMPLATE


def tokenize(
    body: dict[str, Any], tokenizer: Tokenizer, limits: Limits, table: dict[int, bytes]
) -> dict[str, Any]:
    """Returns the response to /tokenize: count, max_model_len, tokens, token_strs.

    A text may be longer than the context: clients cut it themselves.

    Args:
      body: a `prompt`, or `messages` to render as a chat, with `tools` and
        `chat_template_kwargs`; add_special_tokens has no effect, since Qwen adds none.
      table: the bytes of each id.

    Raises:
      ApiError: a parameter is invalid.
    """
    fields = Fields(body, limits, model_required=False)
    prompt, messages = fields.take("prompt"), fields.take("messages")
    fields.flag("add_special_tokens")
    strings = fields.flag("return_token_strs")
    ending = take_ending(fields)
    if (prompt is None) == (messages is None):
        raise ApiError("pass either prompt or messages.", "prompt" if prompt else "messages")
    if messages is not None:
        tools, variables = take_tools(fields), fields.take("chat_template_kwargs", {})
        if not isinstance(variables, dict):
            raise ApiError("chat_template_kwargs is not an object.", "chat_template_kwargs")
        if tools.definitions:
            tool_dialect(tokenizer)
        tokens = chat_prompt(
            tokenizer,
            read_messages(messages, limits),
            tools.definitions,
            variables,
            ending,
        ).tokens
    elif isinstance(prompt, str):
        tokens = tokenizer.encode(prompt, allow_special=True)
    else:
        raise ApiError("the prompt is not text.", "prompt", "pass a string.")
    fields.reject_unsupported()
    return {
        "count": len(tokens),
        "max_model_len": limits.context,
        "tokens": tokens,
        "token_strs": [token_name(table[token]) for token in tokens] if strings else None,
    }


def detokenize(body: dict[str, Any], tokenizer: Tokenizer, limits: Limits) -> dict[str, str]:
    """Returns the response to /detokenize: the text of `tokens`, as prompt.

    Invalid UTF-8, such as a part of a character, becomes U+FFFD.

    Raises:
      ApiError: a parameter is invalid.
    """
    fields = Fields(body, limits, model_required=False)
    tokens = fields.take("tokens")
    fields.reject_unsupported()
    if tokens == []:
        return {"prompt": ""}
    return {"prompt": tokenizer.decode(check_ids(tokens, tokenizer, "tokens"))}


def tokenizer_info(tokenizer: Tokenizer, context: int) -> dict[str, Any]:
    """Returns the response to /tokenizer_info, with the fields of a tokenizer_config.json.

    Args:
      context: maximum tokens of a prompt and its completion.
    """
    added = {
        str(token.id): {
            "content": token.content,
            "special": token.special,
            "normalized": token.normalized,
        }
        for token in tokenizer.added_tokens
    }
    named = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "unk_token": None,
        **named,
        **tokenizer.settings.named,
        "add_bos_token": False,
        "added_tokens_decoder": added,
        "chat_template": tokenizer.settings.chat_templates.get("default", CHAT_TEMPLATE),
        "model_max_length": context,
        "vocab_size": tokenizer.vocab_size,
    }
