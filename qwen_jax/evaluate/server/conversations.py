"""Answers of a server to many conversations."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from qwen_jax.data.chat.render import Turn
from qwen_jax.evaluate.server.client import Client, Refused, Server
from qwen_jax.evaluate.server.completions import request
from qwen_jax.evaluate.server.threads import completed


class Conversation(NamedTuple):
    """What a server answers.

    Attributes:
      name: names it in errors.
      settings: OpenAI's sampling parameters, such as max_tokens.
    """

    name: str
    turns: Sequence[Turn]
    settings: Mapping[str, Any]


def answers(
    server: Server, conversations: Sequence[Conversation]
) -> Iterator[tuple[int, str, str]]:
    """Yields (index, text, finish reason) of each answer, as they arrive.

    Nothing is sent without conversations, so a server whose answers are known need not run.

    Raises:
      ConfigError: the URL is not one of a server, or the model's name is not known.
      Refused: the server does not accept a request; names the conversation.
      ServerError: it does not answer.
    """
    if not conversations:
        return
    with contextlib.closing(Client(server)) as client:

        def answer(one: Conversation) -> tuple[str, str]:
            messages = [{"role": role, "content": text} for role, text in one.turns]
            try:
                text, finish, _ = request(
                    client, "chat/completions", {"messages": messages, **one.settings}
                )
            except Refused as error:
                raise Refused(error.what, f"{one.name}, {error.where}", error.fix) from error
            return text, finish

        for index, found in completed(answer, conversations, threads=server.concurrency):
            yield index, *found
