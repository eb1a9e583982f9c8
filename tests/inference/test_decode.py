"""Decoding of a fixed batch, against the released implementation, the full forward and itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.config import MeshConfig
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.inference import decode
from qwen_jax.inference.decode import generate
from qwen_jax.inference.sampling import SamplingParams, sampling_arrays
from qwen_jax.model.spec import init_params, param_specs
from qwen_jax.model.transformer import forward
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.parallel.sharding import sharding_for, use_layout
from qwen_jax.pretrained.huggingface import load_pretrained

# One layer: tests/inference/decoder has those of several.
CONFIG = dataclasses.replace(sizes.TINY, context_length=64, num_layers=1)
# Tests share shapes (batches of 4 and 1, prompts of 17 to 32 alone, 16 new tokens, 4 stop ids), and
# so compilations.
SAMPLED = dict(config=CONFIG, max_new_tokens=16, temperature=0.9, top_k=100, top_p=0.99)


@pytest.fixture(scope="module")
def params():
    # A wider range than in training: the logits are far apart, so rounding does not matter.
    wide = dataclasses.replace(CONFIG, initializer_range=0.3)
    return jax.jit(init_params, static_argnums=0)(wide, jax.random.key(3))


def _prompts(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, CONFIG.vocab_size, n).tolist() for n in lengths]


def _greedy_by_full_forward(params, prompt, count, config):
    """Greedy decoding without a cache: the full sequence again for every token."""
    tokens = list(prompt)
    for _ in range(count):
        row = np.zeros((1, config.context_length), np.int32)
        row[0, : len(tokens)] = tokens
        logits = _forward(params, row, config)
        tokens.append(int(np.argmax(np.asarray(logits)[0, len(tokens) - 1])))
    return tokens[len(prompt) :]


_forward = jax.jit(
    lambda params, row, config: forward(params, row, config=config), static_argnums=2
)


@pytest.mark.slow  # test_engine.py compares with both, the implementation and `generate`
def test_generate_greedy_equals_the_released_implementation(shared):
    folder = shared / "reference" / "qwen1_tiny"
    config, params = load_pretrained(folder)
    expected = np.load(folder / "expected.npz")
    prompts = [expected["prompt_10"][0], expected["prompt_40"][0]]
    found = generate(params, prompts, config=config, max_new_tokens=30)
    assert found == [expected["greedy_10"][0].tolist(), expected["greedy_40"][0].tolist()]


def test_generate_greedy_equals_the_full_forward(params):
    prompts = _prompts(1, 16, 17, 32)
    together = generate(params, prompts, config=CONFIG, max_new_tokens=16)
    for prompt, tokens in zip(prompts, together, strict=True):
        assert tokens == _greedy_by_full_forward(params, prompt, 16, CONFIG)


@pytest.mark.parametrize(
    ("lengths", "settings"),
    [((17, 30, 17, 25), dict(config=CONFIG, max_new_tokens=16)), ((17, 30, 20, 32), SAMPLED)],
)
def test_generate_does_not_depend_on_the_batch(params, lengths, settings):
    prompts, seeds = _prompts(*lengths), [5, 6, 2**32 - 1, 5]
    separate = [
        generate(params, prompt, seed=seed, **settings)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    for order in ([0, 1, 2, 3], [2, 1, 0]):
        batch = generate(
            params, [prompts[i] for i in order], seed=[seeds[i] for i in order], **settings
        )
        assert batch == [separate[i] for i in order]


def test_generate_with_one_seed_samples_each_prompt_with_its_own_stream(params):
    prompt = _prompts(20)[0]
    first = generate(params, [prompt] * 3, seed=4, **SAMPLED)
    assert len({tuple(tokens) for tokens in first}) == 3
    assert first == generate(params, [prompt] * 3, seed=4, **SAMPLED)
    assert first[0] == generate(params, prompt, seed=4, **SAMPLED)
    assert first != generate(params, [prompt] * 3, seed=5, **SAMPLED)


def test_generate_stops_before_a_stop_id_and_continues_the_others(params):
    prompts = _prompts(4, 9, 20)
    full = generate(params, prompts, config=CONFIG, max_new_tokens=16)
    stop = full[1][6]
    assert stop not in full[0][:3]
    stopped = generate(params, prompts, config=CONFIG, max_new_tokens=16, stop_ids=[stop])
    for found, tokens in zip(stopped, full, strict=True):
        assert found == (tokens[: tokens.index(stop)] if stop in tokens else tokens)
    assert len(stopped[1]) <= 6


def test_rollout_stops_when_every_sequence_has_finished(params):
    prompt = _prompts(32)[0]
    first = generate(params, prompt, config=CONFIG, max_new_tokens=16)[:2]
    assert first[0] != first[1]
    sampling = sampling_arrays(
        [SamplingParams(16, stop_token_ids=first[1:])], vocab_size=128, num_stop_ids=4
    )
    new = decode.rollout(
        params,
        np.asarray([prompt], np.int32),
        np.asarray([32], np.int32),
        sampling,
        config=CONFIG,
        room=16,
    )
    assert new.tokens[0].tolist() == first[:1] + [-1] * 15
    # Later steps wrote nothing; the stop id has a log-probability too.
    assert np.count_nonzero(new.logprobs) == 2


def test_generate_returns_one_or_several_lists_like_the_prompt(params):
    prompt = _prompts(20)[0]
    kwargs = dict(config=CONFIG, max_new_tokens=3)
    one = generate(params, prompt, **kwargs)
    assert len(one) == 3 and all(type(token) is int for token in one)
    for form in (
        np.asarray(prompt),
        jnp.asarray(prompt),
        tuple(prompt),
        [np.int64(token) for token in prompt],
    ):
        assert generate(params, form, **kwargs) == one
    for form in (
        [prompt],
        np.asarray([prompt]),
        jnp.asarray([prompt]),
        [np.asarray(prompt)],
        (prompt,),
    ):
        assert generate(params, form, **kwargs) == [one]


def test_generate_never_samples_ids_past_vocab_size(params):
    prompts = [[token % 10 for token in prompt] for prompt in _prompts(20, 8, 8)]
    hot = SAMPLED | {"temperature": 3.0}
    assert max(map(max, generate(params, prompts, **hot))) >= 10
    assert max(map(max, generate(params, prompts, vocab_size=10, **hot))) < 10


def test_generate_of_the_same_bucket_compiles_nothing(params):
    generate(params, _prompts(17, 20, 3), stop_ids=[1, 2], **(SAMPLED | {"max_new_tokens": 9}))
    before = decode.rollout._cache_size()
    assert before > 0
    generate(
        params,
        _prompts(32, 5, 6, 7),
        stop_ids=[3],
        seed=9,
        vocab_size=127,
        **(SAMPLED | {"temperature": 0.3, "top_k": 7, "top_p": 0.5}),
    )
    generate(
        params,
        _prompts(32, 5, 6, 7),
        stop_ids=[3],
        config=CONFIG,
        max_new_tokens=9,
        repetition_penalty=1.3,
    )
    assert decode.rollout._cache_size() == before


@pytest.mark.slow
def test_generate_with_sharded_weights_gives_the_same_tokens(params):
    prompts = _prompts(4, 12, 15, 20)
    kwargs = dict(config=CONFIG, max_new_tokens=16)
    expected = generate(params, prompts, **kwargs)
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    sharded = jax.device_put(params, sharding_for(param_specs(CONFIG), mesh))
    assert generate(sharded, prompts, **kwargs) == expected
    with use_layout(mesh):  # a batch of one, which the mesh does not divide
        assert generate(sharded, prompts[0], **kwargs) == expected[0]


def test_generate_in_bfloat16_equals_the_full_forward(params):
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    prompt = _prompts(9)[0]
    # Rounding in bfloat16 may break near ties differently, so only compare the first tokens.
    assert generate(params, prompt, config=config, max_new_tokens=4) == _greedy_by_full_forward(
        params, prompt, 4, config
    )


@pytest.mark.parametrize(
    ("prompt", "word"),
    [
        ([], "empty"),
        ([[1], []], "prompt 1"),
        ([[]], "empty"),
        (np.zeros((0, 3), np.int32), "no prompt"),
        ([1, 128], "128"),
        ([[1], [-1]], "-1"),
        ("text", "not a list of token ids"),
        ([1.0], "not a list"),
        (np.ones(3), "not a list"),
        ([[1], 2], "not a list"),
        (np.zeros((1, 2, 3), np.int32), "shape"),
    ],
)
def test_generate_rejects_an_invalid_prompt(params, prompt, word):
    with pytest.raises(DataError, match=word):
        generate(params, prompt, config=CONFIG, max_new_tokens=2)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": 2.5}, "2.5"),
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"top_k": 0}, "top_k=0"),
        ({"vocab_size": 129}, "129"),
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"seed": -1}, "seed"),
        ({"seed": [1, 2]}, "seed has 2 values for 1"),
        ({"stop_ids": [128]}, "128"),
        ({"stop_ids": ["x"]}, "stop_ids"),
    ],
)
def test_generate_rejects_a_setting_out_of_range(params, settings, word):
    with pytest.raises(ConfigError, match=word):
        generate(params, [1, 2], config=CONFIG, **({"max_new_tokens": 2} | settings))
