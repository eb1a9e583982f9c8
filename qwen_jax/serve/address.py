"""The server's address and API key."""

import os
import pathlib
import socket

from qwen_jax.errors import ConfigError

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


def is_local(host: str) -> bool:
    """Returns whether the host is reachable only from this computer."""
    return host in LOCAL_NAMES


def bind(host: str, port: int) -> socket.socket:
    """Returns a bound socket; port 0 selects any free port.

    Raises:
      ConfigError: the port is in use, or the host is not an address of this computer.
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
            "check the host, or choose another port; 0 selects any free port.",
        ) from error
    return sock


def url(host: str, sock: socket.socket) -> str:
    """Returns the base URL for OpenAI clients."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{sock.getsockname()[1]}/v1"


def read_key(given: str | None) -> str | None:
    """Returns the API key, given as text or as @FILE.

    Raises:
      ConfigError: the file is unreadable, or the key is empty.
    """
    if given is None:
        return None
    key = given
    if given.startswith("@"):
        try:
            path = pathlib.Path(os.path.expanduser(given[1:]))  # no shell does it behind an @
            key = path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(
                f"cannot read the key: {error}.", "--api_key", "pass @FILE with a readable file."
            ) from error
    if not key:
        raise ConfigError("the key is empty.", "--api_key", "omit the flag to serve without a key.")
    return key
