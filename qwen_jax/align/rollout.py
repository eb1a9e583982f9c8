"""From prompts to a Rollout: sample with the policy, then ask all four models. Report: 3.2.2.

Sampling and scoring are two programs on the mesh; rewards from Python are computed on the host
while the device is busy with the second one.

P prompts of a step, B = P x samples rows, T positions, R room for new tokens.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qwen_jax.align.log_probs import Window, token_log_probs
from qwen_jax.align.ppo import Bases, PPOConfig, PPOState, Rollout
from qwen_jax.config import ModelConfig
from qwen_jax.errors import DataError, TrainingError
from qwen_jax.inference.decode import rollout as sample_rows
from qwen_jax.inference.loop import NewTokens, Sampling
from qwen_jax.model.lora import LoRAConfig, added_up, with_adapters
from qwen_jax.model.value_head import at_end, scores
from qwen_jax.parallel.batch_rows import on_host
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.types import Array, Params, ScoringParams

# (prompts, answers) -> one number for each. A prompt is all that the model saw, in ChatML; an
# answer is what it wrote, without the end token.
RewardFunction = Callable[[Sequence[str], Sequence[str]], Sequence[float]]


class Prompts(NamedTuple):
    """The prompts of one step, padded on the right."""

    tokens: np.ndarray  # int32 [P, T]
    lengths: np.ndarray  # int32 [P]
    indices: np.ndarray  # int32 [P]; each prompt's number in its data set


class Rows(NamedTuple):
    """Prompts with their answers and the answer's end token, on the device."""

    tokens: Array  # int32 [B, T + R + 1]
    segment_ids: Array  # int32 [B, T + R + 1]
    actions: Array  # float32 [B, T + R]; 1 where the token that follows was sampled
    log_probs: Array  # float32 [B, T + R]; the sampler's, of that token
    end: Array  # int32 [B]; where the reward model reads: the answer's end token
    ended: Array  # float32 [B]; 1 where the policy wrote that token itself


class Sampler:
    """rollout = sampler(prompts, state): what a PPO step learns from."""

    def __init__(
        self,
        model: ModelConfig,
        config: PPOConfig,
        tokenizer: Tokenizer,
        *,
        reference: Params,
        reward_model: tuple[ScoringParams, ModelConfig] | None = None,
        reward_functions: Sequence[RewardFunction] = (),
        seed: int = 0,
        lora: LoRAConfig | None = None,
    ):
        """
        Args:
          reference: the weights that the policy started from, on the mesh; or their shapes, dtypes
            and shardings until `load` brings them. So is the reward model's.
          reward_model: and its config; its reward and those of the functions are added up.
          lora: of policy and value model, which are adapters beside those two (ppo.Bases). Answers
            are sampled from weights and adapters added up. None: they are whole.

        Raises:
          DataError: no reward at all, or a reward model of another vocabulary.
        """
        if reward_model is None and not reward_functions:
            raise DataError(
                "there is no reward.",
                "reward_model, reward_functions",
                "name a reward model, a function, or both.",
            )
        if reward_model is not None and reward_model[1].vocab_size != model.vocab_size:
            raise DataError(
                f"the reward model has {reward_model[1].vocab_size} ids, the policy "
                f"{model.vocab_size}.",
                "reward_model",
                "train it from the same language model, with the same tokenizer.",
            )
        self._model, self._config, self._tokenizer = model, config, tokenizer
        self._functions, self._seed = tuple(reward_functions), seed
        reward, reward_config = reward_model or (None, None)
        self._bases, self._rows = Bases(reference, reward), None

        def sample(policy, bases, *prompts):
            if lora is not None:
                policy = added_up(bases.reference, policy, lora, dtype=model.compute_dtype)
            return sample_rows(policy, *prompts, config=model, room=config.max_new_tokens)

        def ask(policy, value, bases, *rows):
            if lora is not None:
                policy = with_adapters(bases.reference, policy, lora)
                value = with_adapters(bases.value, value, lora)
            return ask_models(
                policy,
                value,
                bases,
                *rows,
                model=model,
                reward_config=reward_config,
                temperature=config.temperature,
                end_id=tokenizer.im_end,
            )

        self._sample, self._ask = jax.jit(sample), jax.jit(ask)

    def __call__(self, prompts: Prompts, state: PPOState, step: int) -> Rollout:
        """Samples samples_per_prompt answers to each prompt; rows of a prompt follow one another.

        Raises:
          TrainingError: a reward function raises, or gives something else than finite numbers; the
            sample is named.
        """
        n = self._config.samples_per_prompt
        tokens, lengths = (np.repeat(x, n, axis=0) for x in (prompts.tokens, prompts.lengths))
        rows = self._put((tokens, lengths))
        new = self._sample(
            state.policy.params, self._bases, *rows, self._put(self._sampling(prompts, step))
        )
        asked = self._ask(state.policy.params, state.value.params, self._bases, *rows, new)
        # While the device works on that, the host reads the answers and computes its rewards: the
        # same ones in every process.
        extra = sum(
            (self._ask_function(function, tokens, lengths, new) for function in self._functions),
            np.zeros(len(lengths), np.float32),
        )
        return asked.replace(rewards=asked.rewards + extra)

    def _put(self, tree):
        """Arrays that every process has whole, each row on its device; a number as it is."""
        if self._rows is None:
            return tree
        return jax.tree.map(
            lambda x: (
                x
                if x.ndim == 0
                else jax.make_array_from_callback(x.shape, self._rows, lambda index: x[index])
            ),
            tree,
        )

    def load(self, bases: Bases) -> None:
        """The weights whose shapes the constructor was given."""
        self._bases = bases

    def compile(
        self, policy: Params, value: ScoringParams, prompts: Prompts, rows: jax.sharding.Sharding
    ) -> list[jax.stages.Compiled]:
        """Compiles both programs for batches of one shape, for their needs to be known.

        Args:
          policy, value: shapes, dtypes and shardings.
          prompts: a batch of the shape; what stands in it does not matter.
          rows: where the rows of a rollout go.
        """
        n = self._config.samples_per_prompt

        def abstract(x, sharding=rows):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding if x.ndim else None)

        self._rows = rows
        tokens, lengths = (
            abstract(np.repeat(x, n, axis=0)) for x in (prompts.tokens, prompts.lengths)
        )
        sampling = jax.tree.map(abstract, self._sampling(prompts, 0))
        new = jax.eval_shape(self._sample, policy, self._bases, tokens, lengths, sampling)
        self._sample = self._sample.lower(policy, self._bases, tokens, lengths, sampling).compile()
        new = jax.tree.map(abstract, new, self._sample.output_shardings)
        self._ask = self._ask.lower(policy, value, self._bases, tokens, lengths, new).compile()
        return [self._sample, self._ask]

    def _sampling(self, prompts: Prompts, step: int) -> Sampling:
        """A row draws by (seed, step, prompt, sample): the batch it is in does not matter.

        A prompt that is in the batch twice, where one epoch ends and the next begins, counts on.
        """
        n, config = self._config.samples_per_prompt, self._config
        B = n * len(prompts.lengths)

        def fill(value, dtype):
            return np.full(B, value, dtype)

        seed = int(np.random.SeedSequence([self._seed, step]).generate_state(1)[0])
        same = prompts.indices[:, None] == prompts.indices[None]
        seeds = seed + np.repeat(np.sum(np.tril(same, -1), axis=1), n)
        streams = (prompts.indices[:, None] * n + np.arange(n)[None]).reshape(-1)
        return Sampling(
            seeds=seeds.astype(np.uint32),
            streams=streams.astype(np.uint32),
            temperature=fill(config.temperature, np.float32),
            top_p=fill(config.top_p, np.float32),
            top_k=fill(self._model.vocab_size, np.int32),
            repetition_penalty=fill(1.0, np.float32),
            stop_ids=np.tile(np.asarray([[self._tokenizer.im_end]], np.int32), (B, 1)),
            limits=fill(config.max_new_tokens, np.int32),
            vocab_size=np.int32(self._tokenizer.vocab_size),
        )

    def _ask_function(self, function: RewardFunction, tokens, lengths, new: NewTokens):
        answers = self.texts(on_host(new.tokens))
        questions = [
            self._tokenizer.decode(row[:length])
            for row, length in zip(tokens, lengths, strict=True)
        ]
        name = getattr(function, "__name__", repr(function))
        try:
            found = np.asarray(function(questions, answers), np.float32)
        except Exception as error:  # somebody else's code: anything may come
            raise TrainingError(
                f"{type(error).__name__}: {error}",
                f"reward function {name}",
                f"mend it; the first of its samples is {questions[0][-200:]!r} -> "
                f"{answers[0][:200]!r}.",
            ) from error
        if found.shape != (len(answers),):
            raise TrainingError(
                f"{found.shape} rewards for {len(answers)} answers.",
                f"reward function {name}",
                "return one number for each answer.",
            )
        bad = np.flatnonzero(~np.isfinite(found))
        if len(bad):
            raise TrainingError(
                f"the reward of sample {bad[0]} is {found[bad[0]]}: "
                f"{questions[bad[0]][-200:]!r} -> {answers[bad[0]][:200]!r}.",
                f"reward function {name}",
                "return finite numbers.",
            )
        return found

    def texts(self, new_tokens: np.ndarray) -> list[str]:
        """The answers as text."""
        return [self._tokenizer.decode(row[row >= 0]) for row in new_tokens]


def assemble(prompts: Array, lengths: Array, new: NewTokens, *, end_id: int) -> Rows:
    """Prompt, answer and end token of each row, one behind the other.

    An answer that was cut off gets an end token too, for the reward model to read at; it is no
    action.
    """
    B, T = prompts.shape
    R = new.tokens.shape[1]
    prompts, lengths = jnp.asarray(prompts, jnp.int32), jnp.asarray(lengths, jnp.int32)
    counts = jnp.sum((new.tokens >= 0).astype(jnp.int32), axis=1)
    ended = counts < R
    end = lengths + counts
    index = jnp.broadcast_to(jnp.arange(T + R + 1, dtype=jnp.int32)[None], (B, T + R + 1))
    from_prompt = jnp.take_along_axis(prompts, jnp.minimum(index, T - 1), axis=1)
    place = jnp.clip(index - lengths[:, None], 0, R - 1)
    from_answer = jnp.take_along_axis(new.tokens, place, axis=1)
    tokens = jnp.where(index < lengths[:, None], from_prompt, from_answer)
    tokens = jnp.where(index == end[:, None], jnp.int32(end_id), tokens)
    inside = index <= end[:, None]
    acts = counts + ended.astype(jnp.int32)
    first = lengths - 1  # the position whose logits the first token was drawn from
    actions = (index >= first[:, None]) & (index < (first + acts)[:, None])
    log_probs = jnp.take_along_axis(
        new.logprobs, jnp.clip(index - first[:, None], 0, R - 1), axis=1
    )
    return Rows(
        tokens=jnp.where(inside, tokens, 0),
        segment_ids=inside.astype(jnp.int32),
        actions=actions[:, :-1].astype(jnp.float32),
        log_probs=log_probs[:, :-1],
        end=end,
        ended=ended.astype(jnp.float32),
    )


def ask_models(
    policy: Params,
    value: ScoringParams,
    bases: Bases,
    prompts: Array,
    lengths: Array,
    new: NewTokens,
    *,
    model: ModelConfig,
    reward_config: ModelConfig | None,
    temperature: float,
    end_id: int,
) -> Rollout:
    """What the four models say of each row; its reward is that of the model, or 0.

    The policy's log-probabilities are computed again, by the function that trains: the sampler's
    differ in rounding, and ratios would start off 1. Where nothing was sampled they are 0, and so
    are the reference's and the entropies.
    """
    rows = assemble(prompts, lengths, new, end_id=end_id)
    tokens, segments = rows.tokens[:, :-1], rows.segment_ids[:, :-1]
    targets = rows.tokens[:, 1:]
    answers = Window(jnp.asarray(lengths, jnp.int32) - 1, new.tokens.shape[1])

    def log_probs(params, temperature=temperature):
        return token_log_probs(
            params, tokens, targets, segments, config=model, temperature=temperature, window=answers
        )

    if bases.reward is None:
        rewards = jnp.zeros(rows.end.shape, jnp.float32)
    else:
        rewards = at_end(
            scores(bases.reward, rows.tokens, rows.segment_ids, config=reward_config), rows.end
        )
    mine, entropies = log_probs(policy)
    sampled = rows.log_probs
    if temperature != 1.0:  # the sampler's are of the model's own logits
        sampled = sampled + mine - log_probs(policy, 1.0)[0]
    return Rollout(
        tokens=tokens,
        targets=targets,
        segment_ids=segments,
        actions=rows.actions,
        log_probs=mine,
        sampler_log_probs=sampled,
        entropies=entropies,
        reference_log_probs=log_probs(bases.reference)[0],
        values=scores(value, tokens, segments, config=model),
        rewards=rewards,
        ended=rows.ended,
    )


class PromptRows:
    """Prompts of at most `max_tokens` tokens, as rows that `collate` makes a batch of."""

    def __init__(self, prompts: Sequence[Sequence[int]]):
        """
        Raises:
          DataError: there is no prompt.
        """
        if not prompts:
            raise DataError("there is no prompt.", "data.prompts", "look at what was skipped.")
        self._prompts = [np.asarray(prompt, np.int32) for prompt in prompts]
        self.length = max(map(len, self._prompts))

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, int]:
        if not 0 <= index < len(self._prompts):
            raise IndexError(index)
        prompt = self._prompts[index]
        return np.pad(prompt, (0, self.length - len(prompt))), len(prompt), index

    def __repr__(self) -> str:
        return f"PromptRows({len(self)})"


def collate(rows: Sequence[tuple[np.ndarray, int, int]]) -> Prompts:
    """Rows of PromptRows -> Prompts."""
    tokens, lengths, indices = zip(*rows, strict=True)
    return Prompts(np.stack(tokens), np.asarray(lengths, np.int32), np.asarray(indices, np.int32))
