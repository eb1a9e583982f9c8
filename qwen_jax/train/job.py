"""The Job that a training stage passes to `train.run.run`."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from jax.sharding import Mesh

from qwen_jax.config import MeshConfig, ModelConfig, OptimizerConfig, TrainConfig
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train.attempts.inputs import Input
from qwen_jax.train.run_folder import TrainingStage
from qwen_jax.train.telemetry.phases import PhaseTimer


class RunConfig(Protocol):
    """The fields that every training config has."""

    @property
    def run_dir(self) -> str: ...

    @property
    def model(self) -> ModelConfig: ...

    @property
    def optimizer(self) -> OptimizerConfig: ...

    @property
    def mesh(self) -> MeshConfig: ...

    @property
    def train(self) -> TrainConfig: ...

    @property
    def restart_from_scratch(self) -> bool: ...

    @property
    def allow_changes(self) -> bool: ...


def row_length(config: Any) -> int:
    """Returns the tokens of a row of training data: data.context_length, or the model's context.

    Args:
      config: a RunConfig, which may have data.context_length.
    """
    length = getattr(getattr(config, "data", None), "context_length", None)
    return config.model.context_length if length is None else length


def at_row_length(config: Any) -> ModelConfig:
    """Returns the run's model with rows as its context, for what a step computes and costs."""
    return dataclasses.replace(config.model, context_length=row_length(config))


NextBatch = Callable[[int, Any], Any]  # (step, state) -> batch


@dataclasses.dataclass(frozen=True)
class Program:
    """The training state and its compiled step.

    `state` and `batch` are pytrees of shapes, dtypes and shardings.
    """

    state: Any  # has the attributes step and params
    make_state: Callable[[], Any]  # the initial state of a new run
    step: Any  # jitted: (state, batch) -> (state, metrics)
    batch: Any
    between: Callable[[], list] = list  # compiles the programs that run between two steps


@dataclasses.dataclass(frozen=True)
class Frozen:
    """Weights that the run loads but does not train, as shapes, dtypes and shardings.

    A field is None if there are no such weights.
    """

    in_batch: Any = None  # passed to the step as part of its batch (train/adapters.py)
    outside_step: Any = None  # used only outside the step, for example by PPO's sampler


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """Files that the run writes into its folder before the first step."""

    tokenizer: Tokenizer | None = None  # for stages that start from this run
    records: dict[str, Any] = dataclasses.field(default_factory=dict)  # file name -> JSON content
    inputs: Callable[[], Sequence[Input]] = tuple  # weights read so far; settings name the others


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a training stage."""

    training_stage: TrainingStage
    parameters: str  # path of the trained parameters in the state: "params", "policy.params"
    mesh: Mesh
    program: Program
    batches: Callable[[int], contextlib.AbstractContextManager[NextBatch]]  # takes the start step
    evaluate: Callable[[int, Any], dict[str, float]] | None = None  # returns metrics to log
    frozen: Frozen = Frozen()
    files: RunFiles = RunFiles()
    phases: PhaseTimer | None = None  # for steps with several phases; `batches` starts it
    header: tuple[str, ...] = ()  # lines to log before the first step
