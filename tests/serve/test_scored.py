"""Echoed prompts, alternatives and the tokenizer's routes, with a real model."""

import asyncio
import dataclasses
import json

import jax
import numpy as np
import openai
import pytest

from qwen_jax import sizes
from qwen_jax.inference.engine import Engine
from qwen_jax.inference.request import Request
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.inference.scoring import Row, Scorer
from qwen_jax.model.spec import init_params
from qwen_jax.tokenizer import chatml
from tests.helpers.server import MODEL, byte_tokenizer, running

TOKENIZER = byte_tokenizer()
CONFIG = dataclasses.replace(sizes.TINY, vocab_size=464, context_length=64, initializer_range=0.3)
PROMPTS = ["Blue is the sea, ", "é", "Blue is the sky and everything else that I see out there."]
CONTEXT = 256


@pytest.fixture(scope="module")
def params():
    return jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def engine(params):
    return Engine(params, CONFIG, tokenizer=TOKENIZER, max_num_seqs=4, max_model_len=CONTEXT)


@pytest.fixture(scope="module")
def served(engine):
    with running(engine, TOKENIZER, context=CONTEXT) as server:
        yield server


@pytest.fixture(scope="module")
def score(params):
    """Returns the log-probabilities of ids after the first, computed on their own."""

    def score(ids, prompt_length=None, top=0):
        scorer = Scorer(params, CONFIG, max_length=CONTEXT)
        pairs = tuple(enumerate(ids[1:]))
        row = Row(tuple(ids[:-1] or ids), pairs, top, prompt_length)
        return dict(scorer.score([row]))[0]

    return score


def complete(server, **fields):
    return server.client().completions.create(model=MODEL, **{"temperature": 0} | fields)


def check(choice, ids, scores):
    """The log-probabilities of a choice are those of ids, of which the first has none."""
    found = choice.logprobs
    assert found.tokens == [bytes([i]).decode() if i < 128 else f"bytes:\\x{i:02x}" for i in ids]
    assert found.token_logprobs == [None, *scores.logprobs]
    assert found.text_offset == [
        len(bytes(ids[:at]).decode(errors="ignore")) for at in range(len(ids))
    ]


def test_echo_without_a_completion_has_the_scores_of_the_prompt(served, score):
    for form in (PROMPTS, [TOKENIZER.encode(prompt) for prompt in PROMPTS]):
        found = complete(served, prompt=form, echo=True, logprobs=3, max_tokens=0)
        assert [choice.index for choice in found.choices] == [0, 1, 2]
        for prompt, choice in zip(PROMPTS, found.choices, strict=True):
            ids = TOKENIZER.encode(prompt)
            scores = score(ids, top=3)
            assert choice.text == prompt and choice.finish_reason == "length"
            check(choice, ids, scores)
            first, *tops = choice.logprobs.top_logprobs
            assert first is None
            for at, (top, best) in enumerate(zip(tops, scores.top, strict=True)):
                assert len(top) in (3, 4) and list(top.values())[:3] == [v for _, v in best]
                assert scores.logprobs[at] in top.values()
                # Clients find greedy choices by equality with the largest value.
                assert (max(top.values()) == scores.logprobs[at]) == scores.most_likely[at]
        assert found.usage.completion_tokens == 0
        assert found.usage.prompt_tokens == sum(len(TOKENIZER.encode(p)) for p in PROMPTS)
    one = complete(served, prompt="x", echo=True, logprobs=1, max_tokens=0).choices[0]
    assert one.logprobs.token_logprobs == [None] and one.logprobs.tokens == ["x"]
    bare = complete(served, prompt="x", echo=True, max_tokens=0).choices[0]
    assert (bare.text, bare.logprobs) == ("x", None)


def test_echo_with_one_greedy_token_is_what_lm_eval_requests(served, engine, score):
    found = complete(served, prompt=PROMPTS, echo=True, logprobs=1, max_tokens=1, seed=1234)
    for prompt, choice in zip(PROMPTS, found.choices, strict=True):
        ids = TOKENIZER.encode(prompt)
        sampling = SamplingParams(max_new_tokens=1)
        (expected,) = engine_run(engine, Request(ids, sampling))
        assert choice.text == prompt + expected.text
        check(choice, [*ids, *expected.tokens], score([*ids, *expected.tokens], len(ids)))
    plain = complete(served, prompt=PROMPTS, echo=True, logprobs=0, max_tokens=1)
    assert [c.text for c in plain.choices] == [c.text for c in found.choices]
    assert plain.choices[0].logprobs.top_logprobs is None


def engine_run(engine, request):
    """Runs a request of its own engine: the served one belongs to its thread."""
    own = Engine(
        jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(0)),
        CONFIG,
        tokenizer=TOKENIZER,
        max_num_seqs=4,
        max_model_len=CONTEXT,
    )
    return own.run([request])


def test_alternatives_of_sampled_tokens(served, score):
    ask = dict(prompt=PROMPTS[:2], max_tokens=12, n=2, temperature=0.8, seed=3)
    plain = complete(served, **ask, logprobs=0)
    found = complete(served, **ask, logprobs=4)
    echoed = complete(served, **ask, logprobs=4, echo=True)
    for index, (old, new, echo) in enumerate(
        zip(plain.choices, found.choices, echoed.choices, strict=True)
    ):
        assert new.text == old.text and new.logprobs.tokens == old.logprobs.tokens
        np.testing.assert_allclose(
            new.logprobs.token_logprobs, old.logprobs.token_logprobs, atol=3e-5
        )
        prompt = PROMPTS[index // 2]
        assert echo.text == prompt + old.text
        own = len(TOKENIZER.encode(prompt))
        assert echo.logprobs.token_logprobs[own : own + 12] == new.logprobs.token_logprobs
        assert all(len(top) in (4, 5) for top in new.logprobs.top_logprobs)
    assert found.usage == plain.usage == echoed.usage


def test_top_logprobs_of_a_chat(served):
    ask = dict(
        model=MODEL,
        messages=[{"role": "user", "content": "Hi"}],
        max_tokens=9,
        temperature=0,
        logprobs=True,
    )
    client = served.client()
    plain = client.chat.completions.create(**ask).choices[0]
    found = client.chat.completions.create(**ask, top_logprobs=3).choices[0]
    assert found.message.content == plain.message.content
    assert len(found.logprobs.content) == len(plain.logprobs.content) > 0
    for old, new in zip(plain.logprobs.content, found.logprobs.content, strict=True):
        assert (old.token, old.bytes) == (new.token, new.bytes)
        assert new.logprob == pytest.approx(old.logprob, abs=3e-5)
        values = [one.logprob for one in new.top_logprobs]
        assert len(values) == 3 and values == sorted(values, reverse=True)
        assert new.top_logprobs[0].logprob == new.logprob  # greedy
        assert new.top_logprobs[0].token == new.token


def test_special_token_that_ends_an_echoed_completion_has_an_entry(params, score):
    # Weights with which the end of the text follows everything.
    biased = params.replace(head=params.head * 0) if params.head is not None else params
    assert biased is not params, "TINY has an output matrix of its own"
    end = TOKENIZER.end_of_text
    axis = 0 if params.head.shape[0] == CONFIG.vocab_size else 1
    index = (end, slice(None)) if axis == 0 else (slice(None), end)
    head = np.zeros(params.head.shape, np.float32)
    head[index] = np.asarray(params.head)[index]
    broken = params.replace(head=jax.numpy.asarray(head))
    engine = Engine(broken, CONFIG, tokenizer=TOKENIZER, max_num_seqs=2, max_model_len=CONTEXT)
    with running(engine, TOKENIZER, context=CONTEXT) as server:
        for prompt in "abcdefgh":
            one, five = (
                complete(server, prompt=prompt, echo=True, logprobs=1, max_tokens=n).choices[0]
                for n in (1, 5)
            )
            if one.finish_reason == "stop":
                break
        else:
            pytest.fail("no prompt is followed by the end of the text")
    for choice in (one, five):
        assert choice.text == prompt and choice.finish_reason == "stop"
        assert choice.logprobs.tokens == [prompt, "<|endoftext|>"]
    assert five.logprobs.token_logprobs == one.logprobs.token_logprobs


def test_scoring_is_the_same_bits_in_any_company(served, score):
    prompts = [f"{PROMPTS[2]} {i}" for i in range(12)]

    async def everyone():
        async with served.async_client() as client:
            return await asyncio.gather(
                *(
                    client.completions.create(
                        model=MODEL,
                        prompt=prompts[i : i + 1 + i % 3],
                        echo=True,
                        logprobs=1,
                        max_tokens=[0, 1, 20][i % 3],
                        temperature=i % 2,
                        seed=i,
                    )
                    for i in range(10)
                )
            )

    for i, found in enumerate(asyncio.run(everyone())):
        for prompt, choice in zip(prompts[i:], found.choices, strict=False):
            ids = TOKENIZER.encode(prompt)
            got = choice.logprobs.token_logprobs[1 : len(ids)]
            # Those of the last chunk may come from another program, after more tokens.
            assert got[:62] == list(score(ids).logprobs)[:62]
            np.testing.assert_allclose(got, score(ids).logprobs, atol=3e-5)
    served.wait_until(lambda: served.worker.in_flight == 0)
    assert served.metric("qwen_jax_scored_total") > 0


def test_scoring_counts_as_completions_and_is_cancelled(params):
    engine = Engine(params, CONFIG, tokenizer=TOKENIZER, max_num_seqs=2, max_model_len=CONTEXT)
    with running(engine, TOKENIZER, context=CONTEXT, max_num_seqs=2, max_queued=2) as server:
        ask = {"model": MODEL, "echo": True, "logprobs": 1, "max_tokens": 0}
        status, _, body = server.call("POST", "/v1/completions", {**ask, "prompt": ["x"] * 5})
        assert status == 400 and "limit is 4" in body
        assert server.call("POST", "/v1/completions", {**ask, "prompt": ["x"] * 4})[0] == 200

        async def leave():
            async with server.async_client() as client:
                work = asyncio.ensure_future(
                    client.completions.create(
                        model=MODEL,
                        prompt=["x" * 200 + str(i) for i in range(4)],
                        max_tokens=40,
                        logprobs=1,
                    )
                )
                while not server.worker.in_flight:
                    await asyncio.sleep(0.001)
                with pytest.raises(openai.RateLimitError, match="queue is full"):
                    await client.completions.create(model=MODEL, prompt="x", max_tokens=1)
                work.cancel()

        asyncio.run(leave())
        server.wait_until(lambda: server.worker.in_flight == 0 and not engine.busy)
        assert server.call("POST", "/v1/completions", {**ask, "prompt": "y"})[0] == 200
        assert server.worker.counters.cancelled == 4


def test_scorer_that_fails_does_not_end_the_server(params, monkeypatch):
    engine = Engine(params, CONFIG, tokenizer=TOKENIZER, max_num_seqs=2, max_model_len=CONTEXT)
    with running(engine, TOKENIZER, context=CONTEXT) as server:
        ask = {"model": MODEL, "prompt": "x", "echo": True, "logprobs": 1, "max_tokens": 2}
        for name in ("__init__", "_run"):
            with monkeypatch.context() as patch:
                patch.setattr(Scorer, name, lambda *_, **__: 1 / 0)
                status, _, body = server.call("POST", "/v1/completions", ask)
                assert status == 500 and "scorer_failed" in body
                server.wait_until(lambda: server.worker.in_flight == 0)
            assert server.call("POST", "/v1/completions", ask)[0] == 200
            server.worker._scoring._scorer = None
        assert server.call("GET", "/health")[0] == 200


def test_tokenizer_routes(served):
    def post(path, **body):
        status, _, text = served.call("POST", path, body)
        return status, json.loads(text)

    text = "é <|endoftext|>"
    status, found = post("/tokenize", prompt=text, add_special_tokens=False, model=MODEL)
    assert status == 200 and found == {
        "count": 4,
        "max_model_len": CONTEXT,
        "tokens": [0xC3, 0xA9, 32, TOKENIZER.end_of_text],
        "token_strs": None,
    }
    assert post("/detokenize", tokens=found["tokens"]) == (200, {"prompt": text})
    assert post("/detokenize", tokens=[]) == (200, {"prompt": ""})
    strings = post("/tokenize", prompt="aé", return_token_strs=True)[1]["token_strs"]
    assert strings == ["a", "bytes:\\xc3", "bytes:\\xa9"]
    messages = [{"role": "user", "content": "Hi"}]
    chat = post("/tokenize", messages=messages)[1]["tokens"]
    assert chat == chatml.prompt(messages, TOKENIZER).tolist()
    without = post("/tokenize", messages=messages, add_generation_prompt=False)[1]["tokens"]
    assert without == chatml.render(messages, TOKENIZER).tokens.tolist()
    assert post("/tokenize", prompt="x" * 1000)[1]["count"] == 1000  # clients cut it
    for path, body, where in (
        ("/tokenize", {}, "messages"),
        ("/tokenize", {"prompt": "x", "messages": messages}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "x", "chat_template": "x"}, "chat_template"),
        ("/tokenize", {"prompt": "x", "model": "gpt-4"}, "model"),
        ("/detokenize", {"tokens": [464]}, "tokens"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
        ("/detokenize", {}, "tokens"),
    ):
        status, found = post(path, **body)
        assert status in (400, 404) and found["error"]["param"] == where, body
    status, _, text = served.call("GET", "/tokenizer_info")
    info = json.loads(text)
    assert status == 200 and (info["eos_token"], info["bos_token"]) == ("<|endoftext|>", None)
    assert info["added_tokens_decoder"][str(TOKENIZER.im_end)]["content"] == "<|im_end|>"
    assert "<|im_start|>" in info["chat_template"]
