"""The parameters of a request; errors name the parameter.

A parameter that would change the completion is never silently ignored. An unsupported parameter is
rejected, unless its value has no effect.
"""

import dataclasses
import difflib
import math
import reprlib
import secrets
from collections.abc import Mapping
from typing import Any

from qwen_jax.serve.errors import ApiError

MAX_STOPS = 64  # OpenAI's limit is 4; HumanEval has 5 and each costs a search per token
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxlist = _REPR.maxdict = 60
_OPENAI = {"temperature": 1.0, "top_p": 1.0, "top_k": None, "repetition_penalty": 1.0}
# Parameters that do not change the completion, such as metadata about the client.
_METADATA = frozenset(
    {
        "user",
        "metadata",
        "safety_identifier",
        "prompt_cache_key",
        "store",
        "service_tier",
    }
)
# Unsupported parameter -> its values that have no effect, which are accepted.
_NEUTRAL = {
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "top_logprobs": (0,),
    "modalities": (["text"],),
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
    "top_logprobs",
    "echo",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "response_format",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "chat_template_kwargs",
    "add_generation_prompt",
    "continue_final_message",
    "return_token_ids",
)


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits that requests are checked against."""

    model: str  # the model name that requests must use
    context: int  # tokens of a prompt and its completion together
    max_choices: int  # completions of a request
    # Sampling of requests that do not say; what is not in it is as in OpenAI's API.
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Fields:
    """The parameters of a request, removed as they are read; null counts as absent."""

    def __init__(self, body: dict[str, Any], limits: Limits, *, model_required: bool = True):
        self.limits = limits
        self._left = {name: value for name, value in body.items() if value is not None}
        model = self.take("model", None if model_required else limits.model)
        if not isinstance(model, str):
            raise ApiError("model is missing or not a string.", "model", f"use {limits.model!r}.")
        if model != limits.model:
            raise ApiError(
                f"model {short(model)} does not exist.",
                "model",
                f"use {limits.model!r}, the model of this server.",
                status=404,
                code="model_not_found",
            )

    def take(self, name: str, default=None):
        """Removes and returns a parameter."""
        return self._left.pop(name, default)

    def flag(self, name: str, default: bool = False) -> bool:
        """Removes and returns a boolean."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise ApiError(f"{name}={short(value)} is not true or false.", name)
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
                f"{name}={short(value)} is not {expected} from {low} to {high}.",
                name,
                "use a value in this range.",
            )
        return value

    def sampling(self) -> dict[str, Any]:
        """Returns fields of SamplingParams, which validates those not validated here."""
        seed, defaults = self.take("seed"), {**_OPENAI, **self.limits.defaults}
        penalty = defaults["repetition_penalty"]
        fields = {
            "temperature": self.number("temperature", defaults["temperature"], 0, 2),
            "top_p": self.take("top_p", defaults["top_p"]),
            "top_k": self.take("top_k", defaults["top_k"]),
            "repetition_penalty": self.number("repetition_penalty", penalty, 0.01, 100),
            "presence_penalty": self.number("presence_penalty", 0.0, -2, 2),
            "frequency_penalty": self.number("frequency_penalty", 0.0, -2, 2),
            "logit_bias": self._bias(),
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

    def _bias(self) -> dict[str, Any]:
        bias = self.take("logit_bias", {})
        if not isinstance(bias, dict):
            raise ApiError(
                f"logit_bias={short(bias)} is not an object.",
                "logit_bias",
                'pass {"TOKEN_ID": NUMBER}.',
            )
        return bias

    def max_tokens(self, least: int = 1) -> int | None:
        """Removes and returns the maximum number of new tokens, under either of its names."""
        old = self.number("max_tokens", None, least, math.inf, integer=True)
        new = self.number("max_completion_tokens", None, least, math.inf, integer=True)
        if old is not None and new is not None and old != new:
            raise ApiError(
                f"max_tokens={old} and max_completion_tokens={new} differ.",
                "max_tokens",
                "pass one of them.",
            )
        return new if old is None else old

    def reject_unsupported(self) -> None:
        """Raises ApiError if a parameter is left that would have an effect."""
        for name, value in self._left.items():
            if name in _METADATA or value in _NEUTRAL.get(name, ()):
                continue
            if name in _NEUTRAL or name in _SUPPORTED:
                raise ApiError(
                    f"{name}={short(value)} is not supported by this server.",
                    name,
                    "omit it.",
                    code="unsupported_parameter",
                )
            near = difflib.get_close_matches(name[:60], _SUPPORTED, n=1)
            raise ApiError(
                f"unknown parameter {short(name)}.",
                name[:60] or "''",
                f"did you mean {near[0]!r}?" if near else "omit it.",
                code="unknown_parameter",
            )


def short(value) -> str:
    """Returns a value as an error quotes it, without formatting all of a long one."""
    text = _REPR.repr(value) if isinstance(value, (dict, list, str)) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
