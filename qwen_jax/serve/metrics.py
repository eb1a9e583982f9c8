"""The /metrics page, in Prometheus text format."""

import dataclasses
from collections.abc import Mapping, Sequence

from qwen_jax.serve.connections import Connections
from qwen_jax.serve.worker import Counters, Worker


def render(
    workers: Sequence[Worker], statuses: Mapping[int, int], connections: Connections | None = None
) -> str:
    """Returns the page: HELP and TYPE lines, then the values of each metric.

    Args:
      workers: those of the loaded models; the values are sums over them.
      statuses: HTTP status -> number of responses.
      connections: the open connections; None: unknown.
    """
    counters = _sum([worker.counters for worker in workers])
    running = sum(min(worker.in_flight, worker.max_num_seqs) for worker in workers)
    up = all(worker.failure is None for worker in workers)
    max_num_seqs = sum(worker.max_num_seqs for worker in workers)
    lines = []

    def show(name: str, kind: str, description: str, values: Mapping[str, float]) -> None:
        lines.extend([f"# HELP qwen_jax_{name} {description}", f"# TYPE qwen_jax_{name} {kind}"])
        lines.extend(f"qwen_jax_{name}{label} {value}" for label, value in values.items())

    show("up", "gauge", "1 while the engine accepts requests.", {"": int(up)})
    show("max_num_seqs", "gauge", "Completions that can run at once.", {"": max_num_seqs})
    show("completions_running", "gauge", "Running completions.", {"": running})
    waiting = sum(worker.in_flight for worker in workers) - running
    show("completions_waiting", "gauge", "Completions waiting for a decode slot.", {"": waiting})
    show(
        "prompt_tokens_total",
        "counter",
        "Prompt tokens of accepted requests.",
        {"": counters.prompt_tokens},
    )
    show("generated_tokens_total", "counter", "Generated tokens.", {"": counters.generated_tokens})
    show("scored_total", "counter", "Scored prompts and completions.", {"": counters.scored})
    show(
        "completions_total",
        "counter",
        "Completions by outcome.",
        {'{end="finished"}': counters.finished, '{end="cancelled"}': counters.cancelled},
    )
    show("refused_total", "counter", "Requests rejected by a full queue.", {"": counters.refused})
    show(
        "unread_total", "counter", "Streams ended because of a slow client.", {"": counters.unread}
    )
    show(
        "first_token_seconds",
        "summary",
        "Time from submitting a request to its first token.",
        {"_sum": round(counters.first_token_seconds, 6), "_count": counters.first_tokens},
    )
    show(
        "responses_total",
        "counter",
        "Responses by HTTP status.",
        {f'{{status="{status}"}}': count for status, count in sorted(statuses.items())},
    )
    if connections is not None:
        show("connections", "gauge", "Open connections.", {"": len(connections)})
        show(
            "connections_ended_total",
            "counter",
            "Connections ended by a limit.",
            {
                f'{{reason="{reason}"}}': connections.outcomes[reason]
                for reason in ("refused", "replaced", "timeout")
            },
        )
    return "\n".join(lines) + "\n"


def _sum(counters: Sequence[Counters]) -> Counters:
    names = [field.name for field in dataclasses.fields(Counters)]
    return Counters(**{name: sum(getattr(one, name) for one in counters) for name in names})
