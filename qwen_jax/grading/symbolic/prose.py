"""Whether tokens are a sentence that states an answer, not an answer: `I get -5 there`.

The grammar would read the letters of a short word as factors: g e t - 5.
"""

from qwen_jax.grading.symbolic.tokens import JOINING, SCALES, Token, is_mathematical
from qwen_jax.grading.symbolic.units import BETWEEN, UNITS

# Words of two letters; other pairs of letters are products, as in `ab - 5`.
_SHORT = frozenset("an as at be by do go he if is it my no of on so to up us we".split())
_LETTERS = frozenset({"I", "a", "A"})  # I get; a total
_VOWELS = frozenset("aeiou")


def is_sentence(found: list[Token]) -> bool:
    """Whether two words stand side by side, or a word next to a number that it does not count."""
    for place, token in enumerate(found[:-1]):
        after, last = found[place + 1], found[min(place + 2, len(found) - 1)]
        if (_is_word(token) or token.text in _LETTERS) and _is_word(after) and after.spaced:
            return True
        if _says(token) and (_is_factor(after) and after.spaced or _is_signed(after, last)):
            return True
        if token.kind == "number" and after.spaced and _says(after) and len(after.text) < 4:
            return True  # 5 is, 5 now; 5 apples is an answer
    return False


def _is_word(token: Token) -> bool:
    return (
        token.kind == "letters"
        and len(token.text) > 1
        and token.text.lower() not in UNITS
        and token.text not in JOINING
        and token.text not in SCALES
        and token.text not in BETWEEN
        and not is_mathematical(token.text)
    )


def _says(token: Token) -> bool:
    """Whether the token is a word next to which a number is no factor."""
    word = token.text.lower()
    if len(word) == 2:
        return token.kind == "letters" and word in _SHORT
    return len(word) > 2 and _is_word(token) and not _VOWELS.isdisjoint(word)


def _is_value(token: Token) -> bool:
    return token.kind == "number" or token.kind == "command" and token.text in ("frac", "sqrt")


def _is_factor(token: Token) -> bool:
    return _is_value(token) or token.kind == "letters" and len(token.text) == 1


def _is_signed(sign: Token, value: Token) -> bool:
    """Whether the sign is the value's own, as it is written: ` -5`, not ` - 5`."""
    return (
        sign.kind == "sign"
        and sign.text in ("-", "+")
        and sign.spaced
        and _is_value(value)
        and not value.spaced
    )
