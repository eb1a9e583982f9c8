"""The engine's input and output: requests, events, completions."""

import dataclasses

from qwen_jax.errors import DataError
from qwen_jax.inference.constraints.grammar import Grammar
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.inference.token_ids import read_ids


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt to complete. Fields are validated on construction; errors name the field."""

    prompt: tuple[int, ...]  # token ids
    sampling: SamplingParams
    grammar: Grammar | None = None  # what the completion must be

    def __post_init__(self):
        ids = read_ids(self.prompt, None, "Request(prompt)", DataError, may_be_empty=False)
        object.__setattr__(self, "prompt", tuple(ids.tolist()))


@dataclasses.dataclass(frozen=True)
class Event:
    """One new token of a request, or the end of the request (no token, `finish` set)."""

    request_id: int
    token: int | None
    text: str  # complete characters only; text that may be part of a stop string is held back
    logprob: float | None  # set only if SamplingParams.logprobs is true
    finish: str | None = None  # "stop", "length" or "cancelled" in the last event


@dataclasses.dataclass(frozen=True)
class Completion:
    """The full completion of one request."""

    tokens: tuple[int, ...]
    text: str  # empty without a tokenizer
    logprobs: tuple[float, ...] | None
    finish: str  # "stop", "length" or "cancelled"
