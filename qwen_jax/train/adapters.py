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

import flax.struct
import jax
import optax
from jax.sharding import Mesh

from qwen_jax.config import ModelConfig
from qwen_jax.model import spec
from qwen_jax.model.lora import LoRAConfig, lora_specs, with_adapters
from qwen_jax.train import memory
from qwen_jax.train.run import Job
from qwen_jax.train.step import Objective, make_train_step
from qwen_jax.types import Params, TrainState


@dataclasses.dataclass(frozen=True)
class Adapters:
    """Which adapters to train, and what base.json is to say of the weights beside them."""

    lora: LoRAConfig
    base: dict[str, Any]


@flax.struct.dataclass
class OnBase:
    """What a step of adapters is given."""

    base: Params
    batch: Any


class FrozenBase:
    """The weights beside the adapters, loaded when they are first needed.

    Attributes:
      specs: of the adapters.
      abstract: shapes, dtypes and shardings of the base.
    """

    def __init__(self, adapters: Adapters, model: ModelConfig, mesh: Mesh,
                 load: Callable[[Params], Params]):
        """
        Args:
          load: abstract Params, with shardings -> the weights.
        """
        self._adapters, self._model, self._load = adapters, model, load
        self.specs = lora_specs(model, adapters.lora)
        self.abstract = spec.abstract(spec.param_specs(model), model.compute_dtype, mesh)

    @functools.cached_property
    def weights(self) -> Params:
        return self._load(self.abstract)

    def make_train_step(self, objective: Objective, optimizer: optax.GradientTransformation, *,
                        seed: int, micro_batches: int):
        """step.make_train_step for a state of adapters: train_step(state, OnBase).

        Args:
          objective: of the whole model's Params.
        """
        def train_step(state: TrainState, given: OnBase):
            def beside_base(adapters, batch, key):
                whole = with_adapters(given.base, adapters, self._adapters.lora)
                return objective(whole, batch, key)

            step = make_train_step(beside_base, optimizer, seed=seed, micro_batches=micro_batches)
            return step(state, given.batch)

        return jax.jit(train_step, donate_argnums=0)

    def under(self, job: Job) -> Job:
        """The job whose step is this make_train_step's: batches bring the base, and evaluation sees
        the whole model."""
        @contextlib.contextmanager
        def batches(start_step: int):
            with job.batches(start_step) as next_batch:
                yield lambda step, state: OnBase(self.weights, next_batch(step, state))

        def evaluate(done: int, state: TrainState):
            whole = with_adapters(self.weights, state.params, self._adapters.lora)
            return job.evaluate(done, state.replace(params=whole))

        return dataclasses.replace(
            job, batch=OnBase(self.abstract, job.batch), batches=batches, frozen=self.abstract,
            base=self._adapters.base, header=(self._line(job.state), *job.header),
            evaluate=None if job.evaluate is None else evaluate)

    def _line(self, state: TrainState) -> str:
        lora, trained = self._adapters.lora, spec.size(self.specs)
        return (f"adapters: rank {lora.rank}, alpha {lora.alpha:g}, on {', '.join(lora.targets)}: "
                f"{trained:,} parameters, {100 * trained / spec.count(self._model):.3g} % of the "
                f"model; {memory.gib(memory.bytes_per_device(state))} per device with moments, "
                f"beside {memory.gib(memory.bytes_per_device(self.abstract))} of frozen "
                f"{self._model.compute_dtype} weights")
