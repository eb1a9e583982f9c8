"""Requests to an OpenAI-compatible server, which may be slow, busy, or die.

Failures that may pass (no connection, a timeout, status 408, 409, 425, 429 and 5xx) are tried
again, with pauses that double. Every other answer that is not a success is final.
"""

import dataclasses
import http.client
import json
import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, NamedTuple

from qwen_jax.errors import ConfigError, QwenJaxError, unknown_name
from qwen_jax.utils import json_text

ATTEMPTS = 7
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds; a minute in all, so a server may restart
TIMEOUT = 300.0  # seconds without a byte
_MAX_BYTES = 64 << 20  # of a response
_PASSING = frozenset({408, 409, 425, 429})


class ServerError(QwenJaxError):
    """A server that does not answer, or not as an OpenAI-compatible server does."""


class Refused(ServerError):
    """A request that the server does not accept."""


class Flags(NamedTuple):
    """The flags that set a server, for errors."""

    url: str = "--server"
    model: str = "--server_model"
    key_variable: str = "--server_key_variable"


@dataclasses.dataclass(frozen=True)
class Server:
    """A server to evaluate, to compare, or to judge.

    Args:
      url: such as http://127.0.0.1:8000; /v1 is added if it has no path.
      model: its name there; "": the only one that the server lists.
      key_variable: environment variable with the API key, if there is one.
      concurrency: requests at once.
      tokenizer: its folder or file. Prompts of choices are then sent as ids, and exact
        where tokens merge across the end of a prompt; None: they are sent as text.
      flags: what errors name.
    """

    url: str
    model: str = ""
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 8
    tokenizer: str | None = None
    flags: Flags = Flags()


class Client:
    """Sends requests to a server. Any number of threads may share it.

    Raises:
      ConfigError: the URL is not one of a server, or the model's name is not known.
      ServerError: the server does not answer.
    """

    def __init__(self, server: Server):
        self.flags = server.flags
        self.base = _base(server.url, server.flags)
        self._key = os.environ.get(server.key_variable, "")
        local = urllib.parse.urlsplit(self.base).hostname in ("localhost", "127.0.0.1", "::1")
        proxies = [urllib.request.ProxyHandler({})] if local else []
        self._opener = urllib.request.build_opener(_NoRedirect, *proxies)
        self._closed = threading.Event()
        self.model = self._model(server.model)

    @property
    def check_url(self) -> str:
        """What to do about an answer that is not one of OpenAI's API."""
        return f"check that {self.flags.url} is the URL of an OpenAI-compatible server."

    def close(self) -> None:
        """Ends the pauses of requests that are tried again."""
        self._closed.set()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Returns the answer to a request, a JSON object.

        Args:
          path: behind /v1, such as "completions".
          body: the request; `model` is added.

        Raises:
          Refused: the server does not accept the request.
          ServerError: it did not answer in any attempt.
        """
        return self._call(path, {"model": self.model, **body})

    def _model(self, name: str) -> str:
        try:
            found = self._call("models", None)
        except Refused as error:
            if name:  # a server need not list its models
                return name
            raise ConfigError(
                f"the server does not list its models: {error.what}",
                self.flags.model,
                "set the model's name.",
            ) from error
        data = found.get("data")
        entries = [one for one in data if isinstance(one, dict)] if isinstance(data, list) else []
        models = [one["id"] for one in entries if isinstance(one.get("id"), str) and one["id"]]
        if name and models and name not in models:
            raise unknown_name("model of the server", name, models, self.flags.model)
        if not name and len(models) != 1:
            raise ConfigError(
                f"the server has {len(models)} models: {', '.join(models[:20])}.",
                self.flags.model,
                "set the name of one.",
            )
        return name or models[0]

    def _call(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        pause, last = FIRST_PAUSE, ""
        for attempt in range(ATTEMPTS):
            if attempt and self._closed.wait(pause):
                break
            try:
                return self._once(path, body)
            except urllib.error.HTTPError as error:
                message = f"status {error.code}: {_message(error)}"
                if error.code not in _PASSING and error.code < 500:
                    where, fix = f"{self.base}/{path}", _fix(error.code, self.flags)
                    raise Refused(message, where, fix) from error
                pause = max(_retry_after(error), pause if attempt == 0 else 2 * pause)
                last = message
            except (OSError, http.client.HTTPException) as error:
                pause, last = pause if attempt == 0 else 2 * pause, str(error) or repr(error)
            pause = min(pause, LONGEST_PAUSE)
        raise ServerError(
            f"the server did not answer in {ATTEMPTS} attempts: {last}.",
            f"{self.base}/{path}",
            "start it again, then run the same command again to resume.",
        )

    def _once(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(f"{self.base}/{path}", data, headers)
        with self._opener.open(request, timeout=TIMEOUT) as response:
            raw = response.read(_MAX_BYTES + 1)
        try:
            found = json_text.parse(raw, finite=False) if len(raw) <= _MAX_BYTES else None
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise Refused(
                f"the answer is not a JSON object: {raw[:200]!r}.",
                f"{self.base}/{path}",
                self.check_url,
            )
        return found


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would send the key to another server."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        return None


def _base(url: str, flags: Flags) -> str:
    parts = urllib.parse.urlsplit(url)
    try:
        parts.port  # noqa: B018  (raises if it is not a number)
    except ValueError:
        parts = urllib.parse.urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            "not the URL of a server.", f"{flags.url}={url}", "as in http://127.0.0.1:8000."
        )
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigError(
            "the URL has credentials or a query, which the results would show.",
            f"{flags.url}={parts.scheme}://{parts.hostname}",
            f"put the key into an environment variable, and name it in {flags.key_variable}.",
        )
    base = url.rstrip("/")
    for path in ("/chat/completions", "/completions"):
        base = base.removesuffix(path)
    return base if urllib.parse.urlsplit(base).path else f"{base}/v1"


def _message(error: urllib.error.HTTPError) -> str:
    """What the body of an error says."""
    try:
        raw = error.read(1 << 16)
    except (OSError, http.client.HTTPException):
        return error.reason
    try:
        found = json.loads(raw)
        found = found.get("error", found)
        text = found.get("message", found) if isinstance(found, dict) else found
    except (ValueError, AttributeError):
        text = raw.decode("utf-8", "replace")
    return " ".join(str(text).split())[:500] or error.reason


def _retry_after(error: urllib.error.HTTPError) -> float:
    try:
        seconds = float(error.headers.get("Retry-After", "0"))
    except ValueError:  # a date
        return 0.0
    return seconds if seconds > 0 else 0.0  # not NaN either


def _fix(code: int, flags: Flags) -> str:
    if code in (401, 403):
        return f"put the key into the environment variable that {flags.key_variable} names."
    if 300 <= code < 400:
        return "use the URL that the server redirects to."
    if code == 404:
        return f"check the URL in {flags.url} and the name in {flags.model}."
    return "change the request, or the server's settings, as its message says."
