"""Training adapters (model/lora.py) beside frozen weights: what that changes of a Job.

The base is an argument of the compiled step and comes with each batch: once on its devices, cut as
the weights of training are, in model.compute_dtype (to which every weight is cast before its use),
never donated and no part of the state. Captured by the step, it would be a constant of the program,
which weights that span processes cannot be.
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
from qwen_jax.train.job import Frozen, Job, RunFiles
from qwen_jax.train.step import Objective, make_train_step
from qwen_jax.train.telemetry import memory
from qwen_jax.types import Array, TrainState
from qwen_jax.utils.format import format_gib


@dataclasses.dataclass(frozen=True)
class Adapters:
    """Which adapters to train, and what base.json is to say of the weights beside them."""

    lora: LoRAConfig
    base: dict[str, Any]


class LoRABatch(PyTreeNode):
    """What a step of adapters is given."""

    base: Any
    batch: Any


def with_base(base: Any, objective: Objective, lora: LoRAConfig) -> Objective:
    """An objective of the whole model -> one of what is trained beside `base`."""

    def objective_of_adapters(trained, batch, key: Array | None):
        return objective(with_adapters(base, trained, lora), batch, key)

    return objective_of_adapters


def describe(lora: LoRAConfig, trained: int, state: Any, model: ModelConfig, frozen: Any) -> str:
    """The line of a run's header.

    Args:
      trained: parameters that are.
      state, frozen: shapes, dtypes and shardings.
    """
    return (
        f"adapters: rank {lora.rank}, alpha {lora.alpha:g}, on {', '.join(lora.targets)}: "
        f"{trained:,} parameters, {100 * trained / spec.count(model):.3g} % of the model; "
        f"{format_gib(memory.bytes_per_device(state))} per device with moments, beside "
        f"{format_gib(memory.bytes_per_device(frozen))} of frozen {model.compute_dtype} weights"
    )


class FrozenBase:
    """The weights beside the adapters, loaded when they are first needed.

    Attributes:
      specs: of the adapters.
      abstract: shapes, dtypes and shardings of the base.
    """

    def __init__(
        self,
        adapters: Adapters,
        model: ModelConfig,
        mesh: Mesh,
        load: Callable[[Any], Any],
        whole: Callable[[ModelConfig], Any] = spec.param_specs,
    ):
        """
        Args:
          load: abstract weights, with shardings -> the weights.
          whole: config -> specs of the model, a language model or another.
        """
        self._adapters, self._model, self._load = adapters, model, load
        self.specs = lora_specs(model, adapters.lora, whole)
        self.abstract = spec.abstract(whole(model), model.compute_dtype, mesh)

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
        """step.make_train_step for a state of adapters: train_step(state, LoRABatch).

        Args:
          objective: of the whole model's parameters.
        """

        def train_step(state: TrainState, given: LoRABatch):
            step = make_train_step(
                with_base(given.base, objective, self._adapters.lora),
                optimizer,
                seed=seed,
                micro_batches=micro_batches,
            )
            return step(state, given.batch)

        return jax.jit(train_step, donate_argnums=0)

    def under(self, job: Job) -> Job:
        """The job whose step is this make_train_step's: batches bring the base, evaluation sees the
        whole model, and weights that are trained in full begin as the base's."""

        @contextlib.contextmanager
        def batches(start_step: int):
            with job.batches(start_step) as next_batch:
                yield lambda step, state: LoRABatch(self.weights, next_batch(step, state))

        def of_whole(evaluate: Callable[[int, Any], dict[str, float]]):
            def evaluate_whole(done: int, state: TrainState) -> dict[str, float]:
                whole = with_adapters(self.weights, state.params, self._adapters.lora)
                return evaluate(done, state.replace(params=whole))

            return evaluate_whole

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
            files=RunFiles(job.files.tokenizer, {"base.json": self._adapters.base}),
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
            evaluate=None if job.evaluate is None else of_whole(job.evaluate),
        )
