"""A client of servers with OpenAI's chat completions: ours, vLLM, or a hosted one."""

import dataclasses
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from qwen_jax.data.chat.render import Turn
from qwen_jax.errors import ConfigError, QwenJaxError

_MAX_BYTES = 64 << 20  # of a response
_RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)  # states that another attempt may cure


@dataclasses.dataclass(frozen=True)
class Server:
    """A model behind an OpenAI-compatible server.

    Attributes:
      url: address of the API, such as "http://localhost:8000/v1".
      model: the model's name; empty: the server's only one.
      flag: the flag that names the server, for errors.
      timeout: seconds to wait for a response.
      attempts: requests before giving up, with growing pauses between them.
    """

    url: str
    model: str = ""
    flag: str = "--judge_server"
    timeout: float = 600
    attempts: int = 5

    def only_model(self) -> str:
        """Returns `model`, or the name of the server's only model.

        Raises:
          ConfigError: the server has several models, or none.
          QwenJaxError: the server does not answer.
        """
        if self.model:
            return self.model
        rows = self._call("GET", "/models", None).get("data")
        names = [str(row.get("id")) for row in rows] if isinstance(rows, list) else []
        if len(names) != 1:
            raise ConfigError(
                f"{self.url} has {len(names)} models: {', '.join(names[:20])}.",
                self.flag,
                "name one of them.",
            )
        return names[0]

    def complete(self, turns: Sequence[Turn], settings: Mapping[str, Any]) -> tuple[str, str]:
        """Returns (text, finish reason) of the response to a conversation.

        Args:
          settings: OpenAI's sampling parameters, such as max_tokens; `model` is required.

        Raises:
          QwenJaxError: the server refuses the request, or does not answer after all attempts.
        """
        messages = [{"role": role, "content": text} for role, text in turns]
        body = self._call("POST", "/chat/completions", {"messages": messages, **settings})
        try:
            choice = body["choices"][0]
            text = choice["message"]["content"] or ""
            return str(text), str(choice.get("finish_reason") or "")
        except (KeyError, IndexError, TypeError) as error:
            raise QwenJaxError(
                f"the response is no chat completion: {json.dumps(body)[:200]}.",
                self.url,
                "check that the address is that of an OpenAI-compatible API (it ends in /v1).",
            ) from error

    def _call(self, method: str, path: str, body: Any) -> dict[str, Any]:
        reason = ""
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(min(0.5 * 2 ** (attempt - 1), 30))
            try:
                return self._once(method, path, body)
            except urllib.error.HTTPError as error:
                with error:
                    detail = error.read(2000).decode("utf-8", "replace").strip()
                reason = f"HTTP status {error.code}: {detail[:300]}"
                if error.code not in _RETRIED:
                    break
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = str(error) or type(error).__name__
        raise QwenJaxError(
            f"{self.url}{path} failed: {reason}.",
            f"{self.flag}={self.url}",
            "check the address and that the server runs; then run the same command again, which "
            "resumes. A key is read from the environment variable OPENAI_API_KEY.",
        )

    def _once(self, method: str, path: str, body: Any) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url.rstrip("/") + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            raw = response.read(_MAX_BYTES + 1)
        if len(raw) > _MAX_BYTES:
            raise ValueError(f"a response of more than {_MAX_BYTES:,} bytes")
        found = json.loads(raw)
        if not isinstance(found, dict):
            raise ValueError("the response is not a JSON object")
        return found


def is_url(text: str) -> bool:
    """Whether a setting names a server, not a folder or file."""
    return text.startswith(("http://", "https://"))


def server_of(text: str, flag: str) -> Server:
    """Returns the server of URL or URL#MODEL.

    Args:
      flag: the flag with the text, for errors.
    """
    url, _, model = text.partition("#")
    return Server(url, model, flag)
