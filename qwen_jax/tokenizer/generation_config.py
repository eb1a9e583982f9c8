"""What a model's generation_config.json says: which ids end a completion, and how to sample.

As in vLLM, `temperature`, `top_k`, `top_p` and `repetition_penalty` are defaults, on top of which
come flags and the fields of requests. `do_sample` and lengths are not read.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from qwen_jax.errors import TokenizerError
from qwen_jax.ranges import ABOVE_ZERO, ONE_OR_MORE, ZERO_OR_MORE, Range
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.settings import GENERATION, Settings, parse_json
from qwen_jax.utils.files import read_bytes

# Types, and the ranges of SamplingParams, whose errors would name a flag that nobody has set.
_KINDS: dict[str, tuple[type, Range]] = {
    "temperature": (float, ZERO_OR_MORE),
    "top_k": (int, ONE_OR_MORE),
    "top_p": (float, Range(above=0, at_most=1)),
    "repetition_penalty": (float, ABOVE_ZERO),
}
_MAX_BYTES = 1 << 20


def eos_ids(settings: Settings) -> tuple[int, ...]:
    """Returns the ids that end a completion; (): the file does not say, or there is none.

    Raises:
      TokenizerError: they are not ids.
    """
    return ids_of(settings.generation)


def ids_of(generation: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the ids that end a completion, of the content of the file. Raises as eos_ids does."""
    found = generation.get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if any(isinstance(one, bool) or not isinstance(one, int) or one < 0 for one in ids):
        raise _wrong("eos_token_id", found, "an id, or a list of ids")
    return tuple(ids)


def sampling(settings: Settings) -> dict[str, Any]:
    """Returns the sampling defaults by the names of SamplingParams; null and top_k=0 are left out.

    Raises:
      TokenizerError: a value is not a number, or is out of range.
    """
    found = {}
    for name, (kind, limits) in _KINDS.items():
        value = settings.generation.get(name)
        if value is None or name == "top_k" and value in (0, -1):  # 0 and -1: all tokens
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or kind(value) != value:
            raise _wrong(name, value, "a number")
        if value not in limits:
            raise _wrong(name, value, f"a number {limits}")
        found[name] = kind(value)
    return found


def resolve(
    settings: Settings, given: Mapping[str, Any], ours: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """Returns sampling parameters, and a phrase that says which ones are the model's.

    Args:
      given: what flags say; None is a flag that was not set, which overrides nothing.
      ours: values for what neither flags nor the file say.

    Raises:
      TokenizerError: a value in the file is not a number.
    """
    file = sampling(settings)
    used = {name: value for name, value in file.items() if given.get(name) is None}
    found = {
        name: used.get(name, ours.get(name)) if value is None else value
        for name, value in given.items()
    }
    said = ", ".join(f"{name} {value:g}" for name, value in used.items())
    return found, f"{said} ({GENERATION})" if said else ""


def of_folder(tokenizer: Tokenizer, folder: pathlib.Path) -> Tokenizer:
    """Returns the tokenizer with the generation_config.json of a model's folder.

    Without such a file there, the tokenizer's own remains.

    Raises:
      CheckpointError: the file is not JSON.
    """
    path = folder / GENERATION
    if not path.is_file():
        return tokenizer
    data = read_bytes(
        path, error=TokenizerError, fix="download the file again.", max_bytes=_MAX_BYTES
    )
    files = {**tokenizer.settings.files, GENERATION: data}
    generation = parse_json(files, GENERATION, str(folder))
    return tokenizer.with_settings(
        dataclasses.replace(tokenizer.settings, files=files, generation=generation)
    )


def _wrong(name: str, value: Any, wanted: str) -> TokenizerError:
    return TokenizerError(
        f"{name}={str(value)[:60]} is not {wanted}.",
        GENERATION,
        "restore the file that was released with the model.",
    )
