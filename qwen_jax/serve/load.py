"""Loads a model with its engine, as the server and the page of runs offer it."""

import dataclasses
from typing import Any

from jax.sharding import Mesh

from qwen_jax.inference import chat
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.inference.warmup import start_engine
from qwen_jax.pretrained.load import load_model
from qwen_jax.serve.api.protocol import Limits
from qwen_jax.serve.limits import ClientLimits
from qwen_jax.serve.models import Served
from qwen_jax.serve.worker import Worker
from qwen_jax.tokenizer import generation_config
from qwen_jax.tokenizer.settings import GENERATION

PROMPT_LENGTHS = (16, 32, 64, 128, 256, 512)  # of prompt chunks, compiled before the first request


@dataclasses.dataclass(frozen=True)
class EngineSettings:
    """Settings of each model's engine and queue, as in experiments.serve."""

    max_num_seqs: int
    max_queued: int
    limits: ClientLimits  # resolved
    tokenizer: str | None = None
    context: int | None = None
    cache_dtype: str | None = None
    memory_gib: float | None = None
    allow_nonfinite: bool = False
    mesh: Mesh | None = None
    prompt_lengths: tuple[int, ...] = PROMPT_LENGTHS


def load(checkpoint: str, name: str, settings: EngineSettings, log: Any = print) -> Served:
    """Loads a model and compiles its programs.

    Args:
      checkpoint: a run folder, a released folder, or a name on the Hub.
      name: for clients.

    Raises:
      QwenJaxError: as pretrained.load.load_model and inference.warmup.start_engine.
    """
    model, params, tokenizer = load_model(
        checkpoint,
        settings.tokenizer,
        mesh=settings.mesh,
        allow_nonfinite=settings.allow_nonfinite,
    )
    defaults = generation_config.sampling(tokenizer.settings)
    SamplingParams.named(f"{GENERATION}, {{}}", max_new_tokens=1, **defaults)  # its ranges
    context, sentence = chat.context(model, settings.context)
    log(f"context: {sentence}; up to {settings.max_num_seqs} completions at once")
    engine = start_engine(
        params,
        model,
        tokenizer,
        max_num_seqs=settings.max_num_seqs,
        context=context,
        cache_dtype=settings.cache_dtype,
        memory_gib=settings.memory_gib,
        mesh=settings.mesh,
        prompt_lengths=settings.prompt_lengths,
    )
    limits = settings.limits
    assert limits.max_choices is not None
    worker = Worker(
        engine,
        max_num_seqs=settings.max_num_seqs,
        max_queued=settings.max_queued,
        max_client_choices=limits.max_client_choices,
    )
    return Served(worker, tokenizer, Limits(name, context, limits.max_choices, defaults))
