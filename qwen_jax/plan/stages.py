"""The train step of each stage with abstract arguments: what is compiled is what would run."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qwen_jax.align import ppo as ppo_step
from qwen_jax.align import reward_model
from qwen_jax.config import MeshConfig, ModelConfig, OptimizerConfig, TrainConfig
from qwen_jax.errors import unknown_name
from qwen_jax.model import spec
from qwen_jax.model import value_head as heads
from qwen_jax.parallel.sharding import DEFAULT_RULES
from qwen_jax.train import language_model
from qwen_jax.train.optimizer import make_optimizer
from qwen_jax.train.state import abstract_state
from qwen_jax.train.step import make_train_step
from qwen_jax.train.supervised import abstract_batch
from qwen_jax.types import PairBatch


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is to be trained: the parts of an experiment's config that a step depends on."""

    stage: str  # "pretrain", "reward_model" or "ppo"
    model: ModelConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    ppo: ppo_step.PPOConfig = ppo_step.PPOConfig()
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
        if self.stage != "ppo" or not self.ppo.pretrain_coefficient:
            return 0
        return round(self.rows * self.ppo.pretrain_ratio)


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
    objective = language_model.make_objective(model, z_loss=train.z_loss)
    batch = abstract_batch(train.batch_size, model.context_length)
    return _supervised(
        workload,
        mesh,
        spec.param_specs(model),
        objective,
        _placed(batch, mesh, ("batch", "length")),
    )


def _reward_model(workload: Workload, mesh: Mesh) -> Program:
    B, T = workload.train.batch_size, workload.model.context_length
    ids, weights = (jax.ShapeDtypeStruct((B, 2, T), dtype) for dtype in (np.int32, np.float32))
    pairs = PairBatch(
        tokens=ids,
        targets=ids,
        answer_weights=weights,
        segment_ids=ids,
        end=jax.ShapeDtypeStruct((B, 2), np.int32),
        weights=jax.ShapeDtypeStruct((B,), np.float32),
    )
    return _supervised(
        workload,
        mesh,
        heads.scoring_specs(workload.model),
        reward_model.make_objective(workload.model),
        _placed(pairs, mesh, ("batch",)),
    )


def _supervised(workload: Workload, mesh: Mesh, specs, objective, batch) -> Program:
    train = workload.train
    optimizer = make_optimizer(workload.optimizer, train.num_steps)
    state = abstract_state(specs, optimizer, mesh, dtype=workload.model.param_dtype)
    step = make_train_step(objective, optimizer, seed=train.seed, micro_batches=train.micro_batches)
    return Program(step, (state, batch))


def _ppo(workload: Workload, mesh: Mesh) -> Program:
    """The update, with a reward model and a reference beside it; sampling is another program."""
    model, train, settings = workload.model, workload.train, workload.ppo
    wholes = spec.param_specs(model), heads.scoring_specs(model)
    optimizers = [
        make_optimizer(adam, train.num_steps)
        for adam in (workload.optimizer, workload.value_optimizer)
    ]
    policy, value = (
        abstract_state(specs, optimizer, mesh, dtype=model.param_dtype).replace(halted=None)
        for specs, optimizer in zip(wholes, optimizers, strict=True)
    )
    everywhere = NamedSharding(mesh, PartitionSpec())
    number = jax.ShapeDtypeStruct((), np.float32, sharding=everywhere)
    state = ppo_step.PPOState(
        step=jax.ShapeDtypeStruct((), np.int32, sharding=everywhere),
        policy=policy,
        value=value,
        rewards=ppo_step.RunningMoments(count=number, mean=number, variance=number),
        halted=jax.ShapeDtypeStruct((), np.bool_, sharding=everywhere),
    )
    B, T = workload.rows, workload.row_tokens
    ids, numbers = (jax.ShapeDtypeStruct((B, T), dtype) for dtype in (np.int32, np.float32))
    row = jax.ShapeDtypeStruct((B,), np.float32)
    rollout = ppo_step.Rollout(
        tokens=ids,
        targets=ids,
        segment_ids=ids,
        actions=numbers,
        log_probs=numbers,
        sampler_log_probs=numbers,
        entropies=numbers,
        reference_log_probs=numbers,
        values=numbers,
        rewards=row,
        ended=row,
    )
    pretrain = (
        abstract_batch(workload.pretrain_rows, model.context_length)
        if workload.pretrain_rows
        else None
    )
    batch = _placed(ppo_step.PPOBatch(rollout=rollout, pretrain=pretrain), mesh, ("batch",))
    step = ppo_step.make_ppo_step(
        model,
        settings,
        policy_optimizer=optimizers[0],
        value_optimizer=optimizers[1],
        seed=train.seed,
        micro_batches=train.micro_batches,
    )
    held = [spec.abstract(specs, model.compute_dtype, mesh) for specs in wholes]
    return Program(step, (state, batch), held=held)


def _placed(tree, mesh: Mesh, axes: tuple[str, ...]):
    sharding = NamedSharding(mesh, DEFAULT_RULES.partition_spec(axes))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
