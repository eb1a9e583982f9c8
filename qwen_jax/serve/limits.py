"""What clients of the server may hold: connections, time, bytes and completions.

A client is an IPv4 address, or the first 64 bits of an IPv6 address.
"""

import dataclasses
import ipaddress

from qwen_jax.config import option
from qwen_jax.errors import ConfigError
from qwen_jax.ranges import Checked, Range

_DAY, _COUNT = 86_400, Range(1, 1_000_000)
DEFAULT_CONNECTIONS = 512


@dataclasses.dataclass(frozen=True)
class ClientLimits(Checked, where="--limits.{}"):
    """Limits on clients. Times are in seconds."""

    max_connections: int | None = option(
        None,
        "maximum open connections; beyond it, the one that has waited longest for its request is "
        "closed, or the new one gets status 503. None: 512, or fewer if the limit on open files "
        "requires it",
        _COUNT,
    )
    max_client_connections: int | None = option(
        None,
        "the same for one client address, with status 429; None: a quarter of max_connections",
        _COUNT,
    )
    header_seconds: float = option(
        10.0,
        "time limit for receiving a request's headers",
        Range(0.001, _DAY),
    )
    max_header_kb: int = option(16, "maximum size of a request's headers in KiB", Range(1, 1024))
    body_seconds: float = option(
        30.0, "time limit for receiving a request's body", Range(0.001, _DAY)
    )
    idle_seconds: int = option(
        5,
        "time after which a connection without a further request is closed",
        Range(1, _DAY),
    )
    send_seconds: float = option(
        60.0,
        "time limit for a client to receive what was sent to it",
        Range(0.001, _DAY),
    )
    max_unread_tokens: int = option(
        8192,
        "tokens of a stream that may wait for a slow client; beyond it, the stream "
        "ends with an error",
        Range(256, 1_000_000),
    )
    max_choices: int | None = option(
        None,
        "maximum completions of one request: prompts times n; None: max_client_choices",
        _COUNT,
    )
    max_client_choices: int | None = option(
        None,
        "maximum completions that one client may have running or waiting; None: half of "
        "max_num_seqs + max_queued, at least max_num_seqs",
        _COUNT,
    )
    log_seconds: float = option(
        10.0,
        "a warning of the HTTP server is repeated at most once in this time",
        Range(0, _DAY),
    )

    def resolved(self, *, max_num_seqs: int, capacity: int, max_open_files: int) -> "ClientLimits":
        """Returns the limits with numbers instead of None.

        Args:
          max_num_seqs, capacity: completions that run, and that run or wait.
          max_open_files: connections that the limit on open files leaves.

        Raises:
          ConfigError: limits contradict each other, or more connections are wanted than files may
            be open.
        """
        connections = self.max_connections or min(DEFAULT_CONNECTIONS, max_open_files)
        if connections > max_open_files:
            raise ConfigError(
                f"max_connections={connections}, but the limit on open files leaves "
                f"{max_open_files}.",
                "--limits.max_connections",
                "lower it, or raise the limit (ulimit -n).",
            )
        per_client = self.max_client_choices or max(max_num_seqs, capacity // 2)
        if per_client > capacity:
            raise ConfigError(
                f"max_client_choices={per_client} is above the server's {capacity}.",
                "--limits.max_client_choices",
                "use at most max_num_seqs + max_queued.",
            )
        found = dataclasses.replace(
            self,
            max_connections=connections,
            max_client_connections=self.max_client_connections or -(-connections // 4),
            max_client_choices=per_client,
            max_choices=self.max_choices or per_client,
        )
        _check_within(found, "max_client_connections", "max_connections")
        _check_within(found, "max_choices", "max_client_choices")
        return found


def _check_within(limits: ClientLimits, small: str, large: str) -> None:
    inner, outer = getattr(limits, small), getattr(limits, large)
    if inner is not None and outer is not None and inner > outer:
        raise ConfigError(
            f"{small}={inner} is above {large}={outer}.",
            f"--limits.{small}",
            f"lower it, or raise --limits.{large}.",
        )


def client_of(host: str | None) -> str:
    """Returns the client of a peer's address; "" if the address is unknown.

    A network of 64 bits is what one IPv6 client has at least, so it counts as one.
    """
    try:
        address = ipaddress.ip_address((host or "").partition("%")[0])
    except ValueError:
        return host or ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)).network_address)
    return str(address)
