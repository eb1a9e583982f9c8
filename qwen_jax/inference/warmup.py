"""Starts an engine and compiles its programs before the first request."""

import time

import jax
from jax.sharding import Mesh

from qwen_jax.config import MeshConfig, ModelConfig
from qwen_jax.errors import ConfigError
from qwen_jax.inference.engine import Engine
from qwen_jax.inference.request import Request
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.parallel import compilation_cache
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.types import Params
from qwen_jax.utils.format import format_gib


def mesh_of(tensor: int) -> Mesh | None:
    """Returns a mesh that shards heads, FFN and vocabulary over `tensor` devices; None for one.

    Raises:
      ConfigError: `tensor` is not between 1 and the number of devices.
    """
    devices = jax.devices()
    if not 1 <= tensor <= len(devices):
        raise ConfigError(
            f"tensor={tensor} is not possible with {len(devices)} devices.",
            "--tensor",
            f"use 1 to {len(devices)}; it must also divide the number of heads.",
        )
    return (
        None
        if tensor == 1
        else make_mesh(MeshConfig(fsdp=1, tensor=tensor), devices=devices[:tensor])
    )


def mesh_over_all(tensor: int) -> Mesh | None:
    """Returns a mesh over all devices of all processes; None for one.

    Weights are sharded over groups of `tensor` devices, and rows are split over the groups.

    Raises:
      ConfigError: `tensor` does not divide the number of devices.
    """
    count = jax.device_count()
    if count % tensor:
        possible = [str(n) for n in range(1, count + 1) if count % n == 0]
        raise ConfigError(
            f"tensor={tensor} does not divide the number of devices, {count}.",
            "--tensor",
            f"use {' or '.join(possible)}; it must also divide the number of heads.",
        )
    data = count // tensor
    return None if count == 1 else make_mesh(MeshConfig(data=data, fsdp=1, tensor=tensor))


def start_engine(
    params: Params,
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    max_num_seqs: int,
    context: int,
    cache_dtype: str | None,
    memory_gib: float | None = None,
    mesh: Mesh | None = None,
    prompt_lengths: tuple[int, ...] = (1,),
) -> Engine:
    """Returns an engine compiled for prompts of these lengths; prints its memory and compile time.

    Compiled programs are kept on disk, for the next start.

    Raises:
      ConfigError: a setting is out of range, or the cache does not fit; the error gives the sizes.
    """
    compilation_cache.enable()
    engine = Engine(
        params,
        config,
        tokenizer=tokenizer,
        max_num_seqs=max_num_seqs,
        max_model_len=context,
        cache_dtype=cache_dtype,
        memory_gib=memory_gib,
        vocab_size=tokenizer.vocab_size,
        mesh=mesh,
    )
    size = format_gib(engine.memory())
    sequences = "sequence" if max_num_seqs == 1 else "sequences"
    print(f"KV cache: {size} for {max_num_seqs} {sequences}; compiling ...", flush=True)
    begin = time.monotonic()
    settings = [(length, SamplingParams(max_new_tokens=2)) for length in prompt_lengths]
    if max_num_seqs > 1:  # the second completion copies the prompt's cache while the first one runs
        settings.insert(0, (1, SamplingParams(max_new_tokens=32, n=2)))
    engine.run(
        [
            Request((tokenizer.end_of_text,) * length, sampling)
            for length, sampling in settings
            if length + sampling.max_new_tokens <= context
        ]
    )
    print(f"compiled in {time.monotonic() - begin:.1f} s", flush=True)
    return engine
