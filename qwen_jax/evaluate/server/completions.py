"""A completion from a server: the request of an example, and its answer."""

from collections.abc import Mapping, Sequence
from typing import Any

from qwen_jax.evaluate.generation import Completion
from qwen_jax.evaluate.samples.sampling import Sampling
from qwen_jax.evaluate.server.client import Client, Refused
from qwen_jax.evaluate.task import Example, Task
from qwen_jax.grading.code import cut

_MAX_STOPS = 4  # OpenAI's limit; the text is cut at all of them afterwards


def complete(
    client: Client,
    task: Task,
    prompt: str,
    messages: Sequence[tuple[str, str]],
    sampling: Mapping[str, Any],
    begun: str = "",
) -> tuple[Completion, int | None]:
    """Returns a completion, and the number of tokens of its prompt (None: not known).

    Args:
      prompt: of a base task.
      messages: of a chat task.
      sampling: of `sampling_of`.
      begun: beginning of the assistant's turn, which the server is to continue, as vLLM does.

    Raises:
      Refused: the server does not accept the request, or its answer has no completion.
      ServerError: it does not answer.
    """
    assert task.generation is not None
    settings = task.generation
    body: dict[str, Any] = {"max_tokens": settings.max_new_tokens, **sampling}
    if settings.stops:
        body["stop"] = list(settings.stops[:_MAX_STOPS])
    if task.chat:
        turns = [{"role": role, "content": content} for role, content in messages]
        if begun:
            turns.append({"role": "assistant", "content": begun})
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        path, body = "chat/completions", body | {"messages": turns}
    else:
        path, body = "completions", body | {"prompt": prompt}
    text, finish, usage = request(client, path, body)
    kept, stop = cut(text, settings.stops)
    finish = "stop" if stop is not None else finish
    made, read = (_count(usage.get(f"{name}_tokens")) for name in ("completion", "prompt"))
    return Completion(kept, finish, made), read


def _count(value: Any) -> int | None:
    """A number of tokens, which not every server knows."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def sampling_of(sampling: Sampling, task: Task, example: Example) -> dict[str, Any]:
    """Returns OpenAI's sampling parameters of one completion, and variables of a chat template."""
    variables = sampling.variables if task.chat else {}
    found: dict[str, Any] = {"chat_template_kwargs": variables} if variables else {}
    if sampling.is_greedy:
        return {"temperature": 0, **found}
    seed = sampling.seed_of(task.key, example.question, example.sample or 0)
    return {**sampling.settings, "seed": seed, **found}


def request(client: Client, path: str, body: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Returns (text, finish reason, usage) of the only choice of a completion.

    Args:
      path: "completions" or "chat/completions".

    Raises:
      Refused: the server does not accept the request, or its answer has no completion.
      ServerError: it does not answer.
    """
    answer = client.post(path, body)
    try:
        (choice,) = answer["choices"]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        finish = choice["finish_reason"]
        if not isinstance(text, str | None):
            raise ValueError("the text is not a string")
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(
            f"the answer has no completion: {str(answer)[:200]}.",
            f"{client.base}/{path}",
            client.check_url,
        ) from error
    usage = answer.get("usage")
    return text or "", str(finish), usage if isinstance(usage, dict) else {}
