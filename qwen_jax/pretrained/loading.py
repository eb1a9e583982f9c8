"""A checkpoint folder -> what chat, generate and serve start from."""

import pathlib
import time

import jax
from jax.sharding import Mesh

from qwen_jax.config import MeshConfig, ModelConfig
from qwen_jax.errors import ConfigError
from qwen_jax.inference.engine import Engine
from qwen_jax.inference.request import Request
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.pretrained.huggingface import load_pretrained
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.huggingface import load_tokenizer
from qwen_jax.types import Params


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


def load(
    checkpoint: str, tokenizer: str | None = None, *, mesh: Mesh | None = None
) -> tuple[ModelConfig, Params, Tokenizer]:
    """The model of a run or released folder, and its tokenizer.

    Args:
      tokenizer: a .tiktoken file; None: the one in the folder, or its tokenizer.json.
      mesh: the devices that the weights are cut over; None: one device.

    Raises:
      ConfigError: no folder is named, no tokenizer is found, or one of another model.
      CheckpointError, TokenizerError: files that are missing or damaged.
    """
    if not checkpoint:
        raise ConfigError("no model.", "--checkpoint", "name a folder; --help shows how.")
    found = Tokenizer.from_file(tokenizer) if tokenizer else tokenizer_in(checkpoint)
    config, params = load_pretrained(checkpoint, mesh=mesh)
    if found.vocab_size > config.vocab_size:
        raise ConfigError(
            f"the tokenizer has {found.vocab_size} ids, the model {config.vocab_size} rows.",
            "--tokenizer",
            "pass the tokenizer that the model was trained with.",
        )
    return config, params, found


def start_engine(
    params: Params,
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    rows: int,
    context: int,
    cache_dtype: str | None,
    memory_gb: float | None = None,
    mesh: Mesh | None = None,
    prompt_lengths: tuple[int, ...] = (1,),
) -> Engine:
    """An engine that has compiled what answers to prompts of these lengths need; says what it took.

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
        memory_gb=memory_gb,
        vocab_size=tokenizer.vocab_size,
        mesh=mesh,
    )
    print(f"cache: {engine.memory() / 1e9:.3g} GB for {rows} rows; compiling ...", flush=True)
    begin = time.monotonic()
    engine.run(
        [
            Request((tokenizer.end_of_text,) * length, max_new_tokens=2)
            for length in prompt_lengths
            if length + 2 <= context
        ]
    )
    print(f"compiled in {time.monotonic() - begin:.1f} s", flush=True)
    return engine


def tokenizer_in(folder: str) -> Tokenizer:
    """The tokenizer that lies in a model's folder.

    Raises:
      ConfigError: there is none, or more than one.
    """
    files = sorted(pathlib.Path(folder).glob("*.tiktoken"))
    if len(files) == 1:
        return Tokenizer.from_file(files[0])
    if not files and (pathlib.Path(folder) / "tokenizer.json").is_file():
        return load_tokenizer(folder)
    raise ConfigError(
        f"{len(files)} .tiktoken files in the model's folder.", folder, "name one with --tokenizer."
    )
