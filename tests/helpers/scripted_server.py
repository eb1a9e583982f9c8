"""An OpenAI-compatible server whose responses are a function of the messages."""

import contextlib
from collections.abc import Callable, Iterator

from tests.helpers.fake_openai import serving


class Scripted:
    """A running server.

    Attributes:
      url: address for clients.
      fail_after: number of requests after which each gets status 503; None: never.
      requests: the requests, in order.
    """

    def __init__(self):
        self.url = ""
        self.requests: list[dict] = []
        self.fail_after: int | None = None


@contextlib.contextmanager
def scripted(respond: Callable[[list[dict]], str], models=("scripted",)) -> Iterator[Scripted]:
    """Serves /v1/models and /v1/chat/completions within the block.

    respond: messages -> the text of the response.
    """
    running = Scripted()

    def answer(path: str, body: dict):
        running.requests.append(body)
        if running.fail_after is not None and len(running.requests) > running.fail_after:
            return 503, {"error": "overloaded"}
        message = {"role": "assistant", "content": respond(body["messages"])}
        return 200, {"choices": [{"message": message, "finish_reason": "stop"}]}

    with serving(answer, models=models) as fake:
        running.url = fake.url
        yield running
