"""Where the server listens, and the key that callers have to bring."""

import pathlib
import socket

from qwen_jax.errors import ConfigError

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


def is_local(host: str) -> bool:
    """Whether only this computer reaches the host."""
    return host in LOCAL_NAMES


def bind(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 is any free one.

    Raises:
      ConfigError: the port is taken, or the host is not this computer's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except (OSError, OverflowError) as error:
        sock.close()
        raise ConfigError(
            f"cannot listen on {host}, port {port}: {error}.",
            "--host, --port",
            "choose another port; 0 takes any free one.",
        ) from error
    return sock


def url(host: str, sock: socket.socket) -> str:
    """The base URL for clients of OpenAI's API."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{sock.getsockname()[1]}/v1"


def read_key(given: str | None) -> str | None:
    """The key itself, from the flag or the @FILE that it names.

    Raises:
      ConfigError: no such file, or an empty key.
    """
    if given is None:
        return None
    key = given
    if given.startswith("@"):
        try:
            key = pathlib.Path(given[1:]).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(
                f"the key cannot be read: {error}.", "--api_key", "name a file that holds it."
            ) from error
    if not key:
        raise ConfigError("the key is empty.", "--api_key", "leave the flag out for no key.")
    return key
