"""Validates an engine's settings, the memory of its cache, and its requests."""

import jax
from jax.sharding import Mesh

from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.inference.batching.scheduler import SMALLEST_CHUNK
from qwen_jax.inference.decoder.kv_cache import cache_bytes
from qwen_jax.inference.request import Request
from qwen_jax.inference.sampling import check_stop_token_ids, check_token_ids
from qwen_jax.inference.token_ids import is_integer, read_ids
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.utils.format import format_gib

CACHE_DTYPES = ("float32", "bfloat16", "float16", "int8")


def check_settings(*, cache_dtype: str | None, prefill_chunk: int, **positive: int) -> None:
    """Raises ConfigError if an argument of Engine is out of range.

    Args:
      positive: arguments that must be positive integers.
    """
    for name, value in {"prefill_chunk": prefill_chunk, **positive}.items():
        if not (is_integer(value) and value >= 1):
            raise ConfigError(
                f"{name}={value!r} is not a positive integer.", f"Engine({name})", "use 1 or more."
            )
    if prefill_chunk < SMALLEST_CHUNK or prefill_chunk & (prefill_chunk - 1):
        raise ConfigError(
            f"prefill_chunk={prefill_chunk} is not a power of two of at least {SMALLEST_CHUNK}.",
            "Engine(prefill_chunk)",
            "use 512, the default.",
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
    """Returns the number of ids that may be sampled.

    Args:
      vocab_size: the requested size; None: the tokenizer's, or the model's without a tokenizer.

    Raises:
      ConfigError: vocab_size is not between 1 and the model's vocab_size.
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
    num_slots: int,
    max_length: int,
    cache_dtype: str | None,
    mesh: Mesh | None,
    memory_gib: float | None,
) -> None:
    """Raises ConfigError if the cache exceeds the memory limit of a device.

    Args:
      num_slots: decode slots of the cache, each of `max_length` positions.
      memory_gib: the limit per device, in GiB; None: the free memory that the device reports, if
        any.
    """
    device = jax.local_devices()[0] if mesh is None else mesh.local_devices[0]
    limit = None if memory_gib is None else memory_gib * 2**30
    if limit is None:
        stats = device.memory_stats() or {}
        if "bytes_limit" in stats:
            limit = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    needed = cache_bytes(config, num_slots, max_length, dtype=cache_dtype)
    needed /= _num_shards(config, num_slots, mesh)
    if limit is not None and needed > limit:
        fit = int(num_slots * limit / needed)
        raise ConfigError(
            f"the KV cache of {num_slots} sequences of {max_length} tokens needs "
            f"{format_gib(needed)} on each device, but only {format_gib(limit)} is available.",
            "Engine(max_num_seqs, max_model_len)",
            f"lower max_num_seqs ({fit} sequences of this length fit) or max_model_len, or use "
            'cache_dtype="int8".',
        )


def _num_shards(config: ModelConfig, num_slots: int, mesh: Mesh | None) -> int:
    """Returns the number of shards of the cache."""
    if mesh is None:
        return 1
    over_slots = mesh.shape["data"] * mesh.shape["fsdp"]
    over_heads = mesh.shape["tensor"]
    return (over_slots if num_slots % over_slots == 0 else 1) * (
        over_heads if config.kv_heads % over_heads == 0 else 1
    )


def check_request(
    request: Request,
    config: ModelConfig,
    *,
    vocab_size: int,
    max_length: int,
    tokenizer: Tokenizer | None,
) -> None:
    """Raises ConfigError or DataError, with the sizes, if an engine cannot run this request.

    Args:
      vocab_size: prompt ids must be below this.
      max_length: maximum of prompt and new tokens together.
    """
    read_ids(request.prompt, vocab_size, "Request(prompt)", DataError)
    check_stop_token_ids(request.sampling, config.vocab_size)
    check_token_ids(request.sampling, vocab_size)
    if request.sampling.stop and tokenizer is None:
        raise ConfigError(
            "stop strings need a tokenizer, but the engine has none.",
            "stop",
            "pass tokenizer= to the engine.",
        )
    length, new = len(request.prompt), request.sampling.max_new_tokens
    if length + new > max_length:
        raise DataError(
            f"{length} prompt tokens plus {new} new tokens exceed max_model_len={max_length}.",
            "prompt, max_new_tokens",
            f"request at most {max(max_length - length, 0)} new tokens, shorten "
            "the prompt, or raise the engine's max_model_len.",
        )
