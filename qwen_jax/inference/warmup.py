"""An engine that has compiled its programs before the first request comes."""

import time

import jax
from jax.sharding import Mesh

from qwen_jax.config import MeshConfig, ModelConfig
from qwen_jax.errors import ConfigError
from qwen_jax.inference.engine import Engine
from qwen_jax.inference.request import Request
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.types import Params
from qwen_jax.utils.format import format_gib


def mesh_of(tensor: int) -> Mesh | None:
    """Heads, FFN and vocabulary cut over `tensor` devices; None for one device.

    Raises:
      ConfigError: there are fewer devices.
    """
    devices = jax.devices()
    if not 1 <= tensor <= len(devices):
        raise ConfigError(
            f"tensor={tensor} on {len(devices)} devices.",
            "--tensor",
            f"use 1 to {len(devices)}; it must divide the heads as well.",
        )
    return (
        None
        if tensor == 1
        else make_mesh(MeshConfig(fsdp=1, tensor=tensor), devices=devices[:tensor])
    )


def start_engine(
    params: Params,
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    rows: int,
    context: int,
    cache_dtype: str | None,
    memory_gib: float | None = None,
    mesh: Mesh | None = None,
    prompt_lengths: tuple[int, ...] = (1,),
) -> Engine:
    """An engine that has compiled what prompts of these lengths need; prints memory and time.

    Raises:
      ConfigError: a setting out of its range, or a cache that does not fit, with the numbers.
    """
    engine = Engine(
        params,
        config,
        tokenizer=tokenizer,
        rows=rows,
        slots=context,
        cache_dtype=cache_dtype,
        memory_gib=memory_gib,
        vocab_size=tokenizer.vocab_size,
        mesh=mesh,
    )
    print(f"cache: {format_gib(engine.memory())} for {rows} rows; compiling ...", flush=True)
    begin = time.monotonic()
    engine.run(
        [
            Request((tokenizer.end_of_text,) * length, SamplingParams(max_new_tokens=2))
            for length in prompt_lengths
            if length + 2 <= context
        ]
    )
    print(f"compiled in {time.monotonic() - begin:.1f} s", flush=True)
    return engine
