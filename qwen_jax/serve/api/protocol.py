"""Parses a request's JSON into engine requests; errors name the parameter.

A request for log-probabilities of its prompt, or for alternatives, is scored after its completion
(scored.py).
"""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from qwen_jax.errors import ConfigError, QwenJaxError, TokenizerError
from qwen_jax.inference.constraints.grammar import Grammar
from qwen_jax.inference.request import Request
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.inference.scoring import MAX_TOP
from qwen_jax.serve.api.fields import Fields, Limits, short
from qwen_jax.serve.chat.formats import Schema, answer_grammar, take_response_format
from qwen_jax.serve.chat.messages import read_messages
from qwen_jax.serve.chat.prompt import Ending, chat_prompt, take_ending
from qwen_jax.serve.chat.tools import ToolUse, take_tools
from qwen_jax.serve.errors import ApiError
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.dialects.answer import AnswerFormat
from qwen_jax.tokenizer.dialects.calls import Dialect
from qwen_jax.tokenizer.dialects.select import dialect_of
from qwen_jax.tokenizer.template import tokens as template


@dataclasses.dataclass(frozen=True)
class Scoring:
    """What is computed from prompt and completion, after the completion.

    Attributes:
      echo: whether the prompt is returned before the completion.
      top: alternatives of each token, 0 to MAX_TOP; None: no log-probabilities.
      generate: whether there is a completion; otherwise max_tokens is 0.
    """

    echo: bool
    top: int | None
    generate: bool


@dataclasses.dataclass(frozen=True)
class ApiRequest:
    """A validated client request."""

    chat: bool  # whether this is a chat completion; otherwise it is a text completion
    engine_requests: tuple[Request, ...]  # one per prompt, each with n completions
    stream: bool
    include_usage: bool  # whether to send the usage at the end of a stream
    logprobs: bool
    scoring: Scoring | None = None  # None: log-probabilities, if any, come with the tokens
    answer: AnswerFormat = AnswerFormat()  # what a chat completion may have besides text
    token_ids: bool = False  # whether the response has the ids of prompt and completion, as vLLM's


def read_json(body: bytes) -> dict[str, Any]:
    """Parses a request body as a JSON object.

    Raises:
      ApiError: the body is not UTF-8, not JSON, or not an object.
    """

    def reject(constant: str):
        raise ValueError(f"{constant} is not valid JSON")

    try:
        found = json.loads(body.decode("utf-8"), parse_constant=reject)
    except (ValueError, RecursionError) as error:
        raise ApiError(
            f"the body is not valid JSON: {error}.",
            fix="send one JSON object in UTF-8.",
            code="invalid_json",
        ) from None
    if not isinstance(found, dict):
        raise ApiError("the body is not a JSON object.", fix="send {...}.", code="invalid_json")
    return found


def read_chat(body: dict[str, Any], tokenizer: Tokenizer, limits: Limits) -> ApiRequest:
    """Parses the body of a request to /v1/chat/completions. Raises ApiError."""
    fields = Fields(body, limits)
    messages = read_messages(fields.take("messages"), limits)
    tools, schema = take_tools(fields), take_response_format(fields)
    ending = take_ending(fields)
    if ending is not Ending.OPENING and (schema is not None or tools.choice == "required"):
        where = "response_format" if schema is not None else "tool_choice"
        raise ApiError(
            f"{where} needs a new turn of the assistant.",
            where,
            "omit it, or continue_final_message and add_generation_prompt.",
            code="unsupported_value",
        )
    return read_conversation(fields, messages, tools, schema, tokenizer, ending)


def read_conversation(
    fields: Fields,
    messages: list[dict[str, Any]],
    tools: ToolUse,
    schema: Schema | None,
    tokenizer: Tokenizer,
    ending: Ending = Ending.OPENING,
) -> ApiRequest:
    """Builds the request for the next turn of a conversation from the remaining fields.

    Args:
      messages: as chat.messages.read_messages returns them.
      schema: of the answer; None: any text.
      ending: how the prompt ends.
    """
    limits = fields.limits
    variables = fields.take("chat_template_kwargs", {})
    if not isinstance(variables, dict):
        raise ApiError(
            f"chat_template_kwargs={short(variables)} is not an object.",
            "chat_template_kwargs",
            'pass {"enable_thinking": false}, or other variables of the chat template.',
        )
    logprobs = fields.flag("logprobs")
    top = fields.number("top_logprobs", 0, 0, MAX_TOP, integer=True)
    if top and not logprobs:
        raise ApiError(
            f"top_logprobs={top} needs logprobs.", "top_logprobs", "set logprobs to true."
        )
    dialect = tool_dialect(tokenizer) if tools.definitions else None
    check_length(_texts([messages, tools.definitions]), "messages", tokenizer, limits)
    prompt = chat_prompt(tokenizer, messages, tools.definitions, variables, ending)
    ends = template.stop_ids(tokenizer)
    grammar = answer_grammar(tokenizer, ends, prompt, tools, dialect, schema)
    sampling = fields.sampling() | {"logprobs": logprobs, "stop_token_ids": ends}
    if dialect is not None:
        sampling["stop"] = _with_stops(sampling["stop"], dialect.stops)
    scoring = Scoring(echo=False, top=top, generate=True) if top else None
    request = _api_request(
        fields, [prompt.tokens], tuple, sampling, scoring, where="messages", grammar=grammar
    )
    answer = AnswerFormat(prompt.thinking, dialect, tools.parallel)
    return dataclasses.replace(request, answer=answer)


def tool_dialect(tokenizer: Tokenizer) -> Dialect:
    """Returns how the model writes calls. Raises ApiError, which names `tools`, if it cannot."""
    try:
        return dialect_of(tokenizer.settings)
    except TokenizerError as error:
        raise ApiError(error.what, "tools", "omit tools.", code="unsupported_parameter") from None


def _with_stops(given: Any, more: tuple[str, ...]) -> Any:
    """Returns the stop strings of a request with those of its dialect."""
    if isinstance(given, str):
        return [given, *more]
    return [*given, *more] if isinstance(given, (list, tuple)) else given


def _texts(value: Any) -> list[str]:
    """Returns all strings of JSON values."""
    if isinstance(value, dict):
        return [text for item in value.items() for text in _texts(item)]
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def read_completion(body: dict[str, Any], tokenizer: Tokenizer, limits: Limits) -> ApiRequest:
    """Parses the body of a request to /v1/completions. Raises ApiError."""
    fields = Fields(body, limits)
    prompts = _prompts(fields.take("prompt", ""))
    top = fields.number("logprobs", None, 0, MAX_TOP, integer=True)
    echo = fields.flag("echo")
    sampling = fields.sampling() | {
        "logprobs": top is not None,
        "stop_token_ids": template.text_stop_ids(tokenizer),
    }

    def encode(prompt) -> tuple[int, ...]:
        check_length([prompt], "prompt", tokenizer, limits)
        return _ids(prompt, tokenizer)

    scoring = Scoring(echo=echo, top=top, generate=True) if echo or top else None
    return _api_request(fields, prompts, encode, sampling, scoring, where="prompt")


def _api_request(
    fields: "Fields",
    prompts: list,
    encode: Callable[[Any], tuple[int, ...]],
    sampling: dict[str, Any],
    scoring: Scoring | None,
    *,
    where: str,
    grammar: Grammar | None = None,
) -> ApiRequest:
    """Builds the request from these sampling parameters and the remaining fields.

    Prompts are encoded last, and one at a time: encoding is what takes time.

    Args:
      where: the parameter with the prompts: "messages" of a chat, or "prompt".
    """
    limits, n, chat = fields.limits, sampling["n"], where == "messages"
    max_tokens = fields.max_tokens(least=0 if scoring and scoring.echo else 1)
    if max_tokens == 0:
        scoring = _without_completion(scoring, n)
    if n * len(prompts) > limits.max_choices:
        raise ApiError(
            f"{len(prompts)} prompts with n={n} are {n * len(prompts)} completions, but the "
            f"server's limit is {limits.max_choices} for a request.",
            "prompt",
            "send fewer prompts per request, or lower n.",
        )
    stream = fields.flag("stream")
    include_usage = _include_usage(fields.take("stream_options"), stream)
    token_ids = fields.flag("return_token_ids")
    if scoring:
        _check_scored(stream, token_ids)
    fields.reject_unsupported()
    requests = []
    for prompt in map(encode, prompts):
        room = limits.context - len(prompt)
        # OpenAI's default of a completion is 16 tokens.
        new = min(room, room if chat else 16) if max_tokens is None else max_tokens
        least = 0 if max_tokens == 0 else 1
        if room < max(new, least):
            raise ApiError(
                f"the context is {limits.context} tokens, but the prompt has {len(prompt)} and "
                f"{max(new, least)} more are requested.",
                where,
                "shorten the prompt, or lower max_tokens.",
                code="context_length_exceeded",
            )
        try:
            params = SamplingParams(max_new_tokens=new or 1, **sampling)
            requests.append(Request(prompt, params, grammar))
        except ConfigError as error:
            raise ApiError(error.what, error.where, error.fix) from None
        except QwenJaxError as error:
            raise ApiError(error.what, "", error.fix) from None
    return ApiRequest(
        chat=chat,
        engine_requests=tuple(requests),
        stream=stream,
        include_usage=include_usage,
        logprobs=sampling["logprobs"],
        scoring=scoring,
        token_ids=token_ids,
    )


def _check_scored(stream: bool, token_ids: bool) -> None:
    """Raises ApiError if a request with alternatives, or its prompt, also has these."""
    if token_ids:
        raise ApiError(
            "alternatives, or the prompt, come without token ids.",
            "return_token_ids",
            "omit it, or omit top_logprobs and echo.",
            code="unsupported_value",
        )
    if stream:
        raise ApiError(
            "a stream cannot have alternatives or the prompt.",
            "stream",
            "set stream to false; a stream has log-probabilities of the sampled tokens only.",
            code="unsupported_value",
        )


def _without_completion(scoring: Scoring | None, n: int) -> Scoring:
    assert scoring is not None
    if n > 1:
        raise ApiError(f"n={n} with max_tokens=0 has no completions.", "n", "omit n.")
    return dataclasses.replace(scoring, generate=False)


def _prompts(prompt) -> list:
    """Returns the prompts of a request, each as text or token ids, which are not yet checked."""
    several = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
    return prompt if several else [prompt]


def _ids(prompt, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Returns the token ids of a prompt, given as text or token ids."""
    if isinstance(prompt, str):  # an empty prompt starts a document
        return tuple(tokenizer.encode(prompt)) or (tokenizer.end_of_text,)
    return check_ids(prompt, tokenizer, "prompt")


def check_ids(ids, tokenizer: Tokenizer, where: str) -> tuple[int, ...]:
    """Returns token ids of a request. Raises ApiError, naming `where`, if they are not."""
    if not isinstance(ids, list) or not ids or not all(type(i) is int for i in ids):
        raise ApiError(f"the {where} {short(ids)} is neither text nor token ids.", where)
    if bad := [token for token in ids if not 0 <= token < tokenizer.vocab_size]:
        raise ApiError(
            f"token id {short(bad[0])} is not below vocab_size={tokenizer.vocab_size}.", where
        )
    return tuple(ids)


def check_length(texts: list, where: str, tokenizer: Tokenizer, limits: Limits) -> None:
    """Raises ApiError if a prompt exceeds the context for certain, before it is encoded.

    Args:
      texts: texts, each of which becomes at least one token per max_token_bytes, or token ids.
    """
    size, unit, most = 0, "bytes", limits.context * tokenizer.max_token_bytes
    for text in texts:
        if isinstance(text, list):
            size, unit, most = len(text), "token ids", limits.context
        elif isinstance(text, str):
            # NFC makes a text at most 3 times shorter (Hangul).
            size += len(text) if text.isascii() else len(text.encode("utf-8", "replace")) // 3
    if size > most:
        raise _too_long(f"at least {size:,} {unit}", where, limits)


def _too_long(held: str, where: str, limits: Limits) -> ApiError:
    return ApiError(
        f"the context is {limits.context} tokens, but the prompt has {held}.",
        where,
        "shorten the prompt.",
        code="context_length_exceeded",
    )


def _include_usage(options, stream: bool) -> bool:
    if options is None:
        return False
    if not stream:
        raise ApiError("stream_options needs stream.", "stream_options", "set stream to true.")
    options = {} if not isinstance(options, dict) else dict(options)
    usage = options.pop("include_usage", False)
    # Padding against traffic analysis, which this server does not add.
    options.pop("include_obfuscation", None)
    if options or not isinstance(usage, bool):
        raise ApiError("stream_options supports only a boolean include_usage.", "stream_options")
    return usage
