"""What generation_config.json says: the sampling of requests that do not say, and the end tokens.

As in vLLM, numbers count and do_sample does not: a request without a temperature is sampled.
max_new_tokens does not count either; an answer may fill the context.
"""

import dataclasses
import math
import pathlib
from typing import Any

from qwen_jax.errors import ConfigError
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.utils.files import read_json

FILE = "generation_config.json"
_NUMBERS = ("temperature", "top_p", "top_k", "repetition_penalty")


@dataclasses.dataclass(frozen=True)
class GenerationDefaults:
    """Defaults of requests; without a file they are OpenAI's."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    repetition_penalty: float = 1.0
    eos_ids: tuple[int, ...] = ()  # besides those of the tokenizer's format


def read_generation_defaults(folder: str | pathlib.Path) -> GenerationDefaults:
    """Returns the defaults of a model's folder.

    Raises:
      ConfigError: a value is not a number, or is out of range.
      CheckpointError: the file is not a JSON object.
    """
    path = pathlib.Path(folder) / FILE
    if not path.is_file():
        return GenerationDefaults()
    raw = read_json(path, fix="download the file again, or remove it.")
    found: dict[str, Any] = {}
    for name in _NUMBERS:
        value = raw.get(name)
        if value is None or name == "top_k" and value in (0, -1):  # both: off
            continue
        integer = name == "top_k"
        if isinstance(value, bool) or not isinstance(value, int if integer else (int, float)):
            raise _error(path, name, value)
        if not math.isfinite(value):
            raise _error(path, name, value)
        found[name] = value if integer else float(value)
    try:
        SamplingParams(max_new_tokens=1, **found)
    except ConfigError as error:
        raise ConfigError(error.what, f"{path}, {error.where}", "correct the file.") from None
    eos = raw.get("eos_token_id")
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if not all(type(token) is int and token >= 0 for token in ids):
        raise _error(path, "eos_token_id", eos)
    return GenerationDefaults(**found, eos_ids=tuple(ids))


def _error(path: pathlib.Path, name: str, value: Any) -> ConfigError:
    return ConfigError(f"{name}={value!r} is not a number.", f"{path}, {name}", "correct the file.")
