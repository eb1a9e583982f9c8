"""Text with its tokens marked, for a terminal or a file.

In color, the backgrounds of tokens alternate, and special tokens are white on red. Without, a line
│ separates tokens, and special tokens are in ⟦ ⟧. A newline is shown as ⏎ as well. Bytes that are
not a character by themselves and control characters are shown as \\xNN.
"""

import unicodedata
from collections.abc import Sequence

from qwen_jax.inference.stream import token_bytes
from qwen_jax.tokenizer.bpe import Tokenizer

_BACKGROUNDS = ("\x1b[30;48;5;153m", "\x1b[30;48;5;223m")  # black on light blue, on light orange
_SPECIAL, _END = "\x1b[1;97;41m", "\x1b[0m"
_BETWEEN, _NEWLINE = "│", "⏎"


class Marker:
    """Shows tokens of one tokenizer.

    Args:
      color: whether to use colors of a terminal.
    """

    def __init__(self, tokenizer: Tokenizer, *, color: bool):
        self._bytes, self._color = token_bytes(tokenizer), color
        self._special = frozenset(tokenizer.special_tokens.values())

    def show(self, tokens: Sequence[int], *, first: int = 0) -> str:
        """Returns the text of tokens with their boundaries.

        Args:
          first: position of the first of them in the prompt; colors go by position.
        """
        if not self._color:
            return _BETWEEN.join(map(self._plain, tokens))
        return "".join(self._colored(token, first + at) for at, token in enumerate(tokens))

    def last_line(self, tokens: Sequence[int]) -> Sequence[int]:
        """Returns the tokens behind the last one that has a newline."""
        at = len(tokens)
        while at and b"\n" not in self._bytes.get(tokens[at - 1], b""):
            at -= 1
        return tokens[at:]

    def _text(self, token: int) -> str:
        raw = self._bytes.get(token, b"\xef\xbf\xbd")  # U+FFFD: an id without a token
        return shown(raw.decode("utf-8", "backslashreplace"))

    def _plain(self, token: int) -> str:
        text = self._text(token)
        return f"⟦{text}⟧" if token in self._special else text

    def _colored(self, token: int, at: int) -> str:
        on = _SPECIAL if token in self._special else _BACKGROUNDS[at % 2]
        # A color that goes on after a newline would fill the next line.
        text = on + self._text(token).replace("\n", f"{_END}\n{on}") + _END
        return text.removesuffix(on + _END)


def shown(text: str) -> str:
    """Returns text in which newlines and control characters can be seen."""
    return "".join(
        f"{_NEWLINE}\n"
        if one == "\n"
        else one.encode("unicode_escape").decode()
        if unicodedata.category(one)[0] == "C"
        else one
        for one in text
    )
