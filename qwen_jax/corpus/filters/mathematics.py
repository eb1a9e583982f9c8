"""Finds the formulas in a text, which rules about words must not count. Report: 2.1.

A formula is TeX between its delimiters, or a run of numbers and operators with an equation, such as
`48 / 2 = 24`. A list of numbers, as in a table of prices, is not a formula.
"""

import re

_INLINE = re.compile(r"\$\$[^$]{1,2000}\$\$|\$[^$\n]{1,300}\$")
_ENVIRONMENTS = ("align", "equation", "gather", "array", "matrix", "pmatrix", "bmatrix", "cases")
_DISPLAYED = (
    ("\\[", "\\]"),
    ("\\(", "\\)"),
    *((f"\\begin{{{name}", f"\\end{{{name}") for name in _ENVIRONMENTS),
)
_MAX_CHARACTERS = 4000  # of a formula; longer ones are unclosed
_TEX_SIGN = re.compile(r"[\\^_=<>+]|^\$-?\w{1,3}\$$")  # unlike "$5 and $"
_LETTER = re.compile(r"[^\W\d_]{2,}")  # a letter is a variable, two are a word
_EQUATION = re.compile(r"[\d)\]}a-zA-Z]\W*=\W*[\da-zA-Z([{]|[≤≥≠≈⇒→]")
_NUMBER = re.compile(r"\d")


def without_formulas(text: str) -> tuple[str, float]:
    """Returns the text without its formulas, and the fraction of its characters that they are."""
    size = len("".join(text.split()))
    if "$" in text:
        text = _INLINE.sub(lambda found: " " if _TEX_SIGN.search(found[0]) else found[0], text)
    if "\\" in text:
        for opening, closing in _DISPLAYED:
            text = _without(text, opening, closing)
    if "=" in text or _EQUATION.search(text):
        text = "\n".join(_without_equations(line) for line in text.split("\n"))
    return text, 1 - len("".join(text.split())) / max(size, 1)


def _without(text: str, opening: str, closing: str) -> str:
    """Removes what stands between two delimiters. Unlike a regular expression, it is linear."""
    parts, position, last, end = [], 0, 0, -1
    while (begin := text.find(opening, position)) >= 0:
        position = begin + len(opening)
        if end < position and (end := text.find(closing, position)) < 0:
            break
        if end - begin <= _MAX_CHARACTERS:
            parts.append(text[last:begin])
            position = last = end + len(closing)
    return " ".join([*parts, text[last:]])


def _without_equations(line: str) -> str:
    kept, run = [], []
    for word in [*line.split(), None]:
        if word is not None and not _LETTER.search(word):
            run.append(word)
            continue
        joined = " ".join(run)
        if not (_EQUATION.search(joined) and _NUMBER.search(joined)):
            kept += run
        elif joined.endswith((".", "!", "?", "。")):
            kept.append(joined[-1])  # the sentence ends here
        run = []
        kept += [] if word is None else [word]
    return " ".join(kept)
