"""Incremental detokenization: complete characters only, and no part of a stop string."""

import codecs
from collections.abc import Sequence

from qwen_jax.tokenizer.bpe import Tokenizer


def token_bytes(tokenizer: Tokenizer) -> dict[int, bytes]:
    """Returns the bytes of every id; the bytes of a special token are its name."""
    table = {rank: token for token, rank in tokenizer.mergeable_ranks.items()}
    return table | {i: name.encode() for name, i in tokenizer.special_tokens.items()}


class TextStream:
    """The text of one completion as its tokens arrive.

    A character or a stop string may span several tokens. Text that may be the start of one is held
    back. Invalid UTF-8 becomes U+FFFD.

    Example:
      >>> stream = TextStream(table, ["END"])  # doctest: +SKIP
      >>> stream.add(token_of_hello), stream.add(token_of_e)  # doctest: +SKIP
      ('hello', '')
    """

    def __init__(self, table: dict[int, bytes], stop_strings: Sequence[str] = ()):
        self._table, self._stops = table, tuple(stop_strings)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False  # a stop string was found; no more text is returned

    def add(self, token: int) -> str:
        """Returns the text that this token completes; an id without bytes becomes U+FFFD."""
        return self._release(
            self._decoder.decode(self._table.get(token, "\ufffd".encode())), final=False
        )

    def finish(self) -> str:
        """Returns the held-back text; call this at the end of the completion."""
        return self._release(self._decoder.decode(b"", final=True), final=True)

    def _release(self, new: str, *, final: bool) -> str:
        if self.stopped:
            return ""
        self._held += new
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        keep = 0 if final else max(map(self._partial_stop, self._stops), default=0)
        text, self._held = (
            self._held[: len(self._held) - keep],
            self._held[len(self._held) - keep :],
        )
        return text

    def _partial_stop(self, stop: str) -> int:
        """Returns the length of the longest prefix of `stop` that the held text ends with."""
        return next(
            (
                n
                for n in range(min(len(stop) - 1, len(self._held)), 0, -1)
                if self._held.endswith(stop[:n])
            ),
            0,
        )
