"""What a training stage hands to `train.run.run`: a Job, in five parts."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

from jax.sharding import Mesh

from qwen_jax.config import MeshConfig, ModelConfig, OptimizerConfig, TrainConfig
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train.run_folder import TrainingStage
from qwen_jax.train.telemetry.phases import PhaseTimer


class RunConfig(Protocol):
    """What any experiment's config has."""

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


NextBatch = Callable[[int, Any], Any]  # (step, state) -> batch


@dataclasses.dataclass(frozen=True)
class Program:
    """The state, and what is compiled to change it.

    `state` and `batch` are pytrees of shapes, dtypes and shardings.
    """

    state: Any  # has .step and .params
    make_state: Callable[[], Any]  # the state that a new run starts from
    step: Any  # jitted: (state, batch) -> (state, metrics)
    batch: Any
    between: Callable[[], list] = list  # compiles what runs between two steps


@dataclasses.dataclass(frozen=True)
class Frozen:
    """Weights that the run holds and does not train: shapes, dtypes and shardings; None: none."""

    in_batch: Any = None  # they reach the step as a part of its batch (train/adapters.py)
    outside_step: Any = None  # the step does not see them: PPO's sampler does


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """What the run writes into its folder before the first step."""

    tokenizer: Tokenizer | None = None  # for the stage that starts from this run
    records: dict[str, Any] = dataclasses.field(default_factory=dict)  # JSON files by name


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a training stage."""

    training_stage: TrainingStage
    parameters: str  # where the state has the trained parameters: "params", "policy.params"
    mesh: Mesh
    program: Program
    batches: Callable[[int], contextlib.AbstractContextManager[NextBatch]]  # from a step on
    evaluate: Callable[[int, Any], dict[str, float]] | None = None  # metrics to log
    frozen: Frozen = Frozen()
    files: RunFiles = RunFiles()
    phases: PhaseTimer | None = None  # of a step that has several; it runs within `batches`
    header: tuple[str, ...] = ()  # lines for the person who started it
