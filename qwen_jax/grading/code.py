"""Code tasks as text: where a completion ends, what a chat answer's code is, and pass@k.

Running the programs is not done here.
"""

import math
import re
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from qwen_jax.errors import ConfigError

# HumanEval. With qwen's stops, 37 of the 164 canonical solutions are cut inside: they have a blank
# line or a nested function. The others cut none.
QWEN_STOPS = ("<|endoftext|>", "\n\n\n", "\n\n", "def ")
CODEX_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")  # also lm_eval's
BIGCODE_STOPS = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```", "<file_sep>")
MBPP_STOPS = ("[DONE]",)
# If a model forgets [DONE], its next example starts with one of these.
MBPP_MORE_STOPS = (*MBPP_STOPS, "\n[BEGIN]", "\nYou are an expert")


class Cut(NamedTuple):
    """A completion up to its first stop string, and that string; None if it has none."""

    text: str
    stop: str | None


def cut(text: str, stops: Sequence[str]) -> Cut:
    """Returns the completion up to the stop string that comes first."""
    found = [(place, stop) for stop in stops if stop and (place := text.find(stop)) >= 0]
    if not found:
        return Cut(text, None)
    place, stop = min(found, key=lambda item: item[0])
    return Cut(text[:place], stop)


def cut_completion(text: str, stops: Sequence[str]) -> str:
    """Returns the completion up to the stop string that comes first, without it."""
    return cut(text, stops).text


# Completions of languages with braces end where the function's brace closes.
_TOKENS = r"//[^\n]*|/\*.*?(?:\*/|\Z)|\"(?:\\.|[^\"\\\n])*\"|`[^`]*`|'(?:\\.|[^'\\\n])%s'|[{}]"
# 'a' is a character, and in Rust 'a without an end a lifetime; in JavaScript 'a//b' is a string.
_BRACE_TOKENS = re.compile(_TOKENS % "", re.DOTALL)
_QUOTED_TOKENS = re.compile(_TOKENS % "*", re.DOTALL)


def cut_at_brace(text: str, open_braces: int = 1, *, quoted: bool = False) -> str:
    """Returns the completion of a body up to the brace that closes what the prompt left open.

    Args:
      open_braces: how many the prompt left open: 1, and 2 for Java, whose method is in a class.
      quoted: whether single quotes enclose strings, as in JavaScript.

    Braces in strings and comments do not count. Without a closing brace the text is returned whole.
    """
    depth = open_braces
    for match in (_QUOTED_TOKENS if quoted else _BRACE_TOKENS).finditer(text):
        if match[0] in ("{", "}"):
            depth += 1 if match[0] == "{" else -1
            if depth == 0:
                return text[: match.end()]
    return text


# Chat answers


def qwen_chat_body(text: str, entry_point: str) -> str:
    """Protocol qwen: the function's body in a chat answer, to be put behind the prompt.

    Looked for in order: a fenced block that defines the entry point, from its definition to the end
    of the block; its definition, up to the first line that is not indented; any definition; and
    else the whole answer, indented. Helper functions and imports are lost, as in the script.
    """
    named = re.compile(rf"def\s+{re.escape(entry_point)}")
    fence = text.find("```")
    if fence >= 0 and (found := named.search(text, fence + 3)) is not None:
        colon = text.find(":\n", found.end())
        end = text.find("\n```", colon + 2) if colon >= 0 else -1
        if end >= 0:
            return text[colon + 2 : end]
    for pattern in (named, re.compile("def")):
        if (found := pattern.search(text)) is not None:
            colon = text.find(":\n", found.end())
            if colon >= 0:
                return _indented(text[colon + 2 :])
    return textwrap.indent(text, " " * 4)


def _indented(text: str) -> str:
    """The lines up to the first one that is not indented; blank lines before it are left out."""
    for newlines in re.finditer(r"\n+", text):
        after = text[newlines.end() : newlines.end() + 2]
        if after != "  " and not after.startswith("\t"):
            return text[: newlines.start()]
    return text


_FENCE = re.compile(r"^[ \t]*```[^\n`]*$", re.MULTILINE)


def fenced_blocks(text: str) -> list[str]:
    """Returns the contents of the fenced blocks; the last one may be open."""
    marks = list(_FENCE.finditer(text))
    blocks = []
    for number in range(0, len(marks), 2):
        end = marks[number + 1].start() if number + 1 < len(marks) else len(text)
        blocks.append(text[marks[number].end() + 1 : end])
    return blocks


def chat_code(text: str, entry_point: str = "") -> str:
    """Ours: all the code of a chat answer, with its imports and helpers.

    The first fenced block that names the entry point, else the longest one, else the whole answer.
    """
    blocks = fenced_blocks(text)
    if not blocks:
        return text
    named = [block for block in blocks if entry_point and entry_point in block]
    return named[0] if named else max(blocks, key=len)


# pass@k


def pass_at_k(n: int, c: int, k: int) -> float:
    """Returns the unbiased estimate of pass@k, 1 - C(n - c, k) / C(n, k). Report: 4, Table 10.

    Args:
      n: samples of a problem.
      c: those that pass.
      k: samples that one may try.

    Raises:
      ConfigError: k is larger than n, so that nothing can be estimated, or a count is impossible.
    """
    if not 0 <= c <= n:
        raise ConfigError(f"{c} of {n} samples pass.", "pass_at_k", "give 0 <= c <= n.")
    if not 1 <= k <= n:
        raise ConfigError(
            f"pass@{k} cannot be estimated from {n} samples a problem.",
            "pass_at_k",
            f"generate at least {max(k, 1)} samples a problem, or ask for k from 1 to {n}.",
        )
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)
