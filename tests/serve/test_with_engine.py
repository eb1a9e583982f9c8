"""The server in front of the real engine says what the engine says offline."""

import asyncio
import dataclasses

import jax
import pytest

from qwen_jax import sizes
from qwen_jax.inference.engine import Engine
from qwen_jax.inference.request import Request
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.model.spec import init_params
from qwen_jax.tokenizer import chatml
from tests.helpers.server import MODEL, byte_tokenizer, running

TOKENIZER = byte_tokenizer()
CONFIG = dataclasses.replace(sizes.TINY, vocab_size=464, context_length=64, initializer_range=0.3)
# 16 calls: greedy and drawn, of 5 to 90 tokens, some with stops, samples or log-probabilities.
ASKS = [
    dict(
        content=f"{i}: what is blue?" * (1 + i % 3),
        max_tokens=5 + 17 * i % 86,
        temperature=[0.0, 0.8][i % 2],
        top_p=[1.0, 0.9, 0.7][i % 3],
        seed=i,
        n=1 + i % 3 // 2,
        stop=[["q", "zz"], None][i % 4 > 0],
        logprobs=i % 5 == 0,
        stream=i % 2 == 0,
    )
    for i in range(16)
]


@pytest.fixture(scope="module")
def make_engine():
    params = jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(0))

    def make(rows=4):
        return Engine(params, CONFIG, tokenizer=TOKENIZER, rows=rows, slots=256)

    return make


def offline(engine, ask):
    sampling = SamplingParams(
        max_new_tokens=ask["max_tokens"],
        temperature=ask["temperature"],
        top_p=ask["top_p"],
        seed=ask["seed"],
        n=ask["n"],
        stop_token_ids=chatml.stop_ids(TOKENIZER),
        stop=tuple(ask["stop"] or ()),
        logprobs=ask["logprobs"],
    )
    prompt = chatml.prompt([("user", ask["content"])], TOKENIZER).tolist()
    return [
        (one.text, one.finish, one.logprobs and list(one.logprobs))
        for one in engine.run([Request(prompt, sampling)])
    ]


async def ask_chat(client, ask):
    ask = dict(ask)
    content = ask.pop("content")
    found = await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": content}], **ask
    )
    texts, finish = [""] * ask["n"], [None] * ask["n"]
    logprobs = [[] for _ in range(ask["n"])]
    if not ask["stream"]:
        return [
            (
                c.message.content,
                c.finish_reason,
                [entry.logprob for entry in c.logprobs.content] if c.logprobs else None,
            )
            for c in found.choices
        ]
    async for chunk in found:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finish[choice.index] = choice.finish_reason or finish[choice.index]
            if choice.logprobs is not None:
                logprobs[choice.index] += [entry.logprob for entry in choice.logprobs.content]
    return list(zip(texts, finish, logprobs if ask["logprobs"] else [None] * ask["n"], strict=True))


def test_sixteen_concurrent_calls_get_the_offline_engines_answers(make_engine):
    async def everyone(server):
        async with server.async_client() as client:
            return await asyncio.gather(*(ask_chat(client, ask) for ask in ASKS))

    with running(make_engine(), TOKENIZER) as server:
        found = asyncio.run(everyone(server))
        assert server.worker.in_flight == 0
    alone = make_engine()
    ends = set()
    for ask, answer in zip(ASKS, found, strict=True):
        assert answer == offline(alone, ask), ask
        ends |= {finish for _, finish, _ in answer}
    assert ends == {"stop", "length"}


def test_a_client_that_leaves_makes_room_and_disturbs_nobody(make_engine):
    async def everyone(server):
        async with server.async_client() as client:
            leaving = [
                await client.completions.create(
                    model=MODEL,
                    prompt="x" * i,
                    max_tokens=250 - i,
                    temperature=1.5,
                    seed=i,
                    stream=True,
                )
                for i in range(1, 5)
            ]
            staying = asyncio.create_task(ask_chat(client, ASKS[1]))
            for stream in leaving:
                await anext(aiter(stream))
                await stream.close()
            return await staying

    engine = make_engine()
    with running(engine, TOKENIZER) as server:
        assert asyncio.run(everyone(server)) == offline(make_engine(), ASKS[1])
        server.wait_until(lambda: server.worker.in_flight == 0 and not engine.busy)
        assert engine.free_rows == 4 and server.worker.counters.cancelled >= 1


def test_what_the_engine_refuses_is_a_400(make_engine):
    with running(make_engine(), TOKENIZER, context=10_000) as server:  # more than its slots
        status, _, body = server.call(
            "POST", "/v1/completions", {"model": MODEL, "prompt": ["x", "x" * 300], "max_tokens": 5}
        )
        assert status == 400 and "256 slots" in body
        server.wait_until(lambda: server.worker.in_flight == 0)
        assert server.call("GET", "/health")[0] == 200
