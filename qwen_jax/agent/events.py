"""What happens in a turn of an agent, in the order in which it happens."""

import dataclasses

from qwen_jax.tokenizer.dialects.calls import Parsed


@dataclasses.dataclass(frozen=True)
class Delta:
    """Text of a reply as it is sampled; the deltas of a reply add up to its content.

    kind: "thought", "call", "answer", or "text": in the Hermes dialect it is not known yet whether
    text is a thought or the answer.
    """

    kind: str
    text: str


@dataclasses.dataclass(frozen=True)
class Reply:
    """One full reply of the model.

    Fields:
      content: as it was sampled, without stop strings and end tokens.
      parsed: its text and calls.
      tokens: the sampled ids; None: a server that does not return them.
      count: number of sampled tokens.
      finish: "stop", "length", or "cancelled" (by the user or a budget of time).
      prompt_tokens: length of the prompt; 0: not known.
    """

    content: str
    parsed: Parsed
    tokens: tuple[int, ...] | None
    count: int
    finish: str
    prompt_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Thought:
    """What the model wrote before its calls or its answer."""

    text: str


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a tool, before it runs. `arguments` is as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclasses.dataclass(frozen=True)
class Observation:
    """The result of a call, as the model reads it.

    Fields:
      call_id: of the call; "": the reply had a call that could not be read.
      is_error: whether the call failed or was refused.
      files: paths of files that the call wrote.
      left_out: characters in the middle of the result that the model does not see.
      ran: whether the tool ran; false: the call was refused.
    """

    call_id: str
    name: str
    text: str
    is_error: bool = False
    files: tuple[str, ...] = ()
    left_out: int = 0
    ran: bool = False


@dataclasses.dataclass(frozen=True)
class Shortened:
    """Old observations were replaced by a note, so that the prompt fits the context."""

    observations: int
    characters: int


@dataclasses.dataclass(frozen=True)
class Answer:
    """The final answer; the turn has ended."""

    text: str


@dataclasses.dataclass(frozen=True)
class Stopped:
    """The turn has ended without an answer.

    reason: "turns", "tokens", "seconds", "context", "repeats" or "cancelled"; `detail` says it in a
    sentence and names the limit.
    """

    reason: str
    detail: str


Event = Delta | Reply | Thought | Call | Observation | Shortened | Answer | Stopped
