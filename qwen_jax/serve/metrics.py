"""What /metrics shows, in Prometheus' text format."""

from collections.abc import Mapping

from qwen_jax.serve.worker import Worker


def render(worker: Worker, statuses: Mapping[int, int]) -> str:
    """One line a number, two of explanation before it.

    Args:
      statuses: HTTP status -> responses.
    """
    counters = worker.counters
    running = min(worker.in_flight, worker.rows)
    lines = []

    def show(name: str, kind: str, meaning: str, values: Mapping[str, float]) -> None:
        lines.extend([f"# HELP qwen_jax_{name} {meaning}", f"# TYPE qwen_jax_{name} {kind}"])
        lines.extend(f"qwen_jax_{name}{label} {value}" for label, value in values.items())

    show("up", "gauge", "1 while the engine takes calls.", {"": int(worker.failure is None)})
    show("rows", "gauge", "Answers that can be computed at once.", {"": worker.rows})
    show("rows_running", "gauge", "Answers that are being computed.", {"": running})
    show("queue", "gauge", "Answers that wait for a row.", {"": worker.in_flight - running})
    show(
        "prompt_tokens_total",
        "counter",
        "Tokens of accepted prompts.",
        {"": counters.prompt_tokens},
    )
    show("generated_tokens_total", "counter", "New tokens.", {"": counters.generated_tokens})
    show(
        "answers_total",
        "counter",
        "Answers by how they ended.",
        {'{end="finished"}': counters.finished, '{end="cancelled"}': counters.cancelled},
    )
    show("refused_total", "counter", "Calls for which there was no room.", {"": counters.refused})
    show(
        "first_token_seconds",
        "summary",
        "From a call's submission to its first token.",
        {"_sum": round(counters.first_token_seconds, 6), "_count": counters.first_tokens},
    )
    show(
        "responses_total",
        "counter",
        "Responses by HTTP status.",
        {f'{{status="{status}"}}': count for status, count in sorted(statuses.items())},
    )
    return "\n".join(lines) + "\n"
