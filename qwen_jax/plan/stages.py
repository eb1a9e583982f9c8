"""The train step of each stage with abstract arguments: what is compiled is what would run."""

import dataclasses
from typing import Any

from jax.sharding import Mesh

from qwen_jax.align import reward_model
from qwen_jax.align.ppo_config import PPOConfig
from qwen_jax.align.ppo_state import ppo_program
from qwen_jax.config import MeshConfig, ModelConfig, OptimizerConfig, TrainConfig
from qwen_jax.data.chat.pairs import empty_pair
from qwen_jax.errors import unknown_name
from qwen_jax.model.spec import param_specs
from qwen_jax.model.value_head import scoring_specs
from qwen_jax.train import language_model
from qwen_jax.train.optimizer import make_optimizer
from qwen_jax.train.state import abstract_state
from qwen_jax.train.step import make_train_step
from qwen_jax.train.supervised import abstract_batch, batch_sharding, with_sharding
from qwen_jax.train.supervised_rows import abstract_rows


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is to be trained: the parts of an experiment's config that a step depends on."""

    stage: str  # "pretrain", "reward_model" or "ppo"
    model: ModelConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    ppo: PPOConfig = PPOConfig()
    value_optimizer: OptimizerConfig = OptimizerConfig()
    prompt_tokens: int = 512  # of PPO
    mesh: MeshConfig = MeshConfig()

    @property
    def rows(self) -> int:
        """Rows of context_length tokens (of prompt and answer in PPO) in a step."""
        return self.train.batch_size * (2 if self.stage == "reward_model" else 1)

    @property
    def row_tokens(self) -> int:
        if self.stage == "ppo":
            return self.prompt_tokens + self.ppo.max_new_tokens
        return self.model.context_length

    @property
    def pretrain_rows(self) -> int:
        """Rows of the pretraining gradient in a PPO step."""
        return self.ppo.pretrain_rows(self.rows) if self.stage == "ppo" else 0


@dataclasses.dataclass(frozen=True)
class Program:
    """A step to be compiled."""

    step: Any  # jitted
    arguments: tuple  # shapes, dtypes and shardings
    held: Any = None  # weights that lie on the device beside the step, the same


def build(workload: Workload, mesh: Mesh) -> Program:
    """The stage's step on a mesh, whose devices need not exist.

    Raises:
      ConfigError: an unknown stage.
      ShardingError: weights that do not divide over the mesh.
    """
    stages = {"pretrain": _pretrain, "reward_model": _reward_model, "ppo": _ppo}
    if workload.stage not in stages:
        raise unknown_name("stage", workload.stage, stages, "--stage")
    return stages[workload.stage](workload, mesh)


def _pretrain(workload: Workload, mesh: Mesh) -> Program:
    train, model = workload.train, workload.model
    return _supervised(
        workload,
        mesh,
        param_specs(model),
        language_model.make_objective(model, z_loss=train.z_loss),
        abstract_batch(train.batch_size, model.context_length),
    )


def _reward_model(workload: Workload, mesh: Mesh) -> Program:
    train, model = workload.train, workload.model
    return _supervised(
        workload,
        mesh,
        scoring_specs(model),
        reward_model.make_objective(model),
        abstract_rows(empty_pair(model.context_length), train.batch_size),
    )


def _supervised(workload: Workload, mesh: Mesh, specs, objective, batch) -> Program:
    train = workload.train
    optimizer = make_optimizer(workload.optimizer, train.num_steps)
    state = abstract_state(specs, optimizer, mesh, dtype=workload.model.param_dtype)
    step = make_train_step(objective, optimizer, seed=train.seed, micro_batches=train.micro_batches)
    return Program(step, (state, with_sharding(batch, batch_sharding(batch, mesh))))


def _ppo(workload: Workload, mesh: Mesh) -> Program:
    """The update, with a reward model and a reference in memory; sampling is another program."""
    program = ppo_program(
        workload,
        mesh,
        prompt_tokens=workload.prompt_tokens,
        pretrain_rows=workload.pretrain_rows,
    )
    return Program(program.step, (program.state, program.batch), held=program.frozen)
