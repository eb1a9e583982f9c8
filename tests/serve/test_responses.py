"""Responses without a server: what one chunk of a stream holds."""

import pytest

from qwen_jax.inference.request import Event
from qwen_jax.serve.api.protocol import Limits, read_chat, read_completion
from qwen_jax.serve.api.responses import CompletionResponse
from qwen_jax.tokenizer.bpe import Tokenizer

TOKENIZER = Tokenizer({bytes([byte]): byte for byte in range(256)})
LIMITS = Limits("model", context=64, max_choices=4)
BODIES = {
    read_chat: {"messages": [{"role": "user", "content": "x"}], "logprobs": True},
    read_completion: {"prompt": "x", "logprobs": 0},
}


def events(text: str, finish: str | None = None) -> list[Event]:
    tokens = [Event(0, token, chr(token), -0.5, None) for token in text.encode()]
    return [*tokens, Event(0, None, "", None, finish)] if finish else tokens


@pytest.mark.parametrize("read", BODIES)
def test_chunks_hold_all_tokens_of_a_choice_that_have_arrived(read):
    body = {"model": "model", "n": 2, "stream": True} | BODIES[read]
    body |= {"stream_options": {"include_usage": True}}
    request = read(body, TOKENIZER, LIMITS)
    response = CompletionResponse(request, "model", 1, {byte: bytes([byte]) for byte in range(256)})
    mixed = [(1, events("a")[0]), (0, events("b")[0]), (1, events("c")[0])]
    chunks = [chunk["choices"][0] for chunk in response.chunks(mixed)]
    assert [(one["index"], text_of(one), tokens_of(one)) for one in chunks] == [
        (1, "ac", ["a", "c"]),
        (0, "b", ["b"]),
    ]
    (last,) = response.chunks([(1, event) for event in events("d", "stop")])
    assert (text_of(last["choices"][0]), last["choices"][0]["finish_reason"]) == ("d", "stop")
    assert tokens_of(last["choices"][0]) == ["d"]
    if read is read_completion:
        assert last["choices"][0]["logprobs"]["text_offset"] == [2]
    assert response.chunks([(0, Event(0, 98, "", None, None))]) == []  # text that is held back
    (usage,) = response.usage_chunks()
    assert usage["usage"]["completion_tokens"] == 5


def test_complete_equals_the_chunks_of_a_stream():
    bodies = [BODIES[read_completion] | {"model": "model", "stream": stream} for stream in (0, 1)]
    found = []
    for body in bodies:
        request = read_completion(body | {"stream": bool(body["stream"])}, TOKENIZER, LIMITS)
        found.append(CompletionResponse(request, "model", 1, {98: b"b", 99: b"c"}))
    whole, streamed = found
    chunks = [streamed.chunks([(0, event)])[0]["choices"][0] for event in events("bc", "length")]
    whole.add([(0, event) for event in events("bc", "length")])
    choice = whole.complete()["choices"][0]
    assert choice["text"] == "".join(text_of(one) for one in chunks) == "bc"
    assert choice["finish_reason"] == chunks[-1]["finish_reason"] == "length"
    assert choice["logprobs"]["text_offset"] == [0, 1]


def text_of(choice: dict) -> str:
    return choice["text"] if "text" in choice else choice["delta"].get("content", "")


def tokens_of(choice: dict) -> list[str]:
    logprobs = choice["logprobs"]
    return logprobs["tokens"] if "tokens" in logprobs else [x["token"] for x in logprobs["content"]]
