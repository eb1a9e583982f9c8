"""Parts of an answer as OpenAI's streams have them."""

import secrets
from typing import Any

from qwen_jax.tokenizer.dialects.stream import Piece


def call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


class DeltaWriter:
    """Writes parts of an answer as the deltas of OpenAI's streams."""

    def __init__(self):
        self.calls = 0  # that have started

    def delta(self, piece: Piece) -> dict[str, Any]:
        """Returns the delta of a chunk."""
        if piece.kind == "content":
            return {"content": piece.text}
        if piece.kind == "reasoning":
            return {"reasoning_content": piece.text}
        if piece.kind == "name":
            self.calls += 1
            function = {"name": piece.text, "arguments": ""}
            return {
                "tool_calls": [
                    {
                        "index": self.calls - 1,
                        "id": call_id(),
                        "type": "function",
                        "function": function,
                    }
                ]
            }
        return {"tool_calls": [{"index": self.calls - 1, "function": {"arguments": piece.text}}]}
