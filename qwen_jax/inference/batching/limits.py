"""What an engine refuses: settings, a cache that does not fit, requests that are too long."""

import jax
from jax.sharding import Mesh

from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.inference.batching.scheduler import SMALLEST_CHUNK
from qwen_jax.inference.decoder.kv_cache import cache_bytes
from qwen_jax.inference.request import Request
from qwen_jax.inference.sampling import check_stop_token_ids
from qwen_jax.inference.token_ids import is_integer, read_ids
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.utils.format import format_gib

CACHE_DTYPES = ("float32", "bfloat16", "float16", "int8")


def check_settings(*, cache_dtype: str | None, prefill_chunk: int, **positive: int) -> None:
    """Raises ConfigError for arguments of Engine that are out of their range.

    Args:
      positive: arguments that have to be positive integers.
    """
    for name, value in {"prefill_chunk": prefill_chunk, **positive}.items():
        if not (is_integer(value) and value >= 1):
            raise ConfigError(
                f"{name}={value!r} is not a positive integer.", f"Engine({name})", "use 1 or more."
            )
    if prefill_chunk < SMALLEST_CHUNK or prefill_chunk & (prefill_chunk - 1):
        raise ConfigError(
            f"prefill_chunk={prefill_chunk} is not a power of two from {SMALLEST_CHUNK} on.",
            "Engine(prefill_chunk)",
            "use 512.",
        )
    if cache_dtype is not None and cache_dtype not in CACHE_DTYPES:
        raise ConfigError(
            f"cache_dtype={cache_dtype!r} is unknown.",
            "Engine(cache_dtype)",
            f"use one of {', '.join(CACHE_DTYPES)}, or None.",
        )


def real_vocab_size(
    vocab_size: int | None, tokenizer: Tokenizer | None, config: ModelConfig
) -> int:
    """The ids that may be produced; None: the tokenizer's, or all of the model's.

    Raises:
      ConfigError: more than the model has.
    """
    if vocab_size is None:
        vocab_size = config.vocab_size if tokenizer is None else tokenizer.vocab_size
    if not (is_integer(vocab_size) and 1 <= vocab_size <= config.vocab_size):
        raise ConfigError(
            f"vocab_size={vocab_size!r} is outside [1, {config.vocab_size}].",
            "Engine(vocab_size)",
            "use the model's own tokenizer.",
        )
    return vocab_size


def check_memory(
    config: ModelConfig,
    *,
    rows: int,
    slots: int,
    cache_dtype: str | None,
    mesh: Mesh | None,
    memory_gib: float | None,
) -> None:
    """Refuses a cache that is larger than what a device may spend on it.

    Args:
      memory_gib: None: what the device says it has left, if it says so.
    """
    devices = [jax.devices()[0]] if mesh is None else list(mesh.devices.flat)
    limit = None if memory_gib is None else memory_gib * 2**30
    if limit is None:
        stats = devices[0].memory_stats() or {}
        if "bytes_limit" in stats:
            limit = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    needed = cache_bytes(config, rows, slots, dtype=cache_dtype) / _shards(config, rows, mesh)
    if limit is not None and needed > limit:
        fit = int(rows * limit / needed)
        raise ConfigError(
            f"the KV cache of {rows} rows of {slots} slots takes {format_gib(needed)} "
            f"of each device; there are {format_gib(limit)}.",
            "Engine(rows, slots)",
            f'{fit} rows of this length would fit; or use fewer slots, or cache_dtype="int8".',
        )


def _shards(config: ModelConfig, rows: int, mesh: Mesh | None) -> int:
    """How many pieces the cache is cut into."""
    if mesh is None:
        return 1
    over_rows = mesh.shape["data"] * mesh.shape["fsdp"]
    over_heads = mesh.shape["tensor"]
    return (over_rows if rows % over_rows == 0 else 1) * (
        over_heads if config.kv_heads % over_heads == 0 else 1
    )


def check_request(
    request: Request,
    config: ModelConfig,
    *,
    vocab_size: int,
    slots: int,
    tokenizer: Tokenizer | None,
) -> None:
    """Raises ConfigError or DataError, with the numbers, for what an engine cannot do.

    Args:
      vocab_size: the ids that a prompt may have.
    """
    read_ids(request.prompt, vocab_size, "Request(prompt)", DataError)
    check_stop_token_ids(request.sampling, config.vocab_size)
    if request.sampling.stop and tokenizer is None:
        raise ConfigError(
            "stop needs texts, and the engine has no tokenizer.",
            "stop",
            "make the engine with tokenizer=.",
        )
    length, new = len(request.prompt), request.sampling.max_new_tokens
    if length + new > slots:
        raise DataError(
            f"{length} prompt tokens and {new} new ones do not fit a row of {slots} slots.",
            "prompt, max_new_tokens",
            f"ask for at most {max(slots - length, 0)} new tokens, shorten "
            "the prompt, or make the engine with more slots.",
        )
