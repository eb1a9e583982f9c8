"""The PPO run: from settings and run folders to the final checkpoint. Report: 3.2.2.

Reading order: `train_ppo`, then the functions that it calls. The step is in ppo.py. Its batches are
rollouts of the current policy (rollout.py). The training loop is shared by all stages
(train/run.py).
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from qwen_jax.align.ppo import FrozenModels, PPOBatch, PPOState
from qwen_jax.align.ppo_config import PPOConfig, PPOData
from qwen_jax.align.ppo_state import PPOProgram, initial_state, ppo_program, rollout_sharding
from qwen_jax.align.rewards import load_function
from qwen_jax.align.rollout import PromptDataset, RewardFunction, Sampler, collate, sampling_inputs
from qwen_jax.align.rollout_programs import RolloutPrograms, compiled_programs, rollout_programs
from qwen_jax.config import OptimizerConfig
from qwen_jax.data.batches import Batches
from qwen_jax.data.chat.conversations import Counts
from qwen_jax.data.chat.prompts import read_prompts
from qwen_jax.data.loader import Loader
from qwen_jax.errors import ConfigError
from qwen_jax.model.spec import size
from qwen_jax.parallel.mesh import check_batch, make_mesh
from qwen_jax.pretrained import merged
from qwen_jax.pretrained.start import (
    Pin,
    StageConfig,
    adopt,
    frozen_scoring_weights_of,
    frozen_weights_of,
    is_scoring_run,
    scoring_weights_of,
    weights_of,
)
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train.adapters import describe
from qwen_jax.train.job import Frozen, Job, Program, RunFiles
from qwen_jax.train.run import run
from qwen_jax.train.telemetry.phases import PhaseTimer


class PPORunConfig(StageConfig, Protocol):
    """Config of a PPO run (experiments/ppo.py)."""

    reward_model: str | None  # the reward model's run folder
    reward_functions: tuple[str, ...]  # module:function
    data: PPOData
    ppo: PPOConfig
    value_optimizer: OptimizerConfig


def train_ppo(
    config: PPORunConfig, tokenizer: Tokenizer, *, log: Callable[[str], None] = print
) -> PPOState:
    """Trains until num_steps and returns the final state; train.run.run resumes it.

    Raises:
      ConfigError: settings or run folders are inconsistent.
      QwenJaxError: as in train.run.run.
    """
    mesh = make_mesh(config.mesh)
    reward_functions = [load_function(name) for name in config.reward_functions]
    prompts = _read_prompts(config, tokenizer, log)
    check(config, prompts.length, mesh)
    lora = None if config.lora.rank is None else config.lora
    program = ppo_program(
        config,
        mesh,
        prompt_tokens=prompts.length,
        pretrain_sequences=_pretrain_sequences(config),
        reward_model=config.reward_model is not None,
        lora=lora,
    )
    frozen, records, pins = _frozen_models(config, program)
    batches = PPOBatches(
        config,
        tokenizer,
        prompts,
        program=program,
        frozen=frozen,
        reward_functions=reward_functions,
    )

    def make_state() -> PPOState:
        seed, value_from = config.train.seed, config.reward_model or config.init_from
        return initial_state(
            program,
            seed=seed,
            policy=weights_of(config.init_from, pin=pins[0]),
            value=scoring_weights_of(value_from, seed=seed, pin=pins[-1]),
            frozen=frozen,
        )

    job = Job(
        training_stage="ppo",
        parameters="policy.params",
        mesh=mesh,
        program=Program(
            state=program.state,
            make_state=make_state,
            step=program.step,
            batch=program.batch,
            between=batches.executables,
        ),
        batches=batches.from_step,
        frozen=Frozen(outside_step=program.frozen)
        if lora is None
        else Frozen(in_batch=program.frozen),
        files=RunFiles(tokenizer, records, lambda: [x for pin in pins for x in pin.inputs()]),
        phases=batches.phases,
        header=_header(config, prompts.length, program),
    )
    state: Any = run(config, job, log=log)
    return state


class PPOBatches:
    """The batches of a PPO run: rollouts of the current policy, and pretraining sequences."""

    def __init__(
        self,
        config: PPORunConfig,
        tokenizer: Tokenizer,
        prompts: PromptDataset,
        *,
        program: PPOProgram,
        frozen: Callable[[], FrozenModels],
        reward_functions: Sequence[RewardFunction],
    ):
        """
        Args:
          frozen: loads the frozen models on the first call.
        """
        self._config, self._tokenizer, self._program = config, tokenizer, program
        self._frozen, self._functions = frozen, reward_functions
        self._prompts = Batches(
            prompts,
            seed=config.train.seed,
            collate=collate,
            batch_size=config.train.batch_size // config.ppo.samples_per_prompt,
        )
        self._pretrain = _pretrain_loader(config, tokenizer)
        self._sharding = rollout_sharding(program.mesh)
        self.phases = PhaseTimer()

    @functools.cached_property
    def _rollout_programs(self) -> RolloutPrograms:
        """The rollout programs, compiled before any weights are loaded."""
        config, program = self._config, self._program
        programs = rollout_programs(
            config.model, config.ppo, end_id=self._tokenizer.im_end, lora=program.lora
        )
        inputs = sampling_inputs(
            self._prompts.batch(0),
            0,
            config=config.ppo,
            tokenizer=self._tokenizer,
            seed=config.train.seed,
        )
        return compiled_programs(
            programs, program.state.params, program.frozen, inputs, self._sharding
        )

    def executables(self) -> list[Any]:
        """Returns the compiled programs that run between steps, to measure their memory."""
        return [self._rollout_programs.generate, self._rollout_programs.score]

    @contextlib.contextmanager
    def from_step(self, start_step: int) -> Iterator[Callable[[int, PPOState], PPOBatch]]:
        """Yields next_batch(step, state)."""
        del start_step  # a batch depends only on its step and the policy
        frozen, sharding = self._frozen(), self._sharding
        sampler = Sampler(
            self._config.ppo,
            self._tokenizer,
            programs=self._rollout_programs,
            frozen=frozen,
            sharding=sharding,
            reward_functions=self._functions,
            seed=self._config.train.seed,
            phases=self.phases,
        )

        def next_batch(step: int, state: PPOState) -> PPOBatch:
            self.phases.host(None)  # time spent saving and reporting
            prompts = self._prompts.batch(step)
            self.phases.host("data")
            rollout = jax.device_put(sampler(prompts, state, step), sharding)
            pretrain = None
            if self._pretrain is not None:
                pretrain = jax.device_put(self._pretrain.batch(step), sharding)
            self.phases.host("data")
            return PPOBatch(rollout, pretrain, None if self._program.lora is None else frozen)

        with self.phases.running():
            yield next_batch


def _frozen_models(
    config: PPORunConfig, program: PPOProgram
) -> tuple[Callable[[], FrozenModels], dict[str, Any], list[Pin]]:
    """Returns a cached loader of the frozen models, the run folder files that record the adapters'
    base weights, and the pins of init_from and, if there is one, of the reward model."""
    records, pins = {}, []
    load_reward = None
    if program.lora is None:
        pins.append(Pin("init_from", config.init_from, config))
        load_reference = weights_of(config.init_from, pin=pins[0])
        if config.reward_model is not None:
            pins.append(Pin("reward_model", config.reward_model, config))
            load_reward = scoring_weights_of(config.reward_model, seed=0, pin=pins[1])
    else:
        load_reference, records[merged.NAME], pin = frozen_weights_of(config.init_from, config)
        pins.append(pin)
        if config.reward_model is not None:
            name = "value_base.json"
            load_reward, records[name], pin = frozen_scoring_weights_of(
                config.reward_model, config, name, "reward_model"
            )
            pins.append(pin)

    @functools.cache
    def frozen() -> FrozenModels:
        shapes = program.frozen
        return FrozenModels(
            load_reference(shapes.reference), load_reward and load_reward(shapes.reward)
        )

    return frozen, records, pins


def _read_prompts(
    config: PPORunConfig, tokenizer: Tokenizer, log: Callable[[str], None]
) -> PromptDataset:
    counts = Counts()
    prompts = read_prompts(
        config.data.prompts, tokenizer, counts=counts, max_tokens=config.data.max_prompt_tokens
    )
    dataset = PromptDataset(list(prompts))
    log(f"prompts: {counts}")
    return dataset


def _header(config: PPORunConfig, prompt_length: int, program: PPOProgram) -> tuple[str, ...]:
    samples, sequences = config.ppo.samples_per_prompt, _pretrain_sequences(config)
    lines = [
        f"batch: {config.train.batch_size // samples} prompts, {samples} completions each, up to "
        f"{prompt_length} + {config.ppo.max_new_tokens} tokens",
        f"pretraining gradient: {sequences} sequences of {config.model.context_length} tokens per "
        f"step, coefficient {config.ppo.pretrain_coefficient}"
        if sequences
        else "pretraining gradient: none",
    ]
    if program.lora is not None:
        trained, state, frozen = size(program.specs), program.state, program.frozen
        lines.append(describe(program.lora, trained, state, config.model, frozen))
    return tuple(lines)


def check(config: PPORunConfig, prompt_length: int, mesh: Mesh) -> None:
    """Raises ConfigError for invalid settings, before anything is compiled."""
    train, settings = config.train, config.ppo
    if train.batch_size % settings.samples_per_prompt:
        raise ConfigError(
            f"batch_size={train.batch_size} is not a multiple of {settings.samples_per_prompt} "
            "samples per prompt.",
            "--train.batch_size, --ppo.samples_per_prompt",
            f"set --train.batch_size to a multiple of {settings.samples_per_prompt}.",
        )
    splits = train.micro_batches * settings.minibatches
    check_batch(train.batch_size, splits, mesh)
    check_batch(_pretrain_sequences(config), splits, mesh)
    longest = prompt_length + settings.max_new_tokens
    if longest > config.model.context_length:
        # The sampler would extend the context, as at inference, but the trainer would not.
        raise ConfigError(
            f"prompts of {prompt_length} and completions of {settings.max_new_tokens} tokens are "
            f"longer than the model's context length, {config.model.context_length}.",
            "--data.max_prompt_tokens, --ppo.max_new_tokens",
            "lower at least one of them.",
        )
    if config.reward_model is not None:
        _check_reward_model(config, config.reward_model)


def _check_reward_model(config: PPORunConfig, folder: str) -> None:
    if not is_scoring_run(folder):
        raise ConfigError(
            "the folder is not a reward model run.",
            f"--reward_model={folder}",
            "train one with experiments.reward_model.",
        )
    theirs = adopt(config.model, folder, context_length=config.model.context_length)
    if theirs == config.model:
        return
    ours, theirs = (dataclasses.asdict(model) for model in (config.model, theirs))
    different = [name for name in ours if ours[name] != theirs[name]]
    raise ConfigError(
        "the reward model and the policy differ in architecture: "
        + ", ".join(f"{name} {theirs[name]}, not {ours[name]}" for name in different)
        + ".",
        f"--reward_model={folder}",
        "train it from the same language model, with the same tokenizer.",
    )


def _pretrain_sequences(config: PPORunConfig) -> int:
    """Returns the number of pretraining sequences per step; 0: no pretraining gradient."""
    return (
        config.ppo.pretrain_sequences(config.train.batch_size)
        if config.data.pretrain.sources
        else 0
    )


def _pretrain_loader(config: PPORunConfig, tokenizer: Tokenizer) -> Loader | None:
    sequences = _pretrain_sequences(config)
    if not sequences:
        return None
    return Loader(
        config.data.pretrain,
        context_length=config.model.context_length,
        batch_size=sequences,
        end_of_text=tokenizer.end_of_text,
        vocab_size=config.model.vocab_size,
        tokenizer=tokenizer.fingerprint,
        seed=config.train.seed,
    )
