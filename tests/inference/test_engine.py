"""The engine: a completion depends only on its request."""

import dataclasses
import functools
import random

import jax
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.config import ContextExtension, MeshConfig
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.inference import warmup
from qwen_jax.inference.batching import batch as device
from qwen_jax.inference.batching.fair_queue import Owner
from qwen_jax.inference.decode import generate
from qwen_jax.inference.engine import Engine
from qwen_jax.inference.request import Request
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.model.spec import init_params, param_specs
from qwen_jax.model.transformer import forward
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.parallel.sharding import sharding_for
from qwen_jax.pretrained.huggingface import load_pretrained
from qwen_jax.tokenizer.bpe import Tokenizer

# One layer: tests/inference/decoder has those of several.
CONFIG = dataclasses.replace(sizes.TINY, context_length=32, vocab_size=256, num_layers=1)
full_forward = jax.jit(forward, static_argnames="config")
# One shape for all tests, so they share compilations.
SHAPE = dict(max_num_seqs=4, max_model_len=128, prefill_chunk=16, decode_steps=4)


@pytest.fixture(scope="module")
def params():
    wide = dataclasses.replace(CONFIG, initializer_range=0.3)
    return jax.jit(init_params, static_argnums=0)(wide, jax.random.key(3))


def prompt_of(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(0, CONFIG.vocab_size, length).tolist())


def full_logits(params, sequences, config=CONFIG) -> list[np.ndarray]:
    """Returns the logits at each position of up to three sequences, without a cache."""
    rows, ids = np.zeros((2, 3, 128), np.int32)
    for row, mask, tokens in zip(rows, ids, sequences, strict=False):
        row[: len(tokens)], mask[: len(tokens)] = tokens, 1
    logits = np.asarray(full_forward(params, rows, config=config, segment_ids=ids))
    return [logits[i, : len(tokens)] for i, tokens in enumerate(sequences)]


def greedy(params, prompts, count: int, *, config=CONFIG, penalty: float = 1.0) -> list[list[int]]:
    """Decodes without a cache: the full sequences again for every token."""
    sequences = [list(prompt) for prompt in prompts]
    for _ in range(count):
        for tokens, of_all in zip(sequences, full_logits(params, sequences, config), strict=True):
            logits, seen = of_all[-1], np.isin(np.arange(config.vocab_size), tokens)
            penalized = np.where(logits > 0, logits / penalty, logits * penalty)
            tokens.append(int(np.argmax(np.where(seen, penalized, logits))))
    return [tokens[-count:] for tokens in sequences]


def request_for(prompt, max_new_tokens: int, **settings) -> Request:
    return Request(prompt, SamplingParams(max_new_tokens, **settings))


def change(request: Request, **settings) -> Request:
    return Request(request.prompt, dataclasses.replace(request.sampling, **settings))


def requests_of(seed: int) -> list[Request]:
    """Returns greedy and sampled requests of every kind; some share a prefix of their prompts."""
    rng, common, out = random.Random(seed), prompt_of(40, 99), []
    for i in range(9):
        prompt = prompt_of(rng.randint(1, 60), i)
        if i % 3 == 0:
            prompt = common[: rng.randint(17, 40)] + prompt[:9]
        sampled = (
            dict(
                temperature=rng.choice([0.7, 1.5]),
                top_k=rng.choice([None, 20]),
                top_p=rng.choice([1.0, 0.9]),
                seed=rng.randint(0, 9),
            )
            if i % 2
            else {}
        )
        out.append(
            request_for(
                prompt,
                rng.randint(1, 20),
                logprobs=True,
                stop_token_ids=tuple(range(3, 18)),
                repetition_penalty=rng.choice([1.0, 1.2]),
                **sampled,
            )
        )
    return out


def run_with_arrivals(engine: Engine, arrivals: list[list[Request]]) -> dict[Request, tuple]:
    """Submits a list of requests before each step; returns request -> tokens, logprobs, finish."""
    found, of = {}, {}
    arrivals = list(arrivals)
    while arrivals or engine.busy:
        for request in arrivals.pop(0) if arrivals else ():
            of[engine.submit(request)[0]] = request
            found[request] = ([], [], [])
        for event in engine.step():
            tokens, logprobs, finish = found[of[event.request_id]]
            if event.finish is None:
                tokens.append(event.token)
                logprobs.append(event.logprob)
            else:
                finish.append(event.finish)
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_engine_completions_are_bitwise_independent_of_the_batch_and_order(params, seed):
    requests, rng = requests_of(seed), random.Random(seed)
    separate = {}
    for request in requests:  # each in a fresh engine
        separate |= run_with_arrivals(Engine(params, CONFIG, **SHAPE), [[request]])
    assert {"stop", "length"} == {f for _, _, (f,) in separate.values()}
    engine = Engine(params, CONFIG, **SHAPE)  # this one runs all of them, several times
    for _ in range(4):
        order = rng.sample(requests, len(requests))
        arrivals = [[] for _ in range(12)]
        for request in order:
            arrivals[rng.randrange(rng.choice([1, 12]))].append(request)
        assert run_with_arrivals(engine, arrivals) == separate


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [dict(max_num_seqs=1), dict(max_num_seqs=3, prefill_chunk=32, decode_steps=7)]
)
def test_engine_gives_the_same_tokens_with_other_batch_shapes(params, shape):
    # Other shapes round differently (float32), which does not matter for logits far apart.
    requests = [request_for(prompt_of(n, n), 10) for n in (1, 16, 17, 33, 50)]
    expected = generate(params, [r.prompt for r in requests], config=CONFIG, max_new_tokens=10)
    found = Engine(params, CONFIG, **(SHAPE | shape)).run(requests)
    assert [list(completion.tokens) for completion in found] == expected


def test_engine_greedy_equals_the_released_implementation(shared):
    folder = shared / "reference" / "qwen1_tiny"
    config, params = load_pretrained(folder)
    expected = np.load(folder / "expected.npz")
    requests = [request_for(expected[f"prompt_{n}"][0], 30) for n in (10, 40)]
    found = Engine(params, config, max_num_seqs=2, max_model_len=128, prefill_chunk=16).run(
        requests
    )
    assert [list(a.tokens) for a in found] == [
        expected[f"greedy_{n}"][0].tolist() for n in (10, 40)
    ]


def test_engine_compiles_nothing_after_the_first_requests(params):
    engine = Engine(params, CONFIG, **SHAPE)
    engine.run([request_for(prompt_of(16), 2, n=2)] * 5)
    programs = (device.prefill, device.copy_slot, device.sample_first, device.advance)
    before = [program._cache_size() for program in programs]
    engine.run([change(request, n=2) for request in requests_of(3)])
    assert [program._cache_size() for program in programs] == before


def test_start_engine_runs_every_program_that_a_request_may_need(params, monkeypatch):
    tokenizer = Tokenizer({bytes([i]): i for i in range(256)}, [])
    monkeypatch.setattr(Tokenizer, "end_of_text", 0)  # CONFIG has no room for special tokens
    small = functools.partial(Engine, prefill_chunk=16, decode_steps=4)
    monkeypatch.setattr(warmup, "Engine", small)
    names, ran = ("prefill", "copy_slot", "sample_first", "advance"), set()

    def record(name):
        function = getattr(device, name)

        def run(*arguments, **settings):
            ran.add(name)
            return function(*arguments, **settings)

        monkeypatch.setattr(device, name, run)

    for name in names:
        record(name)
    warmup.start_engine(params, CONFIG, tokenizer, max_num_seqs=4, context=128, cache_dtype=None)
    assert ran == set(names)


def test_engine_samples_share_the_prefill_and_have_separate_streams(params, monkeypatch):
    chunks, prefill = [], device.prefill
    monkeypatch.setattr(device, "prefill", lambda *a, **k: chunks.append(1) or prefill(*a, **k))
    request = request_for(prompt_of(40), 12, temperature=1.5, seed=7, n=6)
    found = Engine(params, CONFIG, **SHAPE).run([request])
    assert len(chunks) == 3 and len({completion.tokens for completion in found}) == 6
    again = Engine(params, CONFIG, **SHAPE).run([change(request, n=2)])
    assert [a.tokens for a in again] == [a.tokens for a in found[:2]]
    assert list(found[0].tokens) == generate(
        params, request.prompt, config=CONFIG, seed=7, max_new_tokens=12, temperature=1.5
    )


def test_engine_reuses_a_shared_prefix_with_the_same_rotation(params, monkeypatch):
    chunks, prefill = [], device.prefill
    monkeypatch.setattr(device, "prefill", lambda *a, **k: chunks.append(1) or prefill(*a, **k))
    engine = Engine(params, CONFIG, **SHAPE)
    count = []
    for length in (20, 28, 30, 40):  # chunks of 16: 2; 1 new; 1 new; 3, another alpha
        chunks.clear()
        engine.run([request_for(prompt_of(length)[:19] + prompt_of(length, 7)[19:], 2)])
        count.append(len(chunks))
    assert count == [2, 1, 1, 3]


def test_engine_decodes_other_slots_during_a_long_prefill(params):
    engine = Engine(params, CONFIG, **SHAPE)
    (short,) = engine.submit(request_for(prompt_of(3), 20))
    engine.step()
    (long,) = engine.submit(request_for(prompt_of(100), 2))
    seen = [{e.request_id for e in engine.step() if e.token is not None} for _ in range(4)]
    assert all(short in step for step in seen) and not any(long in step for step in seen)


def test_engine_logprobs_are_those_of_the_full_softmax(params):
    request = request_for(prompt_of(12), 8, temperature=2.0, top_k=5, logprobs=True)
    (completion,) = Engine(params, CONFIG, **SHAPE).run([request])
    tokens = request.prompt + completion.tokens
    (logits,) = full_logits(params, [tokens])
    logits = logits - np.log(np.sum(np.exp(logits), axis=1, keepdims=True))
    expected = [logits[i - 1, tokens[i]] for i in range(12, 20)]
    np.testing.assert_allclose(
        completion.logprobs, expected, atol=1e-4
    )  # float32 over other shapes


def test_engine_repetition_penalty_equals_its_definition(params):
    prompt, penalty = prompt_of(40, 3), 1.7
    (expected,) = greedy(params, [prompt], 8, penalty=penalty)
    assert [expected] != greedy(params, [prompt], 8)
    request = request_for(prompt, 8, repetition_penalty=penalty)
    assert Engine(params, CONFIG, **SHAPE).run([request])[0].tokens == tuple(expected)
    assert (
        generate(params, prompt, config=CONFIG, max_new_tokens=8, repetition_penalty=penalty)
        == expected
    )


def test_engine_stop_strings_and_cancel(params):
    letters = {bytes([i]): i for i in range(256)}
    tokenizer = Tokenizer(letters, [])
    engine = Engine(params, CONFIG, tokenizer=tokenizer, **SHAPE)
    request = request_for(prompt_of(9), 24, temperature=1.0, seed=1)
    (full,) = engine.run([request])
    assert full.finish == "length" and len(full.tokens) == 24
    assert full.text == bytes(full.tokens).decode(errors="replace")
    ascii_at = [i for i, t in enumerate(full.tokens) if t < 128 and i > 4]
    index = next(
        i
        for i in ascii_at
        if i + 1 in ascii_at and full.text.count(bytes(full.tokens[i : i + 2]).decode()) == 1
    )
    stop = bytes(full.tokens[index : index + 2]).decode()
    (stopped,) = engine.run([change(request, stop=(stop, "never"))])
    assert stopped.finish == "stop" and stopped.text == full.text[: full.text.index(stop)]
    assert stopped.tokens == full.tokens[: index + 2]

    waiting = [engine.submit(change(request, seed=i))[0] for i in range(6)]
    engine.step()
    engine.cancel(waiting[0])
    engine.cancel(waiting[5])
    finishes = {}
    while engine.busy:
        finishes |= {e.request_id: e.finish for e in engine.step() if e.finish}
    assert [finishes[i] for i in waiting] == ["cancelled"] + ["length"] * 4 + ["cancelled"]
    assert engine.free_slots == 4


def test_engine_continues_a_completion_that_lost_its_slot_without_a_difference(params):
    engine = Engine(
        params, CONFIG, tokenizer=Tokenizer({bytes([i]): i for i in range(256)}, []), **SHAPE
    )
    long = request_for(prompt_of(20), 60, temperature=1.0, seed=3, n=8, logprobs=True)
    short = request_for(prompt_of(9, 1), 12, temperature=0.5, seed=4, n=2)
    alone = [engine.run([request]) for request in (long, short)]
    ids = engine.submit(long, Owner("a", 0))
    events = [event for _ in range(4) for event in engine.step()]
    others = engine.submit(short, Owner("b", 1))
    order = []
    while engine.busy:
        new = engine.step()
        events += new
        order += [event.request_id for event in new if event.finish]
    for expected, requested in zip(alone, (ids, others), strict=True):
        for one, request_id in zip(expected, requested, strict=True):
            own = [event for event in events if event.request_id == request_id]
            assert "".join(event.text for event in own) == one.text
            assert tuple(event.token for event in own[:-1]) == one.tokens
            if requested is ids:
                assert tuple(event.logprob for event in own[:-1]) == one.logprobs
    assert set(order[:2]) == set(others)  # did not wait for a completion of 60 tokens


@pytest.mark.slow  # tests/inference/decoder has windows
def test_engine_with_windows_equals_the_full_forward(params):
    requests = [request_for(prompt_of(n, n), 6) for n in (5, 40, 70)]
    exact = Engine(params, CONFIG, **SHAPE).run(requests)
    windows = dataclasses.replace(CONFIG, extension=ContextExtension(windows=(16,)))
    expected = greedy(params, [request.prompt for request in requests], 6, config=windows)
    found = Engine(params, windows, **SHAPE).run(requests)
    assert [list(a.tokens) for a in found] == expected != [list(a.tokens) for a in exact]


def test_engine_memory_counts_an_int8_cache(params):
    small = Engine(params, CONFIG, cache_dtype="int8", **SHAPE)
    assert small.memory() < 0.6 * Engine(params, CONFIG, **SHAPE).memory()


@pytest.mark.slow  # tests/inference/decoder has the writes and the rounding of such a cache
def test_engine_with_int8_cache(params):
    requests = [request_for(prompt_of(n, n), 6) for n in (5, 40, 70)]
    exact = Engine(params, CONFIG, **SHAPE).run(requests)
    found = Engine(params, CONFIG, cache_dtype="int8", **SHAPE).run(requests)
    # Quantized keys may break near ties differently: only the first tokens are compared.
    assert [a.tokens[:2] for a in found] == [a.tokens[:2] for a in exact]


def test_engine_on_a_mesh_gives_the_same_tokens(params):
    requests = [request_for(prompt_of(n, n), 6) for n in (5, 20, 40, 50, 7)]
    expected = Engine(params, CONFIG, **SHAPE).run(requests)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    sharded = jax.device_put(params, sharding_for(param_specs(CONFIG), mesh))
    engine = Engine(sharded, CONFIG, mesh=mesh, **SHAPE)
    keys = engine._batch.decode.cache.blocks[0][0].keys
    assert keys.shape == (1, 4, 4, 64, 8)
    assert keys.sharding.shard_shape(keys.shape) == (1, 1, 2, 64, 8)
    programs = (device.prefill, device.sample_first, device.advance)
    before = [program._cache_size() for program in programs]
    assert [a.tokens for a in engine.run(requests)] == [a.tokens for a in expected]
    assert [program._cache_size() for program in programs] == [count + 1 for count in before]


@pytest.mark.parametrize("prompt, word", [((), "empty"), ((-1,), "-1"), ("ab", "not a list")])
def test_request_rejects_an_invalid_prompt(prompt, word):
    with pytest.raises(DataError, match=word):
        request_for(prompt, 3)


def test_engine_rejects_requests_and_settings_with_the_numbers(params):
    engine = Engine(params, CONFIG, **SHAPE)
    for request, word in (
        (request_for(prompt_of(100), 29), "100 prompt tokens plus 29 new .*=128"),
        (request_for((256,), 1), "256"),
        (request_for((1,), 1, stop_token_ids=(300,)), "300"),
        (request_for((1,), 1, stop_token_ids=tuple(range(17))), "too many stop ids: 17"),
        (request_for((1,), 1, stop=("x",)), "tokenizer"),
    ):
        with pytest.raises((ConfigError, DataError), match=word):
            engine.submit(request)
    assert not engine.busy
    for wrong, word in (
        ({"max_num_seqs": 0}, "max_num_seqs=0"),
        ({"max_model_len": -1}, "max_model_len=-1"),
        ({"prefill_chunk": 24}, "prefill_chunk=24"),
        ({"cache_dtype": "int4"}, "int4"),
        ({"vocab_size": 500}, "500"),
        ({"memory_gib": 0.00003}, "needs 0.1 MiB on each device, but only 0.0 MiB is available"),
    ):
        with pytest.raises(ConfigError, match=word):
            Engine(params, CONFIG, **(SHAPE | wrong))
