"""A tiny model and two tasks without files, for tests of evaluation in processes of their own."""

import dataclasses
import pathlib

import jax

from benchmarks.evaluate.invariance import WORDS
from qwen_jax import sizes
from qwen_jax.evaluate import harness, run, tasks
from qwen_jax.model.spec import init_params
from qwen_jax.pretrained.huggingface import save_pretrained
from qwen_jax.tokenizer.bpe import Tokenizer

TOKENIZER = Tokenizer({bytes([byte]): byte for byte in range(256)})
CONFIG = dataclasses.replace(
    sizes.TINY,
    context_length=512,
    vocab_size=TOKENIZER.vocab_size,
    num_layers=1,
    initializer_range=0.3,
)
_UNANSWERABLE = tasks.TASKS["unanswerable"]
TASKS = {  # choices, and short completions
    "words": WORDS,
    "unanswerable": dataclasses.replace(
        _UNANSWERABLE, generation=dataclasses.replace(_UNANSWERABLE.generation, max_new_tokens=12)
    ),
}


def model() -> harness.Model:
    params = jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(0))
    return harness.Model(CONFIG, params, TOKENIZER)


def save(folder: pathlib.Path) -> None:
    """Writes a checkpoint with a context for prompts of benchmarks, for experiments.evaluate."""
    config = dataclasses.replace(CONFIG, context_length=2048)
    save_pretrained(folder, config, model().params, tokenizer=TOKENIZER)


def evaluate(model, folder, *, limit: int = 7, **settings):
    """Evaluates both tasks; returns results and log lines."""
    before, lines = dict(tasks.TASKS), []
    tasks.TASKS.update(TASKS)
    try:
        found = run(
            model, list(TASKS), data=[], output=folder, limit=limit, log=lines.append, **settings
        )
    finally:
        tasks.TASKS.clear()
        tasks.TASKS.update(before)
    return found, lines
