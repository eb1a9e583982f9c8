"""The server with the real engine returns what the engine returns offline."""

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
# 16 requests: greedy and sampled, 5 to 90 tokens, some with stops, n > 1 or log-probabilities.
REQUESTS = [
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

    def make(max_num_seqs=4):
        return Engine(
            params, CONFIG, tokenizer=TOKENIZER, max_num_seqs=max_num_seqs, max_model_len=256
        )

    return make


def offline(engine, request):
    sampling = SamplingParams(
        max_new_tokens=request["max_tokens"],
        temperature=request["temperature"],
        top_p=request["top_p"],
        seed=request["seed"],
        n=request["n"],
        stop_token_ids=chatml.stop_ids(TOKENIZER),
        stop=tuple(request["stop"] or ()),
        logprobs=request["logprobs"],
    )
    prompt = chatml.prompt([("user", request["content"])], TOKENIZER).tolist()
    return [
        (one.text, one.finish, one.logprobs and list(one.logprobs))
        for one in engine.run([Request(prompt, sampling)])
    ]


async def chat(client, request):
    request = dict(request)
    content = request.pop("content")
    found = await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": content}], **request
    )
    texts, finish = [""] * request["n"], [None] * request["n"]
    logprobs = [[] for _ in range(request["n"])]
    if not request["stream"]:
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
    return list(
        zip(texts, finish, logprobs if request["logprobs"] else [None] * request["n"], strict=True)
    )


def test_concurrent_chat_completions_equal_the_offline_engine(make_engine):
    async def everyone(server):
        async with server.async_client() as client:
            return await asyncio.gather(*(chat(client, request) for request in REQUESTS))

    with running(make_engine(), TOKENIZER) as server:
        found = asyncio.run(everyone(server))
        assert server.worker.in_flight == 0
    engine = make_engine()
    finishes = set()
    for request, choices in zip(REQUESTS, found, strict=True):
        assert choices == offline(engine, request), request
        finishes |= {finish for _, finish, _ in choices}
    assert finishes == {"stop", "length"}


def test_disconnect_frees_slots_and_does_not_change_other_completions(make_engine):
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
            staying = asyncio.create_task(chat(client, REQUESTS[1]))
            for stream in leaving:
                await anext(aiter(stream))
                await stream.close()
            return await staying

    engine = make_engine()
    with running(engine, TOKENIZER) as server:
        assert asyncio.run(everyone(server)) == offline(make_engine(), REQUESTS[1])
        server.wait_until(lambda: server.worker.in_flight == 0 and not engine.busy)
        assert engine.free_slots == 4 and server.worker.counters.cancelled >= 1


def test_rejection_by_the_engine_is_a_400(make_engine):
    with running(make_engine(), TOKENIZER, context=10_000) as server:  # more than max_model_len
        status, _, body = server.call(
            "POST", "/v1/completions", {"model": MODEL, "prompt": ["x", "x" * 300], "max_tokens": 5}
        )
        assert status == 400 and "max_model_len=256" in body
        server.wait_until(lambda: server.worker.in_flight == 0)
        assert server.call("GET", "/health")[0] == 200
