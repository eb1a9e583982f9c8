"""The server with the OpenAI client and an engine without a model."""

import asyncio
import socket
import time

import openai
import pytest

from qwen_jax.inference.request import Request
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.tokenizer import chatml
from tests.helpers.fake_engine import FakeEngine, complete
from tests.helpers.server import MODEL, byte_tokenizer, running

TOKENIZER = byte_tokenizer()
MESSAGES = [{"role": "user", "content": "Wie blau ist das Meer?"}]


@pytest.fixture(scope="module")
def served():
    engine = FakeEngine(TOKENIZER)
    with running(engine, TOKENIZER) as server:
        yield server, engine


def offline(chat=True, prompt=None, **settings):
    ids = chatml.prompt(MESSAGES, TOKENIZER).tolist() if chat else TOKENIZER.encode(prompt)
    stops = chatml.stop_ids(TOKENIZER) if chat else (TOKENIZER.end_of_text,)
    sampling = SamplingParams(stop_token_ids=stops, **settings)
    return complete(FakeEngine(TOKENIZER), Request(tuple(ids), sampling))


def test_chat_completions_equal_the_offline_engine_with_and_without_stream(served):
    client = served[0].client()
    expected = offline(n=3, max_new_tokens=60, temperature=0.5, seed=7)
    ask = dict(model=MODEL, messages=MESSAGES, max_tokens=60, temperature=0.5, seed=7, n=3)
    complete_response = client.chat.completions.create(**ask)
    assert [(c.message.content, c.finish_reason) for c in complete_response.choices] == expected
    assert [c.index for c in complete_response.choices] == [0, 1, 2]
    assert complete_response.object == "chat.completion"
    assert complete_response.choices[0].message.role == "assistant"

    texts, finish, usage, roles = [""] * 3, [None] * 3, None, set()
    for chunk in client.chat.completions.create(
        **ask, stream=True, stream_options={"include_usage": True}
    ):
        assert chunk.object == "chat.completion.chunk"
        if chunk.usage is not None:
            assert chunk.choices == [] and usage is None
            usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finish[choice.index] = choice.finish_reason or finish[choice.index]
            roles |= {(choice.index, choice.delta.role)}
    assert list(zip(texts, finish, strict=True)) == expected
    assert usage == complete_response.usage and {(i, "assistant") for i in range(3)} <= roles
    assert usage.prompt_tokens == len(chatml.prompt(MESSAGES, TOKENIZER))
    # Every byte is a token here, and a stop id is not counted.
    assert usage.completion_tokens >= sum(len(text) for text in texts) > 0


def test_completions_of_several_prompts_as_text_or_ids(served):
    client = served[0].client()
    prompts = ["Once", "zwei é"]
    ask = dict(model=MODEL, temperature=0, max_tokens=30)
    expected = [offline(chat=False, prompt=p, max_new_tokens=30)[0] for p in prompts]
    for form in (prompts, [TOKENIZER.encode(p) for p in prompts]):
        found = client.completions.create(**ask, prompt=form)
        assert [(c.text, c.finish_reason) for c in found.choices] == expected
        assert found.object == "text_completion"
    for form in (prompts[0], TOKENIZER.encode(prompts[0])):
        text = "".join(
            chunk.choices[0].text
            for chunk in client.completions.create(**ask, prompt=form, stream=True)
        )
        assert text == expected[0][0]
    two = client.completions.create(**ask, prompt=prompts, n=2)  # ordered by prompt
    assert [c.text for c in two.choices] == [t for t, _ in expected for _ in range(2)]


def test_stop_strings_are_not_part_of_the_text(served):
    client = served[0].client()
    ask = dict(model=MODEL, messages=MESSAGES, max_tokens=150, temperature=1, seed=1)
    full = client.chat.completions.create(**ask).choices[0].message.content
    stop = full[10:13]
    for form in (stop, [stop], ["not in it", stop]):
        found = client.chat.completions.create(**ask, stop=form).choices[0]
        assert found.message.content == full[: full.index(stop)]
        assert found.finish_reason == "stop"
    streamed = "".join(
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(**ask, stop=stop, stream=True)
    )
    assert streamed == full[: full.index(stop)]


def test_logprobs_of_the_sampled_tokens(served):
    client = served[0].client()
    ask = dict(model=MODEL, max_tokens=40, temperature=0)
    chat = client.chat.completions.create(**ask, messages=MESSAGES, logprobs=True)
    entries = chat.choices[0].logprobs.content
    assert len(entries) == chat.usage.completion_tokens
    assert {entry.logprob for entry in entries} == {-0.5}
    raw = bytes(byte for entry in entries for byte in entry.bytes)
    assert raw.decode("utf-8", "replace") == chat.choices[0].message.content
    streamed = [
        entry
        for chunk in client.chat.completions.create(
            **ask, messages=MESSAGES, logprobs=True, stream=True
        )
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert streamed == entries
    text = client.completions.create(**ask, prompt="x", logprobs=0).choices[0]
    assert len(text.logprobs.tokens) == len(text.logprobs.token_logprobs)
    assert text.logprobs.token_logprobs[0] == -0.5
    # Every byte is a token: a character starts at its first byte and is counted at its last.
    ends = [
        len(bytes(text.text.encode()[:i]).decode(errors="ignore"))
        for i in range(len(text.logprobs.tokens))
    ]
    assert text.logprobs.text_offset == ends and ends[-1] > 10
    streamed = [
        offset
        for chunk in client.completions.create(**ask, prompt="x", logprobs=0, stream=True)
        if chunk.choices[0].logprobs
        for offset in chunk.choices[0].logprobs.text_offset
    ]
    assert streamed == ends
    assert (
        chat.choices[0].message.content
        and client.chat.completions.create(**ask, messages=MESSAGES).choices[0].logprobs is None
    )


@pytest.mark.parametrize("prompt", ["x", "y", "zwei é", "日本"])
def test_text_offset_is_the_same_with_a_stop_that_begins_and_never_comes(served, prompt):
    client = served[0].client()
    ask = dict(model=MODEL, prompt=prompt, max_tokens=60, temperature=0, logprobs=0)
    plain = client.completions.create(**ask).choices[0]
    # Starts of stop strings are held back: at every character, at a part of one, over a long run.
    never = [
        [c + "\0" for c in "the "],
        [plain.text[:30] + "\0"],
        "日本\0",
        plain.text[5:25] + "\0",
    ]
    for stop in never:
        for stream in (False, True):
            found = client.completions.create(**ask, stop=stop, stream=stream)
            chunks = [chunk.choices[0] for chunk in found] if stream else [found.choices[0]]
            assert "".join(chunk.text for chunk in chunks) == plain.text
            offsets = [i for one in chunks if one.logprobs for i in one.logprobs.text_offset]
            assert offsets == plain.logprobs.text_offset and offsets[-1] > 10
    stop = plain.text[20:23]  # one that comes
    found = client.completions.create(**ask, stop=stop).choices[0]
    count = len(found.logprobs.tokens)
    assert found.text == plain.text[: plain.text.index(stop)]
    assert found.logprobs.text_offset == plain.logprobs.text_offset[:count]


def test_routes_models_health_metrics_and_unknown_paths(served):
    server, _ = served
    client = server.client()
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.models.retrieve("gpt-4")
    assert server.call("GET", "/health")[0] == 200
    before = server.metric("qwen_jax_generated_tokens_total")
    usage = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=5).usage
    assert server.metric("qwen_jax_generated_tokens_total") == before + usage.completion_tokens
    assert server.metric("qwen_jax_max_num_seqs") == 4
    assert server.metric("qwen_jax_completions_waiting") == 0
    for method, path, status in (
        ("GET", "/v1/embeddings", 404),
        ("GET", "/v1/chat/completions", 405),
    ):
        found = server.call(method, path)
        assert found[0] == status and '"error"' in found[2]


def test_concurrent_completions_equal_the_offline_engine():
    engine = FakeEngine(TOKENIZER, max_num_seqs=5, seconds=0.001)
    requests = [
        dict(
            prompt=f"number {i}",
            max_tokens=5 + 9 * i % 120,
            temperature=i % 2 * 0.7,
            seed=i,
            stop=["END"] if i % 3 == 0 else None,
            stream=i % 4 == 0,
        )
        for i in range(16)
    ]

    async def one(client, ask):
        found = await client.completions.create(model=MODEL, **ask)
        if not ask["stream"]:
            return found.choices[0].text, found.choices[0].finish_reason
        text, finish = "", None
        async for chunk in found:
            text, finish = text + chunk.choices[0].text, chunk.choices[0].finish_reason or finish
        return text, finish

    async def everyone(server):
        async with server.async_client() as client:
            return await asyncio.gather(*(one(client, ask) for ask in requests))

    with running(engine, TOKENIZER, max_num_seqs=5) as server:
        found = asyncio.run(everyone(server))
        assert server.worker.in_flight == 0 and server.worker.counters.finished == 16
    for ask, completion in zip(requests, found, strict=True):
        assert [completion] == offline(
            chat=False,
            prompt=ask["prompt"],
            max_new_tokens=ask["max_tokens"],
            temperature=ask["temperature"],
            seed=ask["seed"],
            stop=tuple(ask["stop"] or ()),
        )
    assert engine.max_running == 5  # they ran at the same time


@pytest.mark.parametrize("stream", [True, False])
def test_disconnect_frees_the_decode_slots(stream, caplog):
    engine = FakeEngine(TOKENIZER, seconds=0.005, unending=True)
    with running(engine, TOKENIZER, context=5000) as server:
        engine.max_model_len = 5000
        body = (
            f'{{"model": "{MODEL}", "prompt": "x", "max_tokens": 4000, "n": 2, '
            f'"stream": {str(stream).lower()}}}'
        ).encode()
        connection = socket.create_connection(("127.0.0.1", server.port))
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
        server.wait_until(lambda: len(engine.running) == 2)
        if stream:
            connection.settimeout(10)
            received = b""
            while b"data: " not in received:  # the headers may arrive separately
                data = connection.recv(4096)
                assert data, received
                received += data
        connection.close()
        server.wait_until(lambda: not engine.busy, seconds=3)
        assert engine.cancelled == 2 and server.worker.in_flight == 0
        assert server.worker.counters.cancelled == 2
        text = server.client().completions.create(model=MODEL, prompt="x", max_tokens=4)
        assert text.choices[0].finish_reason == "length"
    assert [record for record in caplog.records if record.name.startswith("uvicorn")] == []


def test_full_queue_returns_429_and_a_client_that_retries_succeeds():
    engine = FakeEngine(TOKENIZER, max_num_seqs=1)
    engine.unblocked.clear()
    ask = dict(model=MODEL, prompt="x", max_tokens=8)

    async def everyone(server):
        async with server.async_client() as client:
            tasks = [asyncio.create_task(client.completions.create(**ask)) for _ in range(3)]
            while server.worker.in_flight < 3:
                await asyncio.sleep(0.01)
            with pytest.raises(openai.RateLimitError) as rejected:
                await client.completions.create(**ask)
            assert rejected.value.code == "queue_full"
            assert rejected.value.response.headers["retry-after"] == "1"
            retrying = asyncio.create_task(
                client.with_options(max_retries=3).completions.create(**ask)
            )
            await asyncio.sleep(0.1)
            engine.unblocked.set()
            return await asyncio.gather(*tasks, retrying)

    with running(engine, TOKENIZER, max_num_seqs=1, max_queued=2) as server:
        assert len(asyncio.run(everyone(server))) == 4
        assert server.metric("qwen_jax_refused_total") >= 2
        assert server.worker.in_flight == 0
        with pytest.raises(openai.BadRequestError, match="n=4"):  # exceeds the capacity
            server.client().completions.create(**ask, n=4)


def test_engine_failure_fails_requests_and_health():
    engine = FakeEngine(TOKENIZER, fail_at=10, unending=True)
    with running(engine, TOKENIZER) as server:
        client = server.client()
        chunks = client.completions.create(model=MODEL, prompt="x", max_tokens=100, stream=True)
        with pytest.raises(openai.APIError, match="out of memory"):
            for _ in chunks:
                pass
        status, _, body = server.call("GET", "/health")
        assert status == 503 and "out of memory" in body
        with pytest.raises(openai.InternalServerError, match="engine failed"):
            client.completions.create(model=MODEL, prompt="x")
        assert server.metric("qwen_jax_up") == 0
    engine = FakeEngine(TOKENIZER, fail_at=10, unending=True)
    with (
        running(engine, TOKENIZER) as server,
        pytest.raises(openai.InternalServerError, match="out of memory"),
    ):
        server.client().completions.create(model=MODEL, prompt="x", max_tokens=100)


def test_api_key_is_required_except_for_health():
    with running(FakeEngine(TOKENIZER), TOKENIZER, api_key="sésame") as server:
        with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
            server.client(api_key="other").models.list()
        assert server.call("GET", "/metrics")[0] == 401
        assert server.call("GET", "/health")[0] == 200
        headers = {"Authorization": "Bearer sésame".encode()}
        assert server.call("GET", "/v1/models", headers=headers)[0] == 200


def test_access_is_denied_to_web_pages(served):
    server, _ = served
    body = {"model": MODEL, "prompt": "x"}
    status, _, text = server.call("POST", "/v1/completions", body, {"Content-Type": "text/plain"})
    assert status == 415 and "application/json" in text
    status, _, text = server.call("GET", "/v1/models", headers={"Host": "evil.example:80"})
    assert status == 403 and "unknown_host" in text
    for host in ("localhost:1", "[::1]:8000", "127.0.0.1"):
        assert server.call("GET", "/v1/models", headers={"Host": host})[0] == 200


def test_max_body_bytes_rejects_a_longer_body():
    with running(FakeEngine(TOKENIZER), TOKENIZER, max_body_bytes=1000) as server:
        status, _, body = server.call(
            "POST", "/v1/completions", {"model": MODEL, "prompt": "x" * 2000}
        )
        assert status == 413 and "1,000 bytes" in body


def test_body_seconds_times_out_an_incomplete_body():
    with running(FakeEngine(TOKENIZER), TOKENIZER, body_seconds=0.1) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as half:
            half.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
            )
            half.settimeout(10)
            assert half.recv(100).startswith(b"HTTP/1.1 408 ")


def test_slow_client_does_not_block_others():
    engine = FakeEngine(TOKENIZER, unending=True)
    with running(engine, TOKENIZER, context=100_000) as server:
        engine.max_model_len = 100_000
        client = server.client()
        slow = client.completions.create(model=MODEL, prompt="x", max_tokens=50_000, stream=True)
        begin = time.monotonic()
        client.completions.create(model=MODEL, prompt="y", max_tokens=50)
        assert time.monotonic() - begin < 10
        slow.close()
        server.wait_until(lambda: server.worker.in_flight == 0)
