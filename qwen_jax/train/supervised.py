"""Trains on a fixed dataset: pretraining, SFT, reward modeling, DPO.

These stages have one objective, one optimizer and one TrainState. A batch depends only on the step.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from qwen_jax.config import ModelConfig
from qwen_jax.model import spec
from qwen_jax.parallel.batch_rows import put_rows, rows_here
from qwen_jax.parallel.mesh import check_batch, make_mesh
from qwen_jax.parallel.sharding import DEFAULT_RULES
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train.adapters import Adapters, FrozenBase
from qwen_jax.train.attempts.inputs import Input
from qwen_jax.train.evaluation import make_evaluator
from qwen_jax.train.job import Job, Program, RunConfig, RunFiles, at_row_length, row_length
from qwen_jax.train.optimizer import make_optimizer
from qwen_jax.train.run import run
from qwen_jax.train.run_folder import TrainingStage
from qwen_jax.train.state import abstract_state, make_state
from qwen_jax.train.step import Objective, make_train_step
from qwen_jax.train.telemetry import metrics
from qwen_jax.types import Batch, Params, TrainState
from qwen_jax.utils.format import format_seconds

Batches = Callable[[int], contextlib.AbstractContextManager[Iterable[Any]]]
Evaluate = Callable[[Callable, int, TrainState], dict[str, float]]
Benchmarks = Callable[[int, Params, bool], dict[str, float]]  # (completed steps, params, last)


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Held-out text for evaluation during training."""

    name: str
    batches: Callable[[], Iterable[Batch]]  # the same batches in every evaluation
    bytes_per_token: float


def train(
    config: RunConfig,
    *,
    training_stage: TrainingStage,
    objective: Objective,
    batches: Batches,
    batch: Any = None,
    specs: Callable[[ModelConfig], Any] = spec.param_specs,
    initial: Callable[[Any], Any] | None = None,
    adapters: Adapters | None = None,
    evaluate: Evaluate | None = None,
    tokenizer: Tokenizer | None = None,
    inputs: Callable[[], Sequence[Input]] = tuple,
    log: Callable[[str], None] = print,
) -> TrainState:
    """Trains until num_steps. See train.run.run for resuming and errors.

    Args:
      training_stage: name of the stage, written to config.json.
      batches: start step -> context manager of this process's NumPy batches from that step on.
      batch: shapes and dtypes of a global batch; None: a Batch with the sizes in the config.
      specs: config -> Specs of the parameters, such as a language or reward model's.
      initial: abstract parameters (with shardings) -> initial parameters; None: random
        initialization.
      adapters: LoRA adapters to train on top of the parameters of `initial`, which are frozen; the
        objective and `evaluate` receive the full model. None: train the parameters themselves.
      evaluate: (put, completed steps, state) -> metrics; `put` copies a NumPy batch to the mesh.
      tokenizer: saved to the run's folder, for later stages and for chat.
      inputs: returns the weights that the run has read, to record them.
    """
    mesh = make_mesh(config.mesh)
    check_batch(config.train.batch_size, config.train.micro_batches, mesh)
    base = None
    if adapters is not None:
        assert initial is not None, "adapters require `initial`, which loads the frozen weights"
        base, initial = FrozenBase(adapters, config.model, mesh, initial, specs), None
    specs = specs(config.model) if base is None else base.specs
    optimizer = make_optimizer(config.optimizer, config.train.num_steps)
    abstract = abstract_state(specs, optimizer, mesh, dtype=config.model.param_dtype)
    if batch is None:
        batch = abstract_batch(config.train.batch_size, row_length(config))
    sharding = batch_sharding(batch, mesh)
    rows = rows_here(mesh, config.train.batch_size)

    def put(batch):
        return put_rows(batch, rows, config.train.batch_size, sharding)

    @contextlib.contextmanager
    def batches_on_mesh(start_step: int):
        with batches(start_step) as stream:
            stream = iter(stream)
            yield lambda step, state: put(next(stream))

    program = Program(
        state=abstract,
        make_state=lambda: make_state(
            config.train.seed,
            specs,
            optimizer,
            abstract,
            params=None if initial is None else initial(abstract.params),
        ),
        step=(make_train_step if base is None else base.make_train_step)(
            objective, optimizer, seed=config.train.seed, micro_batches=config.train.micro_batches
        ),
        batch=with_sharding(batch, sharding),
    )
    job = Job(
        training_stage=training_stage,
        parameters="params",
        mesh=mesh,
        program=program,
        batches=batches_on_mesh,
        evaluate=None if evaluate is None else lambda done, state: evaluate(put, done, state),
        files=RunFiles(tokenizer, inputs=inputs),
        header=_header(config, mesh, None if base is None else spec.size(base.specs)),
    )
    return run(config, job if base is None else base.wrap(job), log=log)


def abstract_batch(batch_size: int, length: int) -> Batch:
    """Returns the shapes and dtypes of a Batch of `batch_size` sequences of `length` tokens."""
    integers = jax.ShapeDtypeStruct((batch_size, length), np.int32)
    return Batch(
        tokens=integers,
        targets=integers,
        segment_ids=integers,
        positions=integers,
        loss_weights=jax.ShapeDtypeStruct((batch_size, length), np.float32),
    )


def batch_sharding(batch: Any, mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch.

    A Batch is sharded over examples and length; any other batch, only over examples.
    """
    axes = ("batch", "length") if isinstance(batch, Batch) else ("batch",)
    return NamedSharding(mesh, DEFAULT_RULES.partition_spec(axes))


def with_sharding(tree: Any, sharding: NamedSharding) -> Any:
    """Returns the shapes and dtypes of a tree, with one sharding for all arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def language_evaluation(
    objective: Objective, held_out: tuple[HeldOut, ...], log: Callable[[str], None]
) -> Evaluate | None:
    """Returns the `evaluate` argument of `train` for a language model; None without held-out text.

    It computes the loss, perplexity and bits per byte of each held-out text.
    """
    made = []

    def evaluate(put, done: int, state: TrainState) -> dict[str, float]:
        if not made:
            made.append(make_evaluator(objective, put))
        found = {}
        for text in held_out:
            values = made[0](state.params, text.batches(), bytes_per_token=text.bytes_per_token)
            found |= {f"eval/{text.name}/{k}": v for k, v in values.items()}
            held = "held-out" if text.name == "held_out" else f"held-out {text.name}"
            log(
                f"step {done}  {held}: loss {values['loss']:.4f}  perplexity "
                f"{values['perplexity']:.2f}  bits per byte {values['bits_per_byte']:.4f}"
            )
        return found

    return evaluate if held_out else None


def with_benchmarks(
    evaluate: Evaluate | None, benchmarks: Benchmarks | None, num_steps: int
) -> Evaluate | None:
    """Returns the `evaluate` argument of `train` that also runs benchmarks.

    Args:
      benchmarks: (completed steps, params, whether the step is the last) -> metrics.
    """
    if benchmarks is None:
        return evaluate

    def both(put, done: int, state: TrainState) -> dict[str, float]:
        found = {} if evaluate is None else evaluate(put, done, state)
        return found | benchmarks(done, state.params, done == num_steps)

    return both


def _header(config: RunConfig, mesh: Mesh, adapters: int | None) -> tuple[str, ...]:
    """Returns the lines to log before the first step: batch size, tokens, cost."""
    train = config.train
    tokens = train.batch_size * row_length(config)
    total = tokens * train.num_steps
    flops, _ = metrics.flops_per_token(at_row_length(config), adapters=adapters)
    peak = metrics.peak_flops(mesh.devices.flat[0])[0] * mesh.devices.size
    return (
        f"batch: {train.batch_size} x {row_length(config)} = {tokens:,} tokens in "
        f"{train.micro_batches} micro-batch{'es' if train.micro_batches > 1 else ''}; "
        f"{train.num_steps:,} steps = {total:,} tokens",
        f"cost: {total * flops:.2e} FLOP (causal attention counted once), "
        f"{format_seconds(total * flops / (0.4 * peak))} at 40 % MFU",
    )
