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
from qwen_jax.align.ppo_config import PPOConfig, PPOData, PromptData, RolloutConfig
from qwen_jax.align.ppo_state import PPOProgram, initial_state, ppo_program, rollout_sharding
from qwen_jax.align.rewards import RewardFunction, columns_of, load_function
from qwen_jax.align.rollout import PromptDataset, Sampler, collate, sampling_inputs
from qwen_jax.align.rollout_programs import RolloutPrograms, compiled_programs, rollout_programs
from qwen_jax.config import OptimizerConfig
from qwen_jax.data.batches import Batches
from qwen_jax.data.chat.conversations import Counts
from qwen_jax.data.chat.prompts import read_prompt_rows
from qwen_jax.data.loader import Loader
from qwen_jax.errors import ConfigError
from qwen_jax.model.spec import size
from qwen_jax.parallel.mesh import check_batch, make_mesh
from qwen_jax.pretrained.adapters import merged
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
from qwen_jax.train.job import Frozen, Job, Program, RunConfig, RunFiles
from qwen_jax.train.run import run
from qwen_jax.train.run_folder import TrainingStage
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
    reward_functions = [RewardFunction(load_function(name)) for name in config.reward_functions]
    prompts = read_prompts(config.data, tokenizer, reward_functions, log)
    check(config, prompts.length, mesh)
    lora = None if config.lora.rank is None else config.lora
    program = ppo_program(
        config,
        mesh,
        prompt_tokens=prompts.length,
        pretrain_sequences=_pretrain_sequences(config),
        pretrain_length=_pretrain_length(config),
        reward_model=config.reward_model is not None,
        lora=lora,
    )
    frozen, records, pins = frozen_models(config, program, config.reward_model)
    batches = RolloutBatches(
        config,
        config.ppo,
        tokenizer,
        prompts,
        program=program,
        frozen=frozen,
        reward_functions=reward_functions,
        pretrain=_pretrain_loader(config, tokenizer),
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

    job = rollout_job(
        "ppo",
        config,
        program,
        make_state,
        batches,
        RunFiles(tokenizer, records, lambda: [x for pin in pins for x in pin.inputs()]),
        header=_header(config, prompts.length),
    )
    state: Any = run(config, job, log=log)
    return state


def rollout_job(
    training_stage: TrainingStage,
    config: RunConfig,
    program: PPOProgram,
    make_state: Callable[[], Any],
    batches: "RolloutBatches",
    files: RunFiles,
    *,
    header: Sequence[str],
) -> Job:
    """Returns the job of a run that learns from rollouts.

    Args:
      header: what is logged of the batch; a line on the adapters, if there are any, is added.
    """
    frozen, lines = Frozen(outside_step=program.frozen), list(header)
    if program.lora is not None:
        frozen = Frozen(in_batch=program.frozen)
        trained = size(program.specs)
        lines.append(describe(program.lora, trained, program.state, config.model, program.frozen))
    return Job(
        training_stage=training_stage,
        parameters="policy.params",
        mesh=program.mesh,
        program=Program(
            state=program.state,
            make_state=make_state,
            step=program.step,
            batch=program.batch,
            between=batches.executables,
        ),
        batches=batches.from_step,
        frozen=frozen,
        files=files,
        phases=batches.phases,
        header=tuple(lines),
    )


class RolloutBatches:
    """The batches of a run: rollouts of the current policy, and pretraining sequences."""

    def __init__(
        self,
        config: RunConfig,
        settings: RolloutConfig,
        tokenizer: Tokenizer,
        prompts: PromptDataset,
        *,
        program: PPOProgram,
        frozen: Callable[[], FrozenModels],
        reward_functions: Sequence[RewardFunction],
        pretrain: Loader | None = None,
    ):
        """
        Args:
          frozen: loads the frozen models on the first call.
          pretrain: the pretraining sequences of each step; None: no pretraining gradient.
        """
        self._config, self._settings, self._tokenizer = config, settings, tokenizer
        self._program, self._frozen, self._functions = program, frozen, reward_functions
        self._rows = prompts.rows
        self._prompts = Batches(
            prompts,
            seed=config.train.seed,
            collate=collate,
            batch_size=config.train.batch_size // settings.samples_per_prompt,
        )
        self._pretrain = pretrain
        self._sharding = rollout_sharding(program.mesh)
        self.phases = PhaseTimer()

    @functools.cached_property
    def _rollout_programs(self) -> RolloutPrograms:
        """The rollout programs, compiled before any weights are loaded."""
        config, program = self._config, self._program
        programs = rollout_programs(
            config.model, self._settings, end_id=self._tokenizer.im_end, lora=program.lora
        )
        inputs = sampling_inputs(
            self._prompts.batch(0),
            0,
            config=self._settings,
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
    def from_step(self, start_step: int) -> Iterator[Callable[[int, Any], PPOBatch]]:
        """Yields next_batch(step, state)."""
        del start_step  # a batch depends only on its step and the policy
        frozen, sharding = self._frozen(), self._sharding
        sampler = Sampler(
            self._settings,
            self._tokenizer,
            programs=self._rollout_programs,
            frozen=frozen,
            sharding=sharding,
            reward_functions=self._functions,
            rows=self._rows,
            seed=self._config.train.seed,
            phases=self.phases,
        )

        def next_batch(step: int, state: Any) -> PPOBatch:
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


def frozen_models(
    config: StageConfig, program: PPOProgram, reward_model: str | None
) -> tuple[Callable[[], FrozenModels], dict[str, Any], list[Pin]]:
    """Returns a cached loader of the frozen models, the run folder files that record the adapters'
    base weights, and the pins of init_from and, if there is one, of the reward model's folder."""
    records, pins = {}, []
    load_reward = None
    if program.lora is None:
        pins.append(Pin("init_from", config.init_from, config))
        load_reference = weights_of(config.init_from, pin=pins[0])
        if reward_model is not None:
            pins.append(Pin("reward_model", reward_model, config))
            load_reward = scoring_weights_of(reward_model, seed=0, pin=pins[1])
    else:
        load_reference, records[merged.NAME], pin = frozen_weights_of(config.init_from, config)
        pins.append(pin)
        if reward_model is not None:
            name = "value_base.json"
            load_reward, records[name], pin = frozen_scoring_weights_of(
                reward_model, config, name, "reward_model"
            )
            pins.append(pin)

    @functools.cache
    def frozen() -> FrozenModels:
        shapes = program.frozen
        return FrozenModels(
            load_reference(shapes.reference), load_reward and load_reward(shapes.reward)
        )

    return frozen, records, pins


def read_prompts(
    data: PromptData,
    tokenizer: Tokenizer,
    functions: Sequence[RewardFunction],
    log: Callable[[str], None],
) -> PromptDataset:
    """Returns the prompts, with their rows if a reward function reads them.

    Raises:
      ConfigError: a reward function takes a column that no row has.
      DataError: as in read_prompt_rows.
    """
    counts, prompts, rows = Counts(), [], []
    keep = any(function.needs_rows for function in functions)
    for tokens, row in read_prompt_rows(
        data.prompts,
        tokenizer,
        counts=counts,
        max_tokens=data.max_prompt_tokens,
        columns=columns_of(functions),
        variables=data.variables,
    ):
        prompts.append(tokens)
        rows += [row] if keep else []
    dataset = PromptDataset(prompts, rows)
    log(f"prompts: {counts}")
    for function in functions:
        function.check(rows, "--data.prompts")
    return dataset


def _header(config: PPORunConfig, prompt_length: int) -> list[str]:
    samples, sequences = config.ppo.samples_per_prompt, _pretrain_sequences(config)
    return [
        f"batch: {config.train.batch_size // samples} prompts, {samples} completions each, up to "
        f"{prompt_length} + {config.ppo.max_new_tokens} tokens",
        f"pretraining gradient: {sequences} sequences of {_pretrain_length(config)} tokens per "
        f"step, coefficient {config.ppo.pretrain_coefficient}"
        if sequences
        else "pretraining gradient: none",
    ]


def check(config: PPORunConfig, prompt_length: int, mesh: Mesh) -> None:
    """Raises ConfigError for invalid settings, before anything is compiled."""
    check_rollouts(config, config.ppo, prompt_length, mesh, "ppo.samples_per_prompt")
    splits = config.train.micro_batches * config.ppo.minibatches
    check_batch(_pretrain_sequences(config), splits, mesh)
    if config.reward_model is not None:
        _check_reward_model(config, config.reward_model)


def check_rollouts(
    config: RunConfig, settings: Any, prompt_length: int, mesh: Mesh, samples_flag: str
) -> None:
    """Raises ConfigError if a batch cannot be split, or if a sequence is too long for the model.

    Args:
      settings: a RolloutConfig with `minibatches`.
      samples_flag: the flag of samples_per_prompt, such as ppo.samples_per_prompt.
    """
    train, samples = config.train, settings.samples_per_prompt
    if train.batch_size % samples:
        raise ConfigError(
            f"batch_size={train.batch_size} is not a multiple of {samples} samples per prompt.",
            f"--train.batch_size, --{samples_flag}",
            f"set --train.batch_size to a multiple of {samples}.",
        )
    check_batch(train.batch_size, train.micro_batches * settings.minibatches, mesh)
    longest = prompt_length + settings.max_new_tokens
    if longest > config.model.context_length:
        # The sampler would extend the context, as at inference, but the trainer would not.
        raise ConfigError(
            f"prompts of {prompt_length} and completions of {settings.max_new_tokens} tokens are "
            f"longer than the model's context length, {config.model.context_length}.",
            f"--data.max_prompt_tokens, --{samples_flag.partition('.')[0]}.max_new_tokens",
            "lower at least one of them.",
        )


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


def _pretrain_length(config: PPORunConfig) -> int:
    """Returns the tokens of a pretraining sequence: as many as in pretraining (report 2.4)."""
    return config.data.pretrain.context_length or min(config.model.context_length, 2048)


def _pretrain_loader(config: PPORunConfig, tokenizer: Tokenizer) -> Loader | None:
    sequences = _pretrain_sequences(config)
    if not sequences:
        return None
    return Loader(
        config.data.pretrain,
        context_length=_pretrain_length(config),
        batch_size=sequences,
        end_of_text=tokenizer.end_of_text,
        vocab_size=config.model.vocab_size,
        tokenizer=tokenizer.fingerprint,
        seed=config.train.seed,
    )
