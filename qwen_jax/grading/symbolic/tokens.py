"""Tokens of an answer's text, and the words that have a meaning in it."""

import re
from typing import NamedTuple

from qwen_jax.grading.symbolic.repeating import REPEATING
from qwen_jax.grading.symbolic.tree import MAX_DIGITS, MAX_TOKENS, Unreadable

_TOKEN = re.compile(
    rf"""(?P<space>\s+)
    |(?P<repeating>{REPEATING})
    |(?P<number>\d+(?:\.\d+)?|\.\d+)
    |(?P<text>\\text\{{(?P<content>[^{{}}]*)\}})
    |(?P<row>\\\\)
    |(?P<environment>\\(?P<edge>begin|end)\{{(?P<name>[a-z]*)\}}(?:\{{[lcr|]*\}})?)
    |(?P<command>\\[A-Za-z]+)
    |(?P<escaped>\\[{{}}|\#_&])
    |(?P<letters>[A-Za-z]+|[α-ωΑ-Ω])
    |(?P<compared><=|>=|!=|==|[=<>])
    |(?P<raised>\*\*|\^)
    |(?P<sign>[-+*/(){{}}\[\]|,;:!'%&_])
    |(?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)

FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh exp ln log lg max min gcd lcm"
    " arg det".split()
)
_ALIASES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan"}
CONSTANTS = {"infty": "oo", "infinity": "oo", "inf": "oo", "oo": "oo"}
GREEK = frozenset(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi"
    " pi rho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi"
    " Psi Omega ell".split()
)
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
RELATIONS = {
    "=": "=", "==": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=", "le": "<=",
    "leq": "<=", "leqslant": "<=", "ge": ">=", "geq": ">=", "geqslant": ">=", "ne": "!=",
    "neq": "!=", "lt": "<", "gt": ">", "in": "in", "approx": "=", "equiv": "=",
}  # fmt: skip
JOINING = {"and": True, "or": True, "和": True, "或": True}


class Token(NamedTuple):
    """`kind` is a group of the pattern above; `spaced`: whitespace comes before it."""

    kind: str
    text: str
    spaced: bool


def tokens(text: str) -> list[Token]:
    """Returns the tokens.

    Raises:
      Unreadable: a character that no answer has, or too many tokens or digits.
    """
    found, spaced = [], False
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or "other"
        value = match[0]
        if kind == "text":
            value = match["content"].strip()
        elif kind == "environment":
            value = f"{match['edge']} {match['name']}"
        if kind == "space":
            spaced = True
            continue
        kind = "number" if kind == "repeating" else kind
        if kind == "other" or kind == "number" and len(value) > MAX_DIGITS:
            raise Unreadable(f"{value[:20]!r}")
        if kind == "command":
            value = value[1:]
        found.append(Token(kind, value, spaced))
        spaced = False
        if len(found) > MAX_TOKENS:
            raise Unreadable("too many tokens")
    return found


def function_name(word: str) -> str | None:
    """Returns the function that a word or command names, if it does."""
    word = _ALIASES.get(word, word)
    return word if word in FUNCTIONS else None


def is_mathematical(word: str) -> bool:
    """Whether the word is a function, a constant or a letter's name, also with a letter behind."""
    known = function_name(word) or function_name(word[:-1])
    return bool(known) or word in GREEK or word in CONSTANTS or word == "sqrt"
