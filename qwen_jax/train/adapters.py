"""Trains LoRA adapters (model/lora.py) on top of frozen weights.

The frozen base is an argument of the compiled step, passed with each batch. The devices hold one
copy, sharded like trained weights, in model.compute_dtype (every weight is cast to it before use).
It is never donated and is not part of the state. If the step closed over it, it would become a
constant of the program, and weights that span processes cannot be constants.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from flax.struct import PyTreeNode
from jax.sharding import Mesh

from qwen_jax.config import ModelConfig
from qwen_jax.model import spec
from qwen_jax.model.lora import LoRAConfig, init_fully_trained, lora_specs, with_adapters
from qwen_jax.train.job import Frozen, Job
from qwen_jax.train.step import Objective, make_train_step
from qwen_jax.train.telemetry import memory
from qwen_jax.types import Array, TrainState
from qwen_jax.utils.format import format_gib


@dataclasses.dataclass(frozen=True)
class Adapters:
    """The adapters to train, and the contents of base.json, which describes the frozen weights."""

    lora: LoRAConfig
    base: dict[str, Any]


class LoRABatch(PyTreeNode):
    """The input of an adapter training step: the frozen weights and a batch."""

    base: Any
    batch: Any


def with_base(base: Any, objective: Objective, lora: LoRAConfig) -> Objective:
    """Converts an objective of the full model to one of the adapters on top of `base`."""

    def objective_of_adapters(trained, batch, key: Array | None):
        return objective(with_adapters(base, trained, lora), batch, key)

    return objective_of_adapters


def describe(lora: LoRAConfig, trained: int, state: Any, model: ModelConfig, frozen: Any) -> str:
    """Returns the line about adapters that a run logs before its first step.

    Args:
      trained: number of trained parameters.
      state, frozen: pytrees of shapes, dtypes and shardings.
    """
    return (
        f"adapters: rank {lora.rank}, alpha {lora.alpha:g}, on {', '.join(lora.targets)}: "
        f"{trained:,} parameters, {100 * trained / spec.count(model):.3g} % of the model; "
        f"{format_gib(memory.bytes_per_device(state))} per device including moments, on top of "
        f"{format_gib(memory.bytes_per_device(frozen))} of frozen {model.compute_dtype} weights"
    )


class FrozenBase:
    """The frozen weights of an adapter run, loaded on first use.

    Attributes:
      specs: Specs of the adapters.
      abstract: shapes, dtypes and shardings of the base.
    """

    def __init__(
        self,
        adapters: Adapters,
        model: ModelConfig,
        mesh: Mesh,
        load: Callable[[Any], Any],
        model_specs: Callable[[ModelConfig], Any] = spec.param_specs,
    ):
        """
        Args:
          load: abstract weights with shardings -> the loaded weights.
          model_specs: config -> Specs of the full model, such as a language or reward model.
        """
        self._adapters, self._model, self._load = adapters, model, load
        self.specs = lora_specs(model, adapters.lora, model_specs)
        self.abstract = spec.abstract(model_specs(model), model.compute_dtype, mesh)

    @functools.cached_property
    def weights(self) -> Any:
        return self._load(self.abstract)

    def make_train_step(
        self,
        objective: Objective,
        optimizer: optax.GradientTransformation,
        *,
        seed: int,
        micro_batches: int,
    ):
        """Returns train_step(state, LoRABatch); like step.make_train_step, for a state of adapters.

        Args:
          objective: a function of the full model's parameters.
        """

        def train_step(state: TrainState, inputs: LoRABatch):
            step = make_train_step(
                with_base(inputs.base, objective, self._adapters.lora),
                optimizer,
                seed=seed,
                micro_batches=micro_batches,
            )
            return step(state, inputs.batch)

        return jax.jit(train_step, donate_argnums=0)

    def wrap(self, job: Job) -> Job:
        """Adapts a job whose step comes from this object's make_train_step.

        Each batch carries the base, evaluation receives the full model, and fully trained weights
        are initialized from the base.
        """

        @contextlib.contextmanager
        def batches(start_step: int):
            with job.batches(start_step) as next_batch:
                yield lambda step, state: LoRABatch(self.weights, next_batch(step, state))

        def on_full_model(evaluate: Callable[[int, Any], dict[str, float]]):
            def evaluate_full(done: int, state: TrainState) -> dict[str, float]:
                params = with_adapters(self.weights, state.params, self._adapters.lora)
                return evaluate(done, state.replace(params=params))

            return evaluate_full

        def make_state() -> TrainState:
            state = job.program.make_state()
            return state.replace(params=init_fully_trained(self.weights, state.params))

        return dataclasses.replace(
            job,
            program=dataclasses.replace(
                job.program,
                make_state=make_state,
                batch=LoRABatch(self.abstract, job.program.batch),
            ),
            batches=batches,
            frozen=Frozen(in_batch=self.abstract),
            files=dataclasses.replace(job.files, records={"base.json": self._adapters.base}),
            header=(
                describe(
                    self._adapters.lora,
                    spec.size(self.specs),
                    job.program.state,
                    self._model,
                    self.abstract,
                ),
                *job.header,
            ),
            evaluate=None if job.evaluate is None else on_full_model(job.evaluate),
        )
