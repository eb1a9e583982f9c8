"""What an agent needs of a model; the engine, a server and scripts of tests provide it."""

from collections.abc import Generator, Mapping, Sequence
from typing import Any, Protocol

from qwen_jax.agent.events import Reply
from qwen_jax.tokenizer.dialects.calls import Dialect

Messages = Sequence[Mapping[str, Any]]
Replying = Generator[str, None, Reply]  # yields text as it is sampled; returns the reply


class Model(Protocol):
    """Whatever continues a conversation with tools.

    Attributes:
      dialect: how the model writes calls.
      feedback_role: role of the message that says that a call could not be read.
    """

    dialect: Dialect
    feedback_role: str

    def room(self, messages: Messages, tools: Messages) -> int:
        """Returns how many tokens fit after the prompt; may be negative."""
        ...

    def reply(self, messages: Messages, tools: Messages, *, max_tokens: int, turn: int) -> Replying:
        """Samples a reply. Closing the generator stops the sampling.

        Args:
          messages, tools: as in OpenAI's API.
          max_tokens: maximum number of sampled tokens.
          turn: number of replies before this one, which selects the random numbers.
        """
        ...
