"""The PPO step, the abstract inputs that it is compiled for, and its initial state.

A run (train_ppo.py) and the planner (plan/stages.py) compile the same `ppo_program`.

Shapes: B completions, T positions of prompt and completion.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qwen_jax.align.ppo import (
    FrozenModels,
    PPOBatch,
    PPOState,
    Rollout,
    RunningMoments,
    initial_moments,
    make_ppo_step,
)
from qwen_jax.align.ppo_config import PPOConfig
from qwen_jax.config import ModelConfig, OptimizerConfig, TrainConfig
from qwen_jax.model.lora import LoRAConfig, init_fully_trained, lora_specs
from qwen_jax.model.spec import abstract, param_specs
from qwen_jax.model.value_head import scoring_specs
from qwen_jax.parallel.sharding import DEFAULT_RULES
from qwen_jax.train.optimizer import make_optimizer
from qwen_jax.train.state import abstract_state, make_state
from qwen_jax.train.supervised import abstract_batch, with_sharding


class StepConfig(Protocol):
    """The settings that the compiled step depends on."""

    @property
    def model(self) -> ModelConfig: ...
    @property
    def ppo(self) -> PPOConfig: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...  # the policy's optimizer
    @property
    def value_optimizer(self) -> OptimizerConfig: ...
    @property
    def train(self) -> TrainConfig: ...


@dataclasses.dataclass(frozen=True)
class PPOProgram:
    """A PPO or GRPO step with its abstract inputs: shapes, dtypes, shardings; nothing allocated."""

    mesh: Mesh
    step: Any  # jitted: (state, batch) -> (state, metrics)
    state: Any  # PPOState; of GRPO a GRPOState
    batch: PPOBatch
    frozen: FrozenModels  # reference and reward models, in the compute dtype
    specs: tuple  # specs of the trained parameters: policy, value model (GRPO: only the policy)
    optimizers: tuple[optax.GradientTransformation, ...]
    lora: LoRAConfig | None


def ppo_program(
    config: StepConfig,
    mesh: Mesh,
    *,
    prompt_tokens: int,
    pretrain_sequences: int,
    pretrain_length: int | None = None,
    reward_model: bool = True,
    lora: LoRAConfig | None = None,
) -> PPOProgram:
    """Returns the program of a run on a mesh; the mesh devices need not exist.

    Args:
      prompt_tokens: length of the longest prompt, in tokens.
      pretrain_sequences: pretraining sequences per step; 0: no pretraining gradient.
      pretrain_length: tokens of such a sequence; None: the model's context.
      reward_model: whether the run has a reward model.
      lora: settings of the adapters on top of the frozen models; None: all weights are trained.

    Raises:
      ShardingError: the weights do not divide over the mesh.
    """
    model, train = config.model, config.train
    full_specs = param_specs, scoring_specs
    policy_specs, value_specs = (
        of(model) if lora is None else lora_specs(model, lora, of) for of in full_specs
    )
    optimizers = (
        make_optimizer(config.optimizer, train.num_steps),
        make_optimizer(config.value_optimizer, train.num_steps, "value_optimizer"),
    )
    everywhere = NamedSharding(mesh, PartitionSpec())
    number = jax.ShapeDtypeStruct((), np.float32, sharding=everywhere)
    policy = abstract_state(policy_specs, optimizers[0], mesh, dtype=model.param_dtype)
    value = abstract_state(value_specs, optimizers[1], mesh, dtype=model.param_dtype)
    state = PPOState(
        step=jax.ShapeDtypeStruct((), np.int32, sharding=everywhere),
        policy=policy.replace(halted=None),
        value=value.replace(halted=None),
        rewards=RunningMoments(count=number, mean=number, variance=number),
        halted=jax.ShapeDtypeStruct((), np.bool_, sharding=everywhere),
    )
    reference, reward = (abstract(of(model), model.compute_dtype, mesh) for of in full_specs)
    frozen = FrozenModels(reference, reward if reward_model else None)
    length = prompt_tokens + config.ppo.max_new_tokens
    batch = abstract_rollouts(
        config,
        mesh,
        length,
        pretrain_sequences=pretrain_sequences,
        pretrain_length=pretrain_length,
    )
    return PPOProgram(
        mesh=mesh,
        step=make_ppo_step(
            model,
            config.ppo,
            policy_optimizer=optimizers[0],
            value_optimizer=optimizers[1],
            seed=train.seed,
            micro_batches=train.micro_batches,
            lora=lora,
        ),
        state=state,
        batch=batch.replace(frozen=None if lora is None else frozen),
        frozen=frozen,
        specs=(policy_specs, value_specs),
        optimizers=optimizers,
        lora=lora,
    )


class BatchConfig(Protocol):
    """The settings that the shape of a batch depends on."""

    @property
    def model(self) -> ModelConfig: ...
    @property
    def train(self) -> TrainConfig: ...


def abstract_rollouts(
    config: BatchConfig,
    mesh: Mesh,
    length: int,
    *,
    pretrain_sequences: int = 0,
    pretrain_length: int | None = None,
    values: bool = True,
) -> PPOBatch:
    """Returns the abstract batch of a step; `length` counts the tokens of prompt and completion."""
    B, T = config.train.batch_size, length
    ids, numbers = (jax.ShapeDtypeStruct((B, T), dtype) for dtype in (np.int32, np.float32))
    scalars = jax.ShapeDtypeStruct((B,), np.float32)
    rollout = Rollout(
        tokens=ids,
        targets=ids,
        segment_ids=ids,
        response_mask=numbers,
        log_probs=numbers,
        sampler_log_probs=numbers,
        entropies=numbers,
        reference_log_probs=numbers,
        values=numbers if values else None,
        rewards=scalars,
        finished=scalars,
    )
    pretrain = None
    if pretrain_sequences:
        pretrain = abstract_batch(
            pretrain_sequences, pretrain_length or config.model.context_length
        )
    return with_sharding(PPOBatch(rollout=rollout, pretrain=pretrain), rollout_sharding(mesh))


def rollout_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of rollouts and pretraining sequences, over the batch axis."""
    return NamedSharding(mesh, DEFAULT_RULES.partition_spec(("batch",)))


def initial_state(
    program: PPOProgram,
    *,
    seed: int,
    policy: Callable[[Any], Any],
    value: Callable[[Any], Any],
    frozen: Callable[[], FrozenModels],
) -> PPOState:
    """Returns the state before the first step.

    Args:
      policy, value: functions from abstract parameters to initial weights, which are donated. Not
        called for adapters, which are initialized from the seed.
      frozen: loads the frozen models; only called for adapters.
    """

    def start(index: int, abstract, load):
        params = load(abstract.params) if program.lora is None else None
        specs, optimizer = program.specs[index], program.optimizers[index]
        return make_state(seed, specs, optimizer, abstract, params=params)

    policy_state = start(0, program.state.policy, policy)
    value_state = start(1, program.state.value, value)
    if program.lora is not None:
        params = init_fully_trained(frozen().value, value_state.params)
        value_state = value_state.replace(params=params)
    everywhere = program.state.step.sharding
    return PPOState(
        step=jax.device_put(np.int32(0), everywhere),
        policy=policy_state,
        value=value_state,
        rewards=jax.device_put(initial_moments(), everywhere),
        halted=jax.device_put(np.bool_(False), everywhere),
    )
