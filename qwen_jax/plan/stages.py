"""The train step of each training stage, identical to a real run, with abstract arguments."""

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
from qwen_jax.train.supervised_examples import abstract_examples


@dataclasses.dataclass(frozen=True)
class Workload:
    """The parts of an experiment's config that the compiled step depends on."""

    training_stage: str  # "pretrain", "reward_model" or "ppo"
    model: ModelConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    ppo: PPOConfig = PPOConfig()
    value_optimizer: OptimizerConfig = OptimizerConfig()
    prompt_tokens: int = 512  # PPO only
    mesh: MeshConfig = MeshConfig()

    @property
    def sequences(self) -> int:
        """Sequences per step: prompt and completion in PPO, else context_length tokens each."""
        return self.train.batch_size * (2 if self.training_stage == "reward_model" else 1)

    @property
    def sequence_length(self) -> int:
        if self.training_stage == "ppo":
            return self.prompt_tokens + self.ppo.max_new_tokens
        return self.model.context_length

    @property
    def pretrain_sequences(self) -> int:
        """Pretraining sequences per PPO step; 0 in other stages."""
        return self.ppo.pretrain_sequences(self.sequences) if self.training_stage == "ppo" else 0


@dataclasses.dataclass(frozen=True)
class Program:
    """A step to compile."""

    step: Any  # jitted
    arguments: tuple  # abstract arrays: shapes, dtypes and shardings
    frozen: Any = None  # abstract frozen weights on the device that are not arguments of the step


def build(workload: Workload, mesh: Mesh) -> Program:
    """Returns the step of the training stage on a mesh; the mesh devices need not exist.

    Raises:
      ConfigError: the stage is unknown.
      ShardingError: the weights do not divide over the mesh.
    """
    stages = {"pretrain": _pretrain, "reward_model": _reward_model, "ppo": _ppo}
    if workload.training_stage not in stages:
        raise unknown_name("training stage", workload.training_stage, stages, "--training_stage")
    return stages[workload.training_stage](workload, mesh)


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
        abstract_examples(empty_pair(model.context_length), train.batch_size),
    )


def _supervised(workload: Workload, mesh: Mesh, specs, objective, batch) -> Program:
    train = workload.train
    optimizer = make_optimizer(workload.optimizer, train.num_steps)
    state = abstract_state(specs, optimizer, mesh, dtype=workload.model.param_dtype)
    step = make_train_step(objective, optimizer, seed=train.seed, micro_batches=train.micro_batches)
    return Program(step, (state, with_sharding(batch, batch_sharding(batch, mesh))))


def _ppo(workload: Workload, mesh: Mesh) -> Program:
    """The PPO update, with the reward and reference models in memory; excludes sampling."""
    program = ppo_program(
        workload,
        mesh,
        prompt_tokens=workload.prompt_tokens,
        pretrain_sequences=workload.pretrain_sequences,
    )
    return Program(program.step, (program.state, program.batch), frozen=program.frozen)
