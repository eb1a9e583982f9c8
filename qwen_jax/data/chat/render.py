"""Renders messages and tools as the text of ChatML turns. Report: 3.1.1, 3.4.

Calls are written as in the ReAct samples that Qwen-1 is trained on:

    Thought: Let me look.
    Action: weather
    Action Input: {"city": "Oslo"}

Their results are turns of the role "tool". Another dialect of calls is another `render`.
"""

from collections.abc import Sequence

from qwen_jax.data.chat.messages import Message
from qwen_jax.tokenizer.dialects import react

Turn = tuple[str, str]  # role and content


def render(messages: Sequence[Message], tools: str = "") -> list[Turn]:
    """Returns one turn per message, after a system turn if there are only tools.

    Args:
      messages: a system message, if any, is the first.
      tools: the descriptions of the tools, usually JSON; they end the system turn. "": no tools.
    """
    turns = [(message.role, react.write(message.text, message.calls)) for message in messages]
    if not tools:
        return turns
    has_system = bool(turns) and turns[0][0] == "system"
    system = turns.pop(0)[1] if has_system else ""
    return [("system", f"{system}\n\nTools:\n{tools}".strip()), *turns]
