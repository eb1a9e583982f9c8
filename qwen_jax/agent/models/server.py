"""The model of an agent behind an OpenAI-compatible server, such as vLLM's or ours."""

import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qwen_jax.agent.events import Reply
from qwen_jax.agent.models.protocol import Messages, Replying
from qwen_jax.errors import QwenJaxError
from qwen_jax.tokenizer.dialects.calls import Parsed, ToolCall
from qwen_jax.tokenizer.dialects.hermes import HERMES

_TIMEOUT = 300.0  # seconds without a byte
_MAX_LINE = 1 << 20
_UNKNOWN_ROOM = 1 << 30  # the server knows its context


class ModelServerError(QwenJaxError):
    """A server that does not answer, or not as OpenAI's API does."""


class ServerModel:
    """A model that a server runs: the server renders prompts and reads calls.

    Args:
      url: such as http://127.0.0.1:8000; /v1 is added if it has no path.
      model: its name there.
      key_variable: environment variable with the API key, if there is one.
      settings: further fields of every request, such as {"temperature": 0}.
    """

    dialect = HERMES  # of definitions; the server knows the model's own
    feedback_role = "user"  # a message of the role "tool" must answer a call

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_variable: str = "OPENAI_API_KEY",
        settings: Mapping[str, Any] | None = None,
    ):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ModelServerError(
                f"{url!r} is not the URL of a server.", "url", "use one such as http://HOST:8000."
            )
        self._url = url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")
        self._model, self._settings = model, dict(settings or {})
        self._headers = {"Content-Type": "application/json"}
        if key := os.environ.get(key_variable):
            self._headers["Authorization"] = f"Bearer {key}"
        local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        proxies = [urllib.request.ProxyHandler({})] if local else []
        self._opener = urllib.request.build_opener(_NoRedirect, *proxies)

    def room(self, messages: Messages, tools: Messages) -> int:
        """Returns a large number: only the server knows its context."""
        return _UNKNOWN_ROOM

    def reply(self, messages: Messages, tools: Messages, *, max_tokens: int, turn: int) -> Replying:
        """Streams a reply; see Model. With a seed in `settings`, reply i has the seed plus i.

        Raises:
          ModelServerError: the server refuses the request, or its answer is not a stream.
        """
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [_with_text_arguments(message) for message in messages],
            "max_tokens": max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._settings,
        }
        if tools:
            body["tools"] = list(tools)
        if isinstance(body.get("seed"), int):
            body["seed"] += turn
        content, calls, finish, usage = [], {}, None, {}
        for chunk in self._chunks(body):
            usage = chunk.get("usage") or usage
            for choice in chunk.get("choices") or ():
                delta = choice.get("delta") or {}
                finish = choice.get("finish_reason") or finish
                _add_calls(calls, delta.get("tool_calls") or ())
                if text := delta.get("content"):
                    content.append(text)
                    yield text
        if finish is None:
            raise ModelServerError(
                "the stream ended before the reply did.", self._url, "read the server's log."
            )
        made = tuple(
            ToolCall(call["name"], call["arguments"] or "{}", call["id"])
            for _, call in sorted(calls.items())
        )
        text = "".join(content)
        return Reply(
            HERMES.write(text, made),
            Parsed(text, made),
            None,
            int(usage.get("completion_tokens") or 0) or len(content),
            "length" if finish == "length" else "stop",
            int(usage.get("prompt_tokens") or 0),
        )

    def _chunks(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yields the objects of a stream of server-sent events."""
        request = urllib.request.Request(
            f"{self._url}/chat/completions", json.dumps(body).encode(), self._headers
        )
        try:
            with self._opener.open(request, timeout=_TIMEOUT) as response:
                while line := response.readline(_MAX_LINE):
                    if not line.startswith(b"data:"):
                        continue
                    data = line[5:].strip()
                    if data == b"[DONE]":
                        return
                    chunk = json.loads(data)
                    if error := chunk.get("error"):
                        raise self._error(f"the server failed: {str(error)[:500]}.")
                    yield chunk
        except ModelServerError:
            raise
        except urllib.error.HTTPError as error:
            with error:
                answer = error.read(2000).decode(errors="replace")
            raise self._error(f"the server refuses the request: {error.code} {answer}.") from None
        except (OSError, http.client.HTTPException) as error:
            raise self._error(f"the server does not answer: {error}.") from None
        except (ValueError, AttributeError):
            raise self._error("the answer is not a stream of OpenAI's API.") from None

    def _error(self, what: str) -> ModelServerError:
        return ModelServerError(
            what, self._url, "check the URL and the model's name, and that the model takes tools."
        )


def _add_calls(calls: dict[int, dict[str, Any]], deltas: Sequence[Mapping[str, Any]]) -> None:
    for position, delta in enumerate(deltas):
        index = delta.get("index", position)
        call = calls.setdefault(index, {"id": None, "name": "", "arguments": ""})
        function = delta.get("function") or {}
        call["id"] = delta.get("id") or call["id"]
        call["name"] += function.get("name") or ""
        call["arguments"] += function.get("arguments") or ""


def _with_text_arguments(message: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a message whose calls have their arguments as text, as the API wants them."""
    found = {key: value for key, value in message.items() if key != "reasoning_content"}
    calls = []
    for call in message.get("tool_calls") or ():
        function = dict(call["function"])
        if not isinstance(function["arguments"], str):
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
        calls.append({**call, "function": function})
    return found | ({"tool_calls": calls} if calls else {})


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect could take the key to another host."""

    def redirect_request(self, *_):
        return None
