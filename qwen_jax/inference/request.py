"""The engine's input and output: requests, events, completions."""

import dataclasses

from qwen_jax.errors import DataError
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.inference.token_ids import read_ids


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt to continue. Fields are validated on construction; an error names the field."""

    prompt: tuple[int, ...]  # token ids
    sampling: SamplingParams

    def __post_init__(self):
        ids = read_ids(self.prompt, None, "Request(prompt)", DataError, may_be_empty=False)
        object.__setattr__(self, "prompt", tuple(ids.tolist()))


@dataclasses.dataclass(frozen=True)
class Event:
    """One new token of a request, or the end of the request (no token, `finish` set)."""

    request_id: int
    token: int | None
    text: str  # only complete characters; held back while it may be part of a stop string
    logprob: float | None  # only with SamplingParams.logprobs
    finish: str | None = None  # "stop", "length" or "cancelled" at the end


@dataclasses.dataclass(frozen=True)
class Completion:
    """The full completion of one request."""

    tokens: tuple[int, ...]
    text: str  # empty without a tokenizer
    logprobs: tuple[float, ...] | None
    finish: str  # "stop", "length" or "cancelled"
