"""The GRPO run: from settings and a run folder to the final checkpoint.

The step is in step.py. Batches, frozen models and prompts are those of PPO (align/train_ppo.py),
and the training loop is shared by all stages (train/run.py).
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qwen_jax.align.grpo.config import GRPOConfig
from qwen_jax.align.grpo.step import GRPOState, make_grpo_step
from qwen_jax.align.ppo import FrozenModels
from qwen_jax.align.ppo_config import PromptData
from qwen_jax.align.ppo_state import PPOProgram, abstract_rollouts
from qwen_jax.align.rewards import RewardFunction, load_function
from qwen_jax.align.train_ppo import (
    RolloutBatches,
    check_rollouts,
    frozen_models,
    read_prompts,
    rollout_job,
)
from qwen_jax.model.lora import LoRAConfig, lora_specs
from qwen_jax.model.spec import abstract, param_specs
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.pretrained.start import StageConfig, weights_of
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train.job import RunFiles
from qwen_jax.train.optimizer import make_optimizer
from qwen_jax.train.run import run
from qwen_jax.train.state import abstract_state, make_state


class GRPORunConfig(StageConfig, Protocol):
    """Config of a GRPO run (experiments/grpo.py)."""

    reward_functions: tuple[str, ...]  # module:function
    data: PromptData
    grpo: GRPOConfig


def train_grpo(
    config: GRPORunConfig, tokenizer: Tokenizer, *, log: Callable[[str], None] = print
) -> GRPOState:
    """Trains until num_steps and returns the final state; train.run.run resumes it.

    Raises:
      ConfigError: settings or run folders are inconsistent.
      QwenJaxError: as in train.run.run.
    """
    mesh = make_mesh(config.mesh)
    reward_functions = [RewardFunction(load_function(name)) for name in config.reward_functions]
    prompts = read_prompts(config.data, tokenizer, reward_functions, log)
    check_rollouts(config, config.grpo, prompts.length, mesh, "grpo.num_generations")
    lora = None if config.lora.rank is None else config.lora
    program = grpo_program(config, mesh, prompt_tokens=prompts.length, lora=lora)
    frozen, records, pins = frozen_models(config, program, None)
    batches = RolloutBatches(
        config,
        config.grpo,
        tokenizer,
        prompts,
        program=program,
        frozen=frozen,
        reward_functions=reward_functions,
    )

    def make_initial_state() -> GRPOState:
        policy = program.state.policy
        params = weights_of(config.init_from, pin=pins[0])(policy.params) if lora is None else None
        specs, optimizer = program.specs[0], program.optimizers[0]
        return GRPOState(
            step=jax.device_put(np.int32(0), program.state.step.sharding),
            policy=make_state(config.train.seed, specs, optimizer, policy, params=params),
            halted=jax.device_put(np.bool_(False), program.state.step.sharding),
        )

    job = rollout_job(
        "grpo",
        config,
        program,
        make_initial_state,
        batches,
        RunFiles(tokenizer, records, lambda: [x for pin in pins for x in pin.inputs()]),
        header=[_header(config, prompts.length)],
    )
    state: Any = run(config, job, log=log)
    return state


def grpo_program(
    config: GRPORunConfig, mesh: Mesh, *, prompt_tokens: int, lora: LoRAConfig | None = None
) -> PPOProgram:
    """Returns the step of a run with its abstract inputs; like ppo_program, without a value model.

    Args:
      prompt_tokens: length of the longest prompt, in tokens.
      lora: settings of the adapters on top of the reference; None: all weights are trained.

    Raises:
      ShardingError: the weights do not divide over the mesh.
    """
    model, train = config.model, config.train
    specs = param_specs(model) if lora is None else lora_specs(model, lora, param_specs)
    optimizer = make_optimizer(config.optimizer, train.num_steps)
    everywhere = NamedSharding(mesh, PartitionSpec())
    policy = abstract_state(specs, optimizer, mesh, dtype=model.param_dtype)
    frozen = FrozenModels(abstract(param_specs(model), model.compute_dtype, mesh), None)
    length = prompt_tokens + config.grpo.max_new_tokens
    batch = abstract_rollouts(config, mesh, length, values=False)
    return PPOProgram(
        mesh=mesh,
        step=make_grpo_step(
            model,
            config.grpo,
            optimizer=optimizer,
            seed=train.seed,
            micro_batches=train.micro_batches,
            lora=lora,
        ),
        state=GRPOState(
            step=jax.ShapeDtypeStruct((), np.int32, sharding=everywhere),
            policy=policy.replace(halted=None),
            halted=jax.ShapeDtypeStruct((), np.bool_, sharding=everywhere),
        ),
        batch=batch.replace(frozen=None if lora is None else frozen),
        frozen=frozen,
        specs=(specs,),
        optimizers=(optimizer,),
        lora=lora,
    )


def _header(config: GRPORunConfig, prompt_length: int) -> str:
    group = config.grpo.num_generations
    return (
        f"batch: {config.train.batch_size // group} prompts, {group} completions each, up to "
        f"{prompt_length} + {config.grpo.max_new_tokens} tokens; KL weight {config.grpo.beta}"
    )
