"""Parses a request's JSON into engine requests; errors name the parameter.

A parameter that would change the completion is never silently ignored. An unsupported parameter is
rejected, unless its value has no effect.
"""

import dataclasses
import difflib
import json
import math
import reprlib
import secrets
from collections.abc import Callable
from typing import Any

from qwen_jax.errors import ConfigError, QwenJaxError
from qwen_jax.inference.request import Request
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.serve.errors import ApiError
from qwen_jax.tokenizer import chatml
from qwen_jax.tokenizer.bpe import Tokenizer

MAX_STOPS = 4  # OpenAI's limit
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxlist = _REPR.maxdict = 60
# Parameters that do not change the completion, such as metadata about the client.
_METADATA = frozenset(
    {
        "user",
        "metadata",
        "safety_identifier",
        "prompt_cache_key",
        "store",
        "service_tier",
        "parallel_tool_calls",
    }
)
# Unsupported parameter -> its values that have no effect, which are accepted.
_NEUTRAL = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "min_p": (0,),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "moderation": (),
}
_SUPPORTED = (
    "model",
    "messages",
    "prompt",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
    "seed",
    "n",
    "stop",
    "stream",
    "stream_options",
    "logprobs",
)


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits that requests are checked against."""

    model: str  # the model name that requests must use
    context: int  # tokens of a prompt and its completion together
    max_choices: int  # completions of a request


@dataclasses.dataclass(frozen=True)
class ApiRequest:
    """A validated client request."""

    chat: bool  # whether this is a chat completion; otherwise it is a text completion
    engine_requests: tuple[Request, ...]  # one per prompt, each with n completions
    stream: bool
    include_usage: bool  # whether to send the usage at the end of a stream
    logprobs: bool


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
    fields = _Fields(body, limits)
    messages = fields.take("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError(
            "messages is not a non-empty list.",
            "messages",
            'pass [{"role": "user", "content": "..."}].',
        )
    if len(messages) > limits.context:
        raise _too_long(f"{len(messages):,} messages", "messages", limits)
    messages = [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    logprobs = fields.flag("logprobs")
    sampling = fields.sampling() | {
        "logprobs": logprobs,
        "stop_token_ids": chatml.stop_ids(tokenizer),
    }

    def encode(messages) -> tuple[int, ...]:
        _check_length([m["content"] for m in messages], "messages", tokenizer, limits)
        return tuple(chatml.prompt(messages, tokenizer).tolist())

    return _api_request(fields, [messages], encode, sampling, chat=True, default_tokens=None)


def read_completion(body: dict[str, Any], tokenizer: Tokenizer, limits: Limits) -> ApiRequest:
    """Parses the body of a request to /v1/completions. Raises ApiError."""
    fields = _Fields(body, limits)
    prompts = _prompts(fields.take("prompt", ""))
    top = fields.number("logprobs", None, 0, 5, integer=True)
    if top:
        raise ApiError(
            f"logprobs={top} requests alternative tokens, which are not supported.",
            "logprobs",
            "use 0 to get only the sampled tokens.",
            code="unsupported_value",
        )
    sampling = fields.sampling() | {
        "logprobs": top is not None,
        "stop_token_ids": (tokenizer.end_of_text,),
    }

    def encode(prompt) -> tuple[int, ...]:
        _check_length([prompt], "prompt", tokenizer, limits)
        return _ids(prompt, tokenizer)

    # OpenAI's default of 16 tokens.
    return _api_request(fields, prompts, encode, sampling, chat=False, default_tokens=16)


def _api_request(
    fields: "_Fields",
    prompts: list,
    encode: Callable[[Any], tuple[int, ...]],
    sampling: dict[str, Any],
    *,
    chat: bool,
    default_tokens: int | None,
) -> ApiRequest:
    """Builds the request from these sampling parameters and the remaining fields.

    Prompts are encoded last, and one at a time: encoding is what takes time.
    """
    limits, n = fields.limits, sampling["n"]
    max_tokens = fields.max_tokens()
    if n * len(prompts) > limits.max_choices:
        raise ApiError(
            f"{len(prompts)} prompts with n={n} are {n * len(prompts)} completions, but the "
            f"server's limit is {limits.max_choices} for a request.",
            "prompt",
            "send fewer prompts per request, or lower n.",
        )
    stream = fields.flag("stream")
    include_usage = _include_usage(fields.take("stream_options"), stream)
    fields.reject_unsupported()
    requests = []
    for prompt in map(encode, prompts):
        room = limits.context - len(prompt)
        new = max_tokens or min(default_tokens or room, room)
        if room < max(new, 1):
            raise ApiError(
                f"the context is {limits.context} tokens, but the prompt has {len(prompt)} and "
                f"{max(new, 1)} more are requested.",
                "messages" if chat else "prompt",
                "shorten the prompt, or lower max_tokens.",
                code="context_length_exceeded",
            )
        try:
            requests.append(Request(prompt, SamplingParams(max_new_tokens=new, **sampling)))
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
    )


class _Fields:
    """The parameters of a request, removed as they are read; null counts as absent."""

    def __init__(self, body: dict[str, Any], limits: Limits):
        self.limits = limits
        self._left = {name: value for name, value in body.items() if value is not None}
        model = self.take("model")
        if not isinstance(model, str):
            raise ApiError("model is missing or not a string.", "model", f"use {limits.model!r}.")
        if model != limits.model:
            raise ApiError(
                f"model {_short(model)} does not exist.",
                "model",
                f"use {limits.model!r}, the model of this server.",
                status=404,
                code="model_not_found",
            )

    def take(self, name: str, default=None):
        return self._left.pop(name, default)

    def flag(self, name: str) -> bool:
        value = self.take(name, False)
        if not isinstance(value, bool):
            raise ApiError(f"{name}={_short(value)} is not true or false.", name)
        return value

    def number(self, name: str, default, low: float, high: float, *, integer: bool = False) -> Any:
        """Removes and returns a number in [low, high]."""
        value = self.take(name)
        if value is None:
            return default
        kind = int if integer else (int, float)
        if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
            expected = "an integer" if integer else "a number"
            raise ApiError(
                f"{name}={_short(value)} is not {expected} from {low} to {high}.",
                name,
                "use a value in this range.",
            )
        return value

    def sampling(self) -> dict[str, Any]:
        """Returns fields of SamplingParams, which validates those not validated here."""
        seed = self.take("seed")
        fields = {
            "temperature": self.number("temperature", 1.0, 0, 2),
            "top_p": self.take("top_p", 1.0),
            "top_k": self.take("top_k"),
            "repetition_penalty": self.number("repetition_penalty", 1.0, 0.01, 100),
            "seed": secrets.randbits(32) if seed is None else seed,
            "stop": self.take("stop", ()),
            "n": self.number("n", 1, 1, self.limits.max_choices, integer=True),
        }
        if isinstance(fields["stop"], list) and len(fields["stop"]) > MAX_STOPS:
            raise ApiError(
                f"too many stop strings: {len(fields['stop'])}.",
                "stop",
                f"use at most {MAX_STOPS}.",
            )
        return fields

    def max_tokens(self) -> int | None:
        old = self.number("max_tokens", None, 1, math.inf, integer=True)
        new = self.number("max_completion_tokens", None, 1, math.inf, integer=True)
        if old is not None and new is not None and old != new:
            raise ApiError(
                f"max_tokens={old} and max_completion_tokens={new} differ.",
                "max_tokens",
                "pass one of them.",
            )
        return new if old is None else old

    def reject_unsupported(self) -> None:
        for name, value in self._left.items():
            if name in _METADATA or value in _NEUTRAL.get(name, ()):
                continue
            if name in _NEUTRAL or name in _SUPPORTED:
                raise ApiError(
                    f"{name}={_short(value)} is not supported by this server.",
                    name,
                    "omit it.",
                    code="unsupported_parameter",
                )
            near = difflib.get_close_matches(name[:60], _SUPPORTED, n=1)
            raise ApiError(
                f"unknown parameter {_short(name)}.",
                name[:60],
                f"did you mean {near[0]!r}?" if near else "omit it.",
                code="unknown_parameter",
            )


def _message(message, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise ApiError(
            f"{_short(message)} is not a message.", where, 'pass {"role": ..., "content": ...}.'
        )
    # Clients echo responses as they received them, including empty fields.
    filled = {name: value for name, value in message.items() if value not in (None, [], {})}
    role, content = filled.pop("role", None), filled.pop("content", None)
    if filled:
        name = next(iter(filled))
        raise ApiError(
            f"the message field {_short(name)} is not supported.",
            where,
            "omit it.",
            code="unsupported_parameter",
        )
    role = "system" if role == "developer" else role  # OpenAI's newer name
    if role not in chatml.ROLES:
        raise ApiError(
            f"role {_short(role)} is not one of {', '.join(chatml.ROLES)}.", f"{where}.role"
        )
    if isinstance(content, list):
        content = "".join(_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))
    if not isinstance(content, str):
        raise ApiError(f"content {_short(content)} is not text.", f"{where}.content")
    return {"role": role, "content": content}


def _part(part, where: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    kind = part.get("type") if isinstance(part, dict) else part
    raise ApiError(
        f"a content part of type {_short(kind)} is not supported.",
        where,
        'pass {"type": "text", "text": ...}; this model accepts only text.',
    )


def _prompts(prompt) -> list:
    """Returns the prompts of a request, each as text or token ids, which are not yet checked."""
    several = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
    return prompt if several else [prompt]


def _ids(prompt, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Returns the token ids of a prompt, given as text or token ids."""
    if isinstance(prompt, str):  # an empty prompt starts a document
        return tuple(tokenizer.encode(prompt)) or (tokenizer.end_of_text,)
    if not isinstance(prompt, list) or not prompt or not all(type(i) is int for i in prompt):
        raise ApiError(f"the prompt {_short(prompt)} is neither text nor token ids.", "prompt")
    if bad := [token for token in prompt if not 0 <= token < tokenizer.vocab_size]:
        raise ApiError(
            f"token id {_short(bad[0])} is not below vocab_size={tokenizer.vocab_size}.",
            "prompt",
        )
    return tuple(prompt)


def _check_length(texts: list, where: str, tokenizer: Tokenizer, limits: Limits) -> None:
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


def _short(value) -> str:
    """Returns a value as an error quotes it, without formatting all of a long one."""
    text = _REPR.repr(value) if isinstance(value, (dict, list, str)) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
