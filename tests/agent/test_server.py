"""The model behind an OpenAI-compatible server: streams, calls in parts, errors."""

import contextlib
import http.server
import json
import threading

import pytest

from qwen_jax.agent.events import Answer, Call, Observation, Reply, Stopped
from qwen_jax.agent.function import tool
from qwen_jax.agent.loop import Budgets, run
from qwen_jax.agent.models.server import ModelServerError, ServerModel


@tool
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


def chunk(delta, finish=None, **more):
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


def call_delta(index, **function):
    return {"tool_calls": [{"index": index, "function": function}]}


CALLS = [
    chunk({"role": "assistant", "content": "I "}),
    chunk({"content": "add."}),
    chunk({"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "add", "arguments": ""}}]}),
    chunk(call_delta(0, arguments='{"a": 1,')),
    chunk(call_delta(0, arguments=' "b": 2}')),
    chunk(
        {"tool_calls": [{"index": 1, "id": "c2", "function": {"name": "add", "arguments": "[]"}}]}
    ),
    chunk({}, "tool_calls"),
    {"choices": [], "usage": {"completion_tokens": 20, "prompt_tokens": 9}},
]
ANSWER = [chunk({"content": "3"}), chunk({}, "stop")]


@contextlib.contextmanager
def serving(*streams, status=200, raw=None):
    """Serves one stream after the other; yields the URL and the requests."""
    requests, left = [], list(streams)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((self.path, dict(self.headers), body))
            self.send_response(status)
            self.end_headers()
            if raw is not None:
                self.wfile.write(raw)
                return
            for each in left.pop(0):
                self.wfile.write(b": comment\n\ndata: " + json.dumps(each).encode() + b"\n\n")
            self.wfile.write(b"data: [DONE]\n\n")

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(url, budgets=Budgets(max_tokens=100), **options):  # noqa: B008
    messages = [{"role": "user", "content": "1 + 2?"}]
    model = ServerModel(url, "m", **options)
    return list(run(model, (add,), messages, budgets)), messages


def test_server_model_runs_streamed_calls(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with serving(CALLS, ANSWER) as (url, requests):
        events, messages = ask(url, settings={"temperature": 0, "seed": 5})
    calls = [event for event in events if isinstance(event, Call)]
    assert calls == [Call("c1", "add", '{"a": 1, "b": 2}'), Call("c2", "add", "[]")]
    observed = [event for event in events if isinstance(event, Observation)]
    assert observed[0].text == "3" and "not a JSON object" in observed[1].text
    assert events[-1] == Answer("3")
    assert next(e for e in events if isinstance(e, Reply)).count == 20
    (path, headers, first), (_, _, second) = requests
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert first["max_tokens"] == 100 and second["max_tokens"] == 80
    assert (first["seed"], second["seed"]) == (5, 6) and first["temperature"] == 0
    assert first["tools"][0]["function"]["name"] == "add"
    # OpenAI's API: arguments are text, and a result names its call.
    sent = second["messages"]
    assert [m["role"] for m in sent] == ["user", "assistant", "tool", "tool"]
    assert sent[1]["content"] == "I add."
    assert [c["function"]["arguments"] for c in sent[1]["tool_calls"]] == [
        *('{"a": 1, "b": 2}', "[]"),
    ]
    assert [m["tool_call_id"] for m in sent[2:]] == ["c1", "c2"]


def test_server_model_stops_at_the_budget():
    with serving([chunk({"content": "long"}), chunk({}, "length")]) as (url, _):
        events, _ = ask(url)
    assert isinstance(events[-1], Stopped) and events[-1].reason == "tokens"


@pytest.mark.parametrize(
    "options, says",
    [
        ({"status": 400, "raw": b'{"error": "no tools here"}'}, "400 .*no tools here"),
        ({"status": 302, "raw": b""}, "302"),
        ({"raw": b"<html>"}, "ended before"),
        ({"raw": b"data: <html>\n\n"}, "not a stream"),
        ({"raw": b"data: []\n\n"}, "not a stream"),
        ({"raw": b'data: {"error": {"message": "out of memory"}}\n\n'}, "out of memory"),
        ({"raw": b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'}, "ended before"),
    ],
)
def test_server_model_reports_errors(options, says):
    with serving(**options) as (url, _), pytest.raises(ModelServerError, match=says):
        ask(url)


def test_server_model_reports_a_dead_server_and_a_wrong_url():
    with pytest.raises(ModelServerError, match="does not answer"):
        ask("http://127.0.0.1:1")
    with pytest.raises(ModelServerError, match="not the URL"):
        ServerModel("host:80", "m")
