"""Requests as JSON: what they set, and the errors of invalid ones."""

import math

import openai
import pytest

from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.serve.api.protocol import (
    Limits,
    Scoring,
    read_chat,
    read_completion,
    read_json,
)
from qwen_jax.serve.api.responses import dumps
from qwen_jax.serve.errors import ApiError
from qwen_jax.tokenizer import chatml
from tests.helpers.fake_engine import FakeEngine
from tests.helpers.server import MODEL, byte_tokenizer, running

TOKENIZER = byte_tokenizer()
LIMITS = Limits(model=MODEL, context=256, max_choices=10)
MESSAGES = [{"role": "user", "content": "Hi"}]


def chat(**fields):
    return read_chat({"model": MODEL, "messages": MESSAGES} | fields, TOKENIZER, LIMITS)


def completion(**fields):
    return read_completion({"model": MODEL, "prompt": "Hi"} | fields, TOKENIZER, LIMITS)


def test_read_chat_passes_every_setting_to_the_engine():
    request = chat(
        max_tokens=9,
        temperature=0.3,
        top_p=0.9,
        top_k=5,
        repetition_penalty=1.2,
        seed=4,
        n=2,
        stop=["a", "b"],
        stream=True,
        stream_options={"include_usage": True},
        logprobs=True,
        user="me",
        presence_penalty=0,
        tools=[],
        tool_choice="auto",
        logit_bias=None,
        response_format={"type": "text"},
        frequency_penalty=0.0,
    )
    (engine_request,) = request.engine_requests
    assert engine_request.prompt == tuple(chatml.prompt(MESSAGES, TOKENIZER))
    assert engine_request.sampling == SamplingParams(
        max_new_tokens=9,
        temperature=0.3,
        top_p=0.9,
        top_k=5,
        repetition_penalty=1.2,
        seed=4,
        n=2,
        stop=("a", "b"),
        stop_token_ids=chatml.stop_ids(TOKENIZER),
        logprobs=True,
    )
    assert (request.stream, request.include_usage, request.chat) == (True, True, True)


def test_defaults_are_those_of_openai_and_fill_the_context():
    (request,) = chat().engine_requests
    assert request.sampling == SamplingParams(
        max_new_tokens=LIMITS.context - len(request.prompt),
        temperature=1.0,
        seed=request.sampling.seed,
        stop_token_ids=chatml.stop_ids(TOKENIZER),
    )
    assert chat().engine_requests[0].sampling.seed != request.sampling.seed  # random
    (request,) = completion().engine_requests
    assert request.sampling.max_new_tokens == 16
    assert request.sampling.stop_token_ids == (TOKENIZER.end_of_text,)
    assert completion(prompt=None).engine_requests[0].prompt == (TOKENIZER.end_of_text,)
    assert completion(prompt=["a", "bc"]).engine_requests[1].prompt == (98, 99)
    assert completion(prompt=[[1], [2, 3]]).engine_requests[1].prompt == (2, 3)
    assert completion(prompt="x" * 250).engine_requests[0].sampling.max_new_tokens == 6


def test_scoring_follows_echo_and_alternatives():
    assert chat(logprobs=True).scoring is completion(logprobs=0).scoring is None
    assert chat(logprobs=True, top_logprobs=2).scoring == Scoring(False, 2, True)
    assert completion(logprobs=5).scoring == Scoring(False, 5, True)
    assert completion(echo=True).scoring == Scoring(True, None, True)
    found = completion(prompt=["x" * 256], echo=True, max_tokens=0, logprobs=0)
    assert found.scoring == Scoring(True, 0, False) and found.logprobs
    assert completion(echo=False, top_logprobs=0).scoring is None
    assert chat(echo=False, stop=[str(i) for i in range(64)]).scoring is None


def test_read_chat_accepts_content_parts_developer_role_and_empty_fields():
    messages = [
        {"role": "developer", "content": "S"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": "c",
            "refusal": None,
            "tool_calls": [],
            "annotations": [],
            "audio": None,
        },
        {"role": "user", "content": "<|im_end|>"},
    ]
    expected = chatml.prompt(
        [("system", "S"), ("user", "ab"), ("assistant", "c"), ("user", "<|im_end|>")], TOKENIZER
    )
    assert chat(messages=messages).engine_requests[0].prompt == tuple(expected)


BAD = [  # fields, status, code, parameter, part of the message
    ({"model": None}, 400, "invalid_value", "model", "missing"),
    ({"model": "gpt-4"}, 404, "model_not_found", "model", "'tiny'"),
    ({"messages": []}, 400, "invalid_value", "messages", "not a non-empty list"),
    ({"messages": "Hi"}, 400, "invalid_value", "messages", "not a non-empty list"),
    ({"messages": ["Hi"]}, 400, "invalid_value", "messages[0]", "not a message"),
    (
        {"messages": [{"role": "bard", "content": "x"}]},
        400,
        "invalid_value",
        "messages[0].role",
        "bard",
    ),
    (
        {"messages": [{"role": "narrator", "content": "x"}]},
        400,
        "invalid_value",
        "messages[0].role",
        "narrator",
    ),
    (
        {"messages": [{"role": ["user"], "content": "x"}]},
        400,
        "invalid_value",
        "messages[0].role",
        "user",
    ),
    (
        {"messages": [*MESSAGES, {"role": "user"}]},
        400,
        "invalid_value",
        "messages[1].content",
        "None",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        400,
        "invalid_value",
        "messages[0].content[0]",
        "image_url",
    ),
    (
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
        400,
        "invalid_value",
        "messages[0].tool_calls[0].function",
        "no name",
    ),
    (
        {"messages": [{"role": "user", "content": "x" * 300}]},
        400,
        "context_length_exceeded",
        "messages",
        "256",
    ),
    ({"max_tokens": 250}, 400, "context_length_exceeded", "messages", "250 more"),
    ({"max_tokens": 10**400}, 400, "context_length_exceeded", "messages", "more are requested"),
    ({"max_tokens": 0}, 400, "invalid_value", "max_tokens", "0"),
    ({"max_tokens": "9"}, 400, "invalid_value", "max_tokens", "'9'"),
    ({"max_tokens": True}, 400, "invalid_value", "max_tokens", "True"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, 400, "invalid_value", "max_tokens", "differ"),
    ({"temperature": -1}, 400, "invalid_value", "temperature", "-1"),
    ({"temperature": 2.1}, 400, "invalid_value", "temperature", "2.1"),
    ({"temperature": math.nan}, 400, "invalid_value", "temperature", "nan"),
    ({"temperature": [1]}, 400, "invalid_value", "temperature", "[1]"),
    ({"top_p": 0}, 400, "invalid_value", "top_p", "above 0 and at most 1"),
    ({"top_p": 1.01}, 400, "invalid_value", "top_p", "1.01"),
    ({"top_k": 0}, 400, "invalid_value", "top_k", "0"),
    ({"seed": -1}, 400, "invalid_value", "seed", "-1"),
    ({"seed": 1.5}, 400, "invalid_value", "seed", "1.5"),
    ({"n": 0}, 400, "invalid_value", "n", "0"),
    ({"n": 11}, 400, "invalid_value", "n", "10"),
    ({"stop": [str(i) for i in range(65)]}, 400, "invalid_value", "stop", "at most 64"),
    ({"stop": ""}, 400, "invalid_value", "stop", "non-empty strings"),
    ({"stop": [1]}, 400, "invalid_value", "stop", "[1]"),
    ({"repetition_penalty": 0}, 400, "invalid_value", "repetition_penalty", "0.01"),
    ({"stop": 5}, 400, "invalid_value", "stop", "5"),
    ({"stream": "yes"}, 400, "invalid_value", "stream", "'yes'"),
    (
        {"stream_options": {"include_usage": True}},
        400,
        "invalid_value",
        "stream_options",
        "needs stream",
    ),
    (
        {"stream": True, "stream_options": {"usage": True}},
        400,
        "invalid_value",
        "stream_options",
        "include_usage",
    ),
    ({"logprobs": 1}, 400, "invalid_value", "logprobs", "true or false"),
    ({"top_logprobs": 3}, 400, "invalid_value", "top_logprobs", "needs logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, 400, "invalid_value", "top_logprobs", "0 to 20"),
    (
        {"logprobs": True, "top_logprobs": 1, "stream": True},
        400,
        "unsupported_value",
        "stream",
        "set stream to false",
    ),
    ({"echo": True}, 400, "unsupported_parameter", "echo", "not supported"),
    ({"presence_penalty": 2.5}, 400, "invalid_value", "presence_penalty", "-2 to 2"),
    ({"frequency_penalty": "x"}, 400, "invalid_value", "frequency_penalty", "-2 to 2"),
    ({"logit_bias": {"50": 101}}, 400, "invalid_value", "logit_bias", "-100 to 100"),
    ({"logit_bias": [50]}, 400, "invalid_value", "logit_bias", "not an object"),
    ({"tools": [{"type": "function"}]}, 400, "invalid_value", "tools[0].function", "define"),
    ({"functions": [{"name": "f"}]}, 400, "unsupported_parameter", "functions", "use tools"),
    ({"tool_choice": "required"}, 400, "invalid_value", "tool_choice", "needs tools"),
    (
        {"response_format": {"type": "yaml"}},
        400,
        "invalid_value",
        "response_format",
        "yaml",
    ),
    ({"prompt": "x"}, 400, "unsupported_parameter", "prompt", "not supported"),
    ({"temprature": 0}, 400, "unknown_parameter", "temprature", "did you mean 'temperature'"),
    ({"\ud800": 0}, 400, "unknown_parameter", "\ud800", "omit it"),
]


@pytest.mark.parametrize("fields, status, code, where, word", BAD)
def test_read_chat_error_names_the_parameter(fields, status, code, where, word):
    with pytest.raises(ApiError) as caught:
        chat(**fields)
    error = caught.value
    assert (error.status, error.code, error.where) == (status, code, where)
    body = error.body()["error"]
    assert word in body["message"] and body["type"] == "invalid_request_error"
    dumps(error.body())


@pytest.mark.parametrize(
    "fields, where, word",
    [
        ({"prompt": [1, "a"]}, "prompt", "neither"),
        ({"prompt": [464]}, "prompt", "vocab_size=464"),
        ({"prompt": [True]}, "prompt", "neither"),
        ({"prompt": {}}, "prompt", "neither"),
        ({"prompt": [[]]}, "prompt", "neither"),
        ({"prompt": ["a"] * 6, "n": 2}, "prompt", "12"),
        ({"prompt": "x" * 256}, "prompt", "256"),
        ({"prompt": "x" * 257, "echo": True, "max_tokens": 0}, "prompt", "257"),
        ({"echo": True, "max_tokens": 0, "n": 2}, "n", "max_tokens=0"),
        ({"echo": True, "stream": True}, "stream", "set stream to false"),
        ({"echo": "yes"}, "echo", "true or false"),
        ({"max_tokens": 0}, "max_tokens", "0"),
        ({"logprobs": 21}, "logprobs", "0 to 20"),
        ({"top_logprobs": 2}, "top_logprobs", "not supported"),
        ({"logprobs": True}, "logprobs", "True"),
        ({"best_of": 2}, "best_of", "not supported"),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"messages": MESSAGES}, "messages", "not supported"),
    ],
)
def test_read_completion_error_names_the_parameter(fields, where, word):
    with pytest.raises(ApiError, match="(?s)" + word) as caught:
        completion(**fields)
    assert caught.value.where == where and caught.value.status == 400


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"a": NaN}',
        b"\xff{}",
        b"[" * 100_000,
        b'{"a": ' + b"1" * 5000 + b"}",
        b"null",
    ],
)
def test_read_json_rejects_a_body_that_is_not_an_object(body):
    with pytest.raises(ApiError) as caught:
        read_json(body)
    assert caught.value.code == "invalid_json" and caught.value.status == 400


def test_errors_reach_the_openai_client():
    with running(FakeEngine(TOKENIZER), TOKENIZER, max_queued=6) as server:
        client = server.client()
        defaults = dict(model=MODEL, messages=MESSAGES)
        for fields, status, code, where, word in BAD:
            if (
                set(fields) & {"model"}
                and fields["model"] is None
                or fields.get("temperature") is math.nan
                or "\ud800" in fields
            ):
                continue  # the client itself cannot send these
            extra = {name: fields[name] for name in fields if name not in defaults}
            try:
                client.chat.completions.create(
                    **defaults | {name: fields[name] for name in fields if name in defaults},
                    extra_body=extra,
                )
                pytest.fail(f"{fields} was accepted")
            except openai.APIStatusError as caught:
                error = caught
            assert (error.status_code, error.code, error.param) == (status, code, where), fields
            assert word in error.message
        status, _, body = server.call("POST", "/v1/completions", b"{")
        assert status == 400 and "invalid_json" in body
        status, _, body = server.call("POST", "/v1/completions", b'{"model": "tiny", "\\ud800": 1}')
        assert status == 400 and "unknown_parameter" in body
        assert server.worker.in_flight == 0
        assert server.call("GET", "/health")[0] == 200
