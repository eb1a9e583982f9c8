"""A server of a small model with random weights, whose answers only a grammar makes valid."""

import contextlib
import dataclasses

import jax

from qwen_jax import sizes
from qwen_jax.inference.engine import Engine
from qwen_jax.model.spec import init_params
from tests.helpers.server import running
from tests.helpers.tool_models import HERMES, tokenizer_with

CONTEXT = 4096
_CONFIG = dataclasses.replace(
    sizes.TINY, vocab_size=320, context_length=CONTEXT, num_layers=1, initializer_range=0.3
)


@contextlib.contextmanager
def random_server(template: str | None = HERMES):
    """Serves the model within the block; None: Qwen-1's format, with ReAct."""
    tokenizer = tokenizer_with(template)
    config = dataclasses.replace(_CONFIG, vocab_size=-(-tokenizer.vocab_size // 64) * 64)
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    engine = Engine(params, config, tokenizer=tokenizer, max_num_seqs=4, max_model_len=CONTEXT)
    with running(engine, tokenizer, context=CONTEXT) as server:
        yield server
