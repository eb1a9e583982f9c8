"""What is asked of the engine and what it answers: requests, events, completions."""

import dataclasses
import operator

import jax
import numpy as np

from qwen_jax.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt to continue. Checked when it is made; an error names the field."""

    prompt: tuple[int, ...]  # token ids
    max_new_tokens: int
    temperature: float = 0.0  # 0: always the most probable token
    top_k: int | None = None  # draw only from the k most probable tokens; applied before top_p
    top_p: float = 1.0  # draw only from the fewest tokens that have this much probability together
    repetition_penalty: float = 1.0  # tokens of the prompt and the answer become less probable
    stop_ids: tuple[int, ...] = ()  # end the answer; not part of it
    stop_strings: tuple[str, ...] = ()  # the same, in the text; they need the engine's tokenizer
    seed: int = 0
    logprobs: bool = False  # of the chosen tokens, under the model's own softmax, not truncated

    def __post_init__(self):
        check_settings(
            "Request",
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
        )
        for name, error in (("prompt", DataError), ("stop_ids", ConfigError)):
            ids = read_ids(
                getattr(self, name), None, f"Request({name})", error, may_be_empty=name != "prompt"
            )
            object.__setattr__(self, name, tuple(ids.tolist()))
        if isinstance(self.stop_strings, str) or not all(
            isinstance(text, str) and text for text in self.stop_strings
        ):
            raise ConfigError(
                f"stop_strings={self.stop_strings!r} is not a list of texts.",
                "Request(stop_strings)",
                "pass a tuple of texts that are not empty.",
            )
        object.__setattr__(self, "stop_strings", tuple(self.stop_strings))
        if not (is_whole(self.seed) and 0 <= self.seed < 2**32):
            raise ConfigError(
                f"seed={self.seed!r} is not a whole number in [0, 2^32).",
                "Request(seed)",
                "use one of these.",
            )


@dataclasses.dataclass(frozen=True)
class Event:
    """One new token of a request, or the request's end (no token, `finish` set)."""

    request_id: int
    token: int | None
    text: str  # complete characters only, held back while a stop string may have begun
    logprob: float | None  # if the request asks for them
    finish: str | None = None  # "stop", "length" or "cancelled" at the end


@dataclasses.dataclass(frozen=True)
class Completion:
    """The whole answer to one request."""

    tokens: tuple[int, ...]
    text: str  # empty without a tokenizer
    logprobs: tuple[float, ...] | None
    finish: str  # "stop", "length" or "cancelled"


def check_settings(
    where: str, *, max_new_tokens, temperature, top_p, top_k, repetition_penalty
) -> None:
    """Raises ConfigError naming the setting that is out of its range."""

    def check(ok, name, value, what, fix):
        if not ok:
            raise ConfigError(f"{name}={value!r} {what}.", f"{where}({name})", fix)

    check(
        is_whole(max_new_tokens) and max_new_tokens >= 1,
        "max_new_tokens",
        max_new_tokens,
        "is not a positive whole number",
        "use 1 or more.",
    )
    check(
        _is_number(temperature) and 0 <= temperature < np.inf,
        "temperature",
        temperature,
        "is negative or not a number",
        "use 0 for the most probable token, or about 0.7 to 1 to draw.",
    )
    check(
        _is_number(top_p) and 0 < top_p <= 1,
        "top_p",
        top_p,
        "is outside (0, 1]",
        "use 1 to turn it off.",
    )
    check(
        top_k is None or (is_whole(top_k) and top_k >= 1),
        "top_k",
        top_k,
        "is not a positive whole number",
        "use None to turn it off.",
    )
    check(
        _is_number(repetition_penalty) and 0 < repetition_penalty < np.inf,
        "repetition_penalty",
        repetition_penalty,
        "is not positive",
        "use 1 to turn it off, or about 1.1.",
    )


def is_whole(value) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def read_ids(
    ids, vocab_size: int | None, where: str, error, *, may_be_empty: bool = True
) -> np.ndarray:
    """Token ids as int32 [any], checked; vocab_size None: against 2^31 alone."""
    values = ids
    if not isinstance(ids, np.ndarray) and not isinstance(ids, jax.Array):
        try:
            values = [operator.index(token) for token in ids]
        except TypeError:
            raise error(
                f"{_short(ids)} is not a list of token ids.",
                where,
                "pass whole numbers, such as Tokenizer.encode gives.",
            ) from None
    values = np.asarray(values if len(values) else np.zeros((0,), np.int32))
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise error(
            f"{_short(ids)} is not a list of token ids.",
            where,
            "pass whole numbers, such as Tokenizer.encode gives.",
        )
    if not may_be_empty and not len(values):
        raise error(
            "the prompt is empty.",
            where,
            "give the model at least one token to start from, such as <|endoftext|>.",
        )
    bad = values[(values < 0) | (values >= (vocab_size or 2**31))]
    if len(bad):
        size = "2^31" if vocab_size is None else vocab_size
        raise error(
            f"token id {bad[0]} is outside of the vocabulary of {size}.",
            where,
            "encode with the tokenizer that the model was trained with.",
        )
    return values.astype(np.int32)


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
