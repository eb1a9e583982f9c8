"""Turns prompts into a Rollout: the policy samples, then four models score. Report: 3.2.2.

Sampling and scoring are two programs on the mesh (rollout_programs.py). Python reward functions run
on the host while the device runs the scoring program.

Shapes: P prompts per step, B = P x samples_per_prompt sequences, T positions.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from qwen_jax.align.ppo import FrozenModels, Rollout
from qwen_jax.align.ppo_config import RolloutConfig
from qwen_jax.align.rewards import RewardFunction, Row
from qwen_jax.align.rollout_programs import RolloutPrograms
from qwen_jax.errors import DataError
from qwen_jax.inference.loop import NewTokens
from qwen_jax.inference.sampling import SamplingArrays, sampling_arrays
from qwen_jax.parallel.batch_rows import on_host
from qwen_jax.train.telemetry.phases import PhaseTimer


class Prompts(NamedTuple):
    """The prompts of one step, padded on the right."""

    tokens: np.ndarray  # int32 [P, T]
    lengths: np.ndarray  # int32 [P]
    indices: np.ndarray  # int32 [P]; each prompt's index in the data set


class TextDecoder(Protocol):
    """The subset of qwen_jax.tokenizer.bpe.Tokenizer that sampling needs."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def im_end(self) -> int: ...

    def decode(self, ids: Any, /) -> str: ...


class Sampler:
    """Generates the rollout of a step: rollout = sampler(prompts, state, step)."""

    def __init__(
        self,
        config: RolloutConfig,
        tokenizer: TextDecoder,
        *,
        programs: RolloutPrograms,
        frozen: FrozenModels,
        sharding: jax.sharding.Sharding,
        reward_functions: Sequence[Callable] = (),
        rows: Sequence[Row] = (),
        seed: int = 0,
        phases: PhaseTimer | None = None,
    ):
        """
        Args:
          programs: programs built for the same config and tokenizer; compiled programs take only
            one batch shape.
          frozen: the frozen models, on their devices.
          sharding: sharding of a rollout's sequences.
          reward_functions: functions whose rewards are added to the reward model's
            (rewards.RewardFunction).
          rows: the row of each prompt in the data set, for reward functions that read it.
          phases: timer of generation and scoring.

        Raises:
          DataError: neither a reward model nor a reward function is given.
        """
        if frozen.reward is None and not reward_functions:
            raise DataError(
                "no reward is configured.",
                "--reward_model, --reward_functions",
                "set a reward model, a reward function, or both.",
            )
        self._config, self._tokenizer, self._seed = config, tokenizer, seed
        self._programs, self._frozen, self._sharding = programs, frozen, sharding
        self._functions = [
            each if isinstance(each, RewardFunction) else RewardFunction(each)
            for each in reward_functions
        ]
        self._rows, self._phases = rows, phases or PhaseTimer()

    def __call__(self, prompts: Prompts, state: Any, step: int) -> Rollout:
        """Samples samples_per_prompt completions per prompt; completions of a prompt are adjacent.

        Args:
          state: its `params` are those of the policy and the value model, which may be None.

        Raises:
          TrainingError: a reward function raises, or does not return one finite number per
            completion; the error names the sample.
        """
        batch = sampling_inputs(
            prompts, step, config=self._config, tokenizer=self._tokenizer, seed=self._seed
        )
        tokens, lengths, _ = batch
        *on_device, sampling = self._put(batch)
        policy, value = state.params
        new = self._programs.generate(policy, self._frozen, *on_device, sampling)
        self._phases.device("generation", new.tokens)
        scored = self._programs.score(policy, value, self._frozen, *on_device, new)
        self._phases.device("scoring", scored.rewards)
        # Meanwhile the host reads the completions and calls the reward functions. Every process
        # computes the same rewards.
        extra = np.zeros(len(lengths), np.float32)
        if self._functions:
            extra = self._rewards(prompts, tokens, lengths, new)
            self._phases.host("scoring")
        return scored.replace(rewards=scored.rewards + extra)

    def _put(self, tree):
        """Shards arrays that are complete on every process; scalars are returned unchanged."""
        return jax.tree.map(
            lambda x: (
                x
                if x.ndim == 0
                else jax.make_array_from_callback(x.shape, self._sharding, lambda index: x[index])
            ),
            tree,
        )

    def _rewards(self, prompts: Prompts, tokens, lengths, new: NewTokens) -> np.ndarray:
        """Returns the sum of the functions' rewards: float32 [B]."""
        completions = self.texts(on_host(new.tokens))
        texts = [
            self._tokenizer.decode(row[:length])
            for row, length in zip(tokens, lengths, strict=True)
        ]
        indices = np.repeat(prompts.indices, self._config.samples_per_prompt)
        rows = [self._rows[index] for index in indices] if self._rows else []
        return sum(
            (function(texts, completions, rows) for function in self._functions),
            np.zeros(len(lengths), np.float32),
        )

    def texts(self, new_tokens: np.ndarray) -> list[str]:
        """Returns the completions as text."""
        return [self._tokenizer.decode(row[row >= 0]) for row in new_tokens]


def sampling_inputs(
    prompts: Prompts, step: int, *, config: RolloutConfig, tokenizer: TextDecoder, seed: int
) -> tuple[np.ndarray, np.ndarray, SamplingArrays]:
    """Returns the tokens [B, T], lengths [B] and sampling settings of a step's sequences.

    A completion depends on (seed, step, prompt, sample), not on the rest of the batch. A prompt
    that is in the batch twice, at an epoch boundary, gets different completions.
    """
    n = config.samples_per_prompt
    step_seed = int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
    same = prompts.indices[:, None] == prompts.indices[None]
    seeds = step_seed + np.repeat(np.sum(np.tril(same, -1), axis=1), n)
    streams = (prompts.indices[:, None] * n + np.arange(n)[None]).reshape(-1)
    settings = config.sampling.with_stop_ids((tokenizer.im_end,))
    sampling = sampling_arrays(
        [settings] * len(seeds),
        vocab_size=tokenizer.vocab_size,
        num_stop_ids=1,
        seeds=seeds.astype(np.uint32),
        streams=streams.astype(np.uint32),
    )
    return np.repeat(prompts.tokens, n, axis=0), np.repeat(prompts.lengths, n, axis=0), sampling


class PromptDataset:
    """Padded prompts; `collate` batches its items."""

    def __init__(self, prompts: Sequence[Sequence[int] | np.ndarray], rows: Sequence[Row] = ()):
        """
        Args:
          rows: the row of each prompt, kept for reward functions that read it.

        Raises:
          DataError: there are no prompts.
        """
        if not prompts:
            raise DataError(
                "no usable prompts found.",
                "--data.prompts",
                "check the log for skipped prompts; often --data.max_prompt_tokens is too low.",
            )
        self._prompts = [np.asarray(prompt, np.int32) for prompt in prompts]
        self.length, self.rows = max(map(len, self._prompts)), rows

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, int]:
        if not 0 <= index < len(self._prompts):
            raise IndexError(index)
        prompt = self._prompts[index]
        return np.pad(prompt, (0, self.length - len(prompt))), len(prompt), index

    def __repr__(self) -> str:
        return f"PromptDataset({len(self)})"


def collate(examples: Sequence[tuple[np.ndarray, int, int]]) -> Prompts:
    """Collates items of a PromptDataset into Prompts."""
    tokens, lengths, indices = zip(*examples, strict=True)
    return Prompts(np.stack(tokens), np.asarray(lengths, np.int32), np.asarray(indices, np.int32))
