"""Trains small models in one process. Arms and seeds of equal shapes share a compiled step."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from qwen_jax.config import MeshConfig, ModelConfig, OptimizerConfig
from qwen_jax.data.chat.sft_rows import Example
from qwen_jax.model.spec import param_specs
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.parallel.sharding import use_layout
from qwen_jax.parallel.xla_options import compile_for
from qwen_jax.tokenizer import chatml
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train.language_model import make_objective
from qwen_jax.train.optimizer import make_optimizer
from qwen_jax.train.state import abstract_state, make_state
from qwen_jax.train.step import make_train_step
from qwen_jax.train.supervised import abstract_batch, batch_sharding, with_sharding
from qwen_jax.types import Batch, Params


class Rows(Protocol):
    """Training sequences; item r is a Batch of [T] arrays."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Batch: ...


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How a model is trained: the report's AdamW, with a learning rate of ours."""

    steps: int
    rate: float
    batch_size: int = 16
    warmup: float = 0.05  # fraction of the steps
    cosine: bool = True  # otherwise constant after the warm-up
    weight_decay: float = 0.1  # report 2.4

    @property
    def optimizer(self) -> OptimizerConfig:
        return OptimizerConfig(
            peak_learning_rate=self.rate,
            warmup_steps=min(self.steps - 1, max(1, round(self.warmup * self.steps))),
            schedule="cosine" if self.cosine else "constant",
            weight_decay=self.weight_decay,
        )


@dataclasses.dataclass(frozen=True)
class TextRows:
    """Consecutive slices of a token stream, as in pretraining."""

    tokens: np.ndarray  # integers [n]
    length: int

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.length

    def __getitem__(self, index: int) -> Batch:
        span = self.tokens[index * self.length : (index + 1) * self.length + 1].astype(np.int32)
        ones = np.ones(self.length, np.int32)
        return Batch(
            tokens=span[:-1],
            targets=span[1:],
            loss_weights=ones.astype(np.float32),
            segment_ids=ones,
            positions=np.arange(self.length, dtype=np.int32),
        )


def chat_example(
    messages: Sequence[tuple[str, str]], tokenizer: Tokenizer, *, masked: bool = True
) -> Example:
    """Returns a conversation as tokens with loss weights.

    Args:
      masked: whether only the assistant's turns have a loss (report 3.1.2); otherwise all tokens.
    """
    rendered = chatml.render(messages, tokenizer)
    weights = chatml.loss_weights(rendered)
    return Example(rendered.tokens, weights if masked else np.ones_like(weights))


def train(
    model: ModelConfig,
    rows: Rows,
    schedule: Schedule,
    *,
    seed: int,
    start: Params | None = None,
    measure: Callable[[int, Params], None] | None = None,
    measure_at: Sequence[int] = (),
    log: Callable[[int, float], None] | None = None,
) -> Params:
    """Trains on random rows and returns the parameters.

    Args:
      seed: of the initial parameters (if there is no `start`) and of the order of the rows.
      start: initial parameters, which are kept; None: random.
      measure: receives the completed steps and the parameters, after the steps of `measure_at`.
      log: receives a step and its loss, every tenth of the run.
    """
    length = rows[0].tokens.shape[0]
    program = _program(model, schedule, length)
    params = None if start is None else jax.tree.map(jnp.copy, start)
    state = program.start(seed, params)
    every = max(1, schedule.steps // 10)
    for step, batch in enumerate(batches(rows, schedule.batch_size, seed, schedule.steps), 1):
        state, metrics = program.step(state, program.put(batch))
        if log is not None and (step % every == 0 or step == schedule.steps):
            log(step, float(metrics["train/loss"]))
        if measure is not None and step in measure_at:
            measure(step, state.params)
    return state.params


def batches(rows: Rows, batch_size: int, seed: int, number: int) -> Iterator[Batch]:
    """Yields batches of random rows; every row once before any row again."""
    rng, order = np.random.default_rng(seed), np.empty(0, np.int64)
    for _ in range(number):
        while len(order) < batch_size:
            order = np.append(order, rng.permutation(len(rows)))
        chosen, order = order[:batch_size], order[batch_size:]
        yield jax.tree.map(lambda *leaves: np.stack(leaves), *(rows[int(i)] for i in chosen))


def held_out_losses(
    model: ModelConfig, params: Params, tokens: np.ndarray, length: int, *, chunks: int
) -> list[float]:
    """Returns the mean loss of each of at most `chunks` consecutive parts of a text.

    Without context extension, even if `length` is above that of training.
    """
    batch_size = max(1, 2048 // length)
    size = batch_size * length
    number = min(chunks, (len(tokens) - 1) // size)
    return [
        held_out_loss(
            model,
            params,
            TextRows(tokens[i * size : (i + 1) * size + 1], length),
            batch_size=batch_size,
        )
        for i in range(number)
    ]


def held_out_loss(model: ModelConfig, params: Params, rows: Rows, *, batch_size: int = 16) -> float:
    """Returns the mean loss in nats per token over all full batches of the rows."""
    score = _scorer(dataclasses.replace(model, dropout=0.0))
    total = weight = 0.0
    for first in range(0, len(rows) - batch_size + 1, batch_size):
        batch = [rows[i] for i in range(first, first + batch_size)]
        sums = score(params, jax.tree.map(lambda *leaves: np.stack(leaves), *batch))
        total += float(sums.extras["cross_entropy"])
        weight += float(sums.weight_sum)
    return total / weight


def forget() -> None:
    """Drops the compiled programs, so that the next ones are traced with other functions."""
    _program.cache_clear()
    _scorer.cache_clear()


@functools.cache
def _scorer(model: ModelConfig):
    objective = make_objective(model, training=False)
    return jax.jit(lambda params, batch: objective(params, batch, None))


@dataclasses.dataclass(frozen=True)
class _Program:
    start: Callable[[int, Any], Any]
    step: Callable[[Any, Batch], tuple[Any, dict[str, Any]]]
    put: Callable[[Batch], Batch]


@functools.cache
def _program(model: ModelConfig, schedule: Schedule, length: int) -> _Program:
    """Returns the compiled step of a schedule: one per model, schedule and length of a row."""
    mesh = make_mesh(MeshConfig())
    specs = param_specs(model)
    optimizer = make_optimizer(schedule.optimizer, schedule.steps)
    abstract = abstract_state(specs, optimizer, mesh, dtype=model.param_dtype)
    batch = abstract_batch(schedule.batch_size, length)
    sharding = batch_sharding(batch, mesh)
    # The seed is for dropout, which these models do not have: seeds share the program.
    step = make_train_step(make_objective(model), optimizer, seed=0)
    with use_layout(mesh):
        lowered = step.lower(abstract, with_sharding(batch, sharding))
        compiled = compile_for(mesh.devices.flat[0].platform, lowered)
    return _Program(
        start=lambda seed, params: make_state(seed, specs, optimizer, abstract, params=params),
        step=compiled,
        put=lambda numpy: jax.device_put(numpy, sharding),
    )
