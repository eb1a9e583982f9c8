"""A completion from a server: the request of an example, and its answer."""

from collections.abc import Sequence
from typing import Any

from qwen_jax.evaluate.generation import Completion
from qwen_jax.evaluate.server.client import Client, Refused
from qwen_jax.evaluate.task import Task
from qwen_jax.grading.code import cut

_MAX_STOPS = 4  # OpenAI's limit; the text is cut at all of them afterwards


def complete(
    client: Client, task: Task, prompt: str, messages: Sequence[tuple[str, str]]
) -> tuple[Completion, int | None]:
    """Returns a greedy completion, and the number of tokens of its prompt (None: not known).

    Args:
      prompt: of a base task.
      messages: of a chat task.

    Raises:
      Refused: the server does not accept the request, or its answer has no completion.
      ServerError: it does not answer.
    """
    assert task.generation is not None
    settings = task.generation
    body: dict[str, Any] = {"max_tokens": settings.max_new_tokens, "temperature": 0}
    if settings.stops:
        body["stop"] = list(settings.stops[:_MAX_STOPS])
    if task.chat:
        turns = [{"role": role, "content": content} for role, content in messages]
        path, body = "chat/completions", body | {"messages": turns}
    else:
        path, body = "completions", body | {"prompt": prompt}
    answer = client.post(path, body)
    try:
        (choice,) = answer["choices"]
        text = choice["message"]["content"] if task.chat else choice["text"]
        finish = choice["finish_reason"]
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(
            f"the answer has no completion: {str(answer)[:200]}.",
            f"{client.base}/{path}",
            "check that --server is the URL of an OpenAI-compatible server.",
        ) from error
    kept, stop = cut(text or "", settings.stops)
    usage = answer.get("usage") or {}
    finish = "stop" if stop is not None else str(finish)
    return Completion(kept, finish, usage.get("completion_tokens")), usage.get("prompt_tokens")
