"""Rollouts: response masks, end tokens, seeds of completions, and errors of reward functions."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.align import ppo
from qwen_jax.align.rollout import PromptDataset, Prompts, Sampler, collate, sampling_inputs
from qwen_jax.align.rollout_programs import assemble, compiled_programs, rollout_programs
from qwen_jax.errors import DataError, TrainingError
from qwen_jax.inference.loop import NewTokens
from qwen_jax.model.spec import param_specs
from qwen_jax.model.value_head import at_end, scores, scoring_specs
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train.loop import Hook, fit
from qwen_jax.types import TrainState
from tests.helpers.weights import initial

TOKENIZER = Tokenizer({bytes([byte]): byte for byte in range(256)})
MODEL = dataclasses.replace(sizes.TINY, vocab_size=464, num_layers=1, context_length=64)
CONFIG = ppo.PPOConfig(max_new_tokens=5, samples_per_prompt=2)
SHARDING = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def make_sampler(frozen, *, config=CONFIG, functions=(), programs=None, phases=None):
    """Returns a Sampler of the jitted programs, or of `programs`."""
    programs = programs or rollout_programs(MODEL, config, end_id=TOKENIZER.im_end)
    return Sampler(
        config,
        TOKENIZER,
        programs=programs,
        frozen=frozen,
        sharding=SHARDING,
        reward_functions=functions,
        seed=7,
        phases=phases,
    )


def test_assemble_concatenates_prompt_response_and_end_token():
    prompts = np.array([[1, 2, 3], [4, 5, 0], [6, 0, 0]], np.int32)
    new = np.array(
        [
            [7, 8, -1],  # finished
            [9, 10, 11],  # truncated
            [-1, -1, -1],  # only the end token
        ],
        np.int32,
    )
    sequences = jax.jit(assemble, static_argnames="end_id")(
        prompts,
        np.array([3, 2, 1], np.int32),
        NewTokens(tokens=new, logprobs=np.zeros((3, 3), np.float32)),
        end_id=99,
    )
    np.testing.assert_array_equal(
        sequences.tokens, [[1, 2, 3, 7, 8, 99, 0], [4, 5, 9, 10, 11, 99, 0], [6, 99, 0, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(
        sequences.segment_ids, [[1] * 6 + [0], [1] * 6 + [0], [1, 1, 0, 0, 0, 0, 0]]
    )
    # The mask is 1 at t where the token at t + 1 was sampled; an appended end token was not.
    np.testing.assert_array_equal(
        sequences.response_mask, [[0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(sequences.end, [5, 5, 1])
    np.testing.assert_array_equal(sequences.finished, [1, 0, 1])


class Reward:
    """A reward function with configurable behavior; records its inputs."""

    __name__ = "fake_reward"

    def __init__(self):
        self.behavior, self.received = "good", None

    def __call__(self, prompts, completions):
        self.received = prompts, completions
        if self.behavior == "raises":
            raise KeyError("unknown completion")
        found = [float(len(completion)) for completion in completions]
        return {"good": found, "nan": [*found[:-1], float("nan")], "few": found[1:]}[self.behavior]


class Calls:
    """A PhaseTimer that records its calls, with the shape of the output that ends a phase."""

    def __init__(self):
        self.calls = []

    def device(self, phase, output):
        self.calls.append((phase, output.shape))

    def host(self, phase):
        self.calls.append(phase)


@pytest.fixture(scope="module")
def models():
    policy, value, reference, reward = (
        jax.device_put(initial(specs(MODEL), seed=seed), SHARDING)  # as compiled_programs requires
        for seed, specs in enumerate((param_specs, scoring_specs, param_specs, scoring_specs))
    )
    return types.SimpleNamespace(params=(policy, value)), reference, reward


@pytest.fixture(scope="module")
def made(models):
    """A sampler, its reward function, its prompts and their first rollout."""
    state, reference, reward = models
    function, timer = Reward(), Calls()
    sampler = make_sampler(ppo.FrozenModels(reference, reward), functions=[function], phases=timer)
    prompts = PromptDataset([TOKENIZER.encode(text) for text in ("one", "number two", "3")])
    rollout = sampler(collate([prompts[0], prompts[1]]), state, 4)
    # Generation ends before scoring; the reward functions come last.
    assert timer.calls == [("generation", (4, 5)), ("scoring", (4,)), "scoring"]
    return sampler, function, prompts, jax.device_get(rollout), function.received


def test_collate_pads_prompts_on_the_right(made):
    _, _, prompts, *_ = made
    batch = collate([prompts[2], prompts[1]])
    assert isinstance(batch, Prompts) and batch.tokens.shape == (2, 10)
    assert batch.lengths.tolist() == [1, 10] and batch.indices.tolist() == [2, 1]
    with pytest.raises(DataError, match="no usable prompts"):
        PromptDataset([])


def test_sampler_completions_depend_only_on_seed_step_prompt_and_sample(models, made):
    sampler, _, prompts, first, _ = made
    other = jax.device_get(sampler(collate([prompts[1], prompts[2]]), models[0], 4))
    np.testing.assert_array_equal(other.tokens[:2], first.tokens[2:])
    # The same programs with other sequences in the batch: float32 rounding.
    np.testing.assert_allclose(other.log_probs[:2], first.log_probs[2:], atol=1e-5)
    distinct = {tokens.tobytes() for tokens in first.tokens}
    assert len(distinct) == 4  # two samples of a prompt differ
    twice = jax.device_get(sampler(collate([prompts[0], prompts[0]]), models[0], 4))
    np.testing.assert_array_equal(twice.tokens[:2], first.tokens[:2])
    assert len({tokens.tobytes() for tokens in twice.tokens}) == 4  # at the border of two epochs
    later = jax.device_get(sampler(collate([prompts[0], prompts[1]]), models[0], 5))
    assert not np.array_equal(later.tokens, first.tokens)
    again = jax.device_get(sampler(collate([prompts[0], prompts[1]]), models[0], 4))
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(first), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("temperature", [pytest.param(1.0, marks=pytest.mark.slow), 0.7])
def test_sampler_log_probs_equal_the_trainers(models, temperature):
    """Up to rounding; entropies are of the distribution that was sampled from."""
    state, reference, _ = models
    sampler = make_sampler(
        ppo.FrozenModels(reference, None),
        config=dataclasses.replace(CONFIG, temperature=temperature),
        functions=[Reward()],
    )
    prompts = PromptDataset([TOKENIZER.encode(text) for text in ("one", "number two")])
    rollout = jax.device_get(sampler(collate([prompts[0], prompts[1]]), state, 4))
    mask = rollout.response_mask > 0
    assert mask.sum() > 8
    # Two float32 programs, log-probabilities near 6, divided by the temperature.
    np.testing.assert_allclose(rollout.sampler_log_probs[mask], rollout.log_probs[mask], atol=2e-5)
    assert np.all((rollout.entropies[mask] > 0) & (rollout.entropies[mask] < np.log(464)))


def test_compiled_programs_sample_the_same_as_jitted_ones(models, made):
    state, reference, reward = models
    prompts, first = made[2], made[3]
    frozen, batch = ppo.FrozenModels(reference, reward), collate([prompts[0], prompts[1]])
    params = state.params
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), (params, frozen)
    )
    inputs = sampling_inputs(batch, 0, config=CONFIG, tokenizer=TOKENIZER, seed=7)
    jitted = rollout_programs(MODEL, CONFIG, end_id=TOKENIZER.im_end)
    programs = compiled_programs(jitted, *abstract, inputs, SHARDING)
    assert isinstance(programs.generate, jax.stages.Compiled)
    assert isinstance(programs.score, jax.stages.Compiled)
    sampler = make_sampler(frozen, functions=[Reward()], programs=programs)
    for a, b in zip(
        jax.tree.leaves(jax.device_get(sampler(batch, state, 4))),
        jax.tree.leaves(first),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_sampler_rewards_add_the_reward_model_and_the_functions(models, made):
    _, _, _, rollout, (texts, completions) = made
    assert texts == ["one", "one", "number two", "number two"]
    lengths = np.repeat([3, 10], 2)
    tokens = np.pad(rollout.tokens, ((0, 0), (0, 1)))
    end = (lengths + rollout.response_mask.sum(axis=1) - rollout.finished).astype(np.int32)
    for i in range(4):
        assert tokens[i, end[i]] in (TOKENIZER.im_end, 0)
        tokens[i, end[i]] = TOKENIZER.im_end  # a rollout does not contain an appended one
        completion = tokens[i, lengths[i] : end[i]]
        assert TOKENIZER.decode(completion) == completions[i]
    segments = (np.arange(tokens.shape[1])[None] <= end[:, None]).astype(np.int32)
    scored = at_end(
        jax.jit(scores, static_argnames="config")(
            models[2], jnp.asarray(tokens), jnp.asarray(segments), config=MODEL
        ),
        jnp.asarray(end),
    )
    want = np.asarray(scored) + np.asarray([len(text) for text in completions], np.float32)
    # A different program: rounding of values near 1.
    np.testing.assert_allclose(rollout.rewards, want, atol=1e-5)


def test_sampler_log_probs_give_ratio_one_in_the_first_update(models, made):
    state, *_ = models

    @jax.jit
    def objective(params, rollout):
        batch = ppo.PPOBatch(rollout, None)
        train_batch, _ = ppo.make_train_batch(batch, ppo.initial_moments(), CONFIG)
        return ppo.policy_objective(MODEL, CONFIG)(params, train_batch, None)

    sums = objective(state.params[0], made[3])
    # Two programs of one function: one unit in the last place of log-probabilities near 6.
    assert float(sums.extras["ratio"] / sums.weight_sum) == pytest.approx(1, abs=1e-6)
    assert float(sums.extras["clip_fraction"]) == 0
    assert float(sums.extras["approx_kl"]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    "behavior, message",
    [
        ("raises", "(?s)KeyError: 'unknown completion'.*fake_reward.*'one' -> "),
        ("nan", "(?s)the reward of sample 3 is nan: 'number two' -> .*fake_reward"),
        ("few", r"(?s)rewards of shape \(3,\) for 4 completions.*fake_reward"),
    ],
)
def test_sampler_names_the_sample_of_a_bad_reward_and_the_state_is_saved(
    models, made, behavior, message
):
    sampler, function, prompts, *_ = made
    saved = []

    def next_batch(step, state):
        function.behavior = behavior if step == 2 else "good"
        return sampler(collate([prompts[0], prompts[1]]), models[0], step)

    def train_step(state, batch):
        return state.replace(step=state.step + 1), {"train/loss": jnp.float32(0)}

    try:
        with pytest.raises(TrainingError, match=message):
            fit(
                TrainState(step=jnp.int32(0), params=(), opt_state=()),
                next_batch,
                train_step,
                start_step=0,
                num_steps=5,
                report=lambda report: None,
                hooks=(
                    Hook(
                        100, lambda done, state: saved.append((done, int(state.step))), at_stop=True
                    ),
                ),
            )
    finally:
        function.behavior = "good"
    assert saved == [(2, 2)]


def test_sampler_rejects_missing_rewards_and_a_different_vocabulary(models):
    _, reference, _ = models
    with pytest.raises(DataError, match="no reward"):
        make_sampler(ppo.FrozenModels(reference, None))
    with pytest.raises(DataError, match="512 tokens, the policy 464"):
        rollout_programs(
            MODEL,
            CONFIG,
            end_id=TOKENIZER.im_end,
            reward_config=dataclasses.replace(MODEL, vocab_size=512),
        )
