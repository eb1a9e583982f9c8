"""The text form in which lm-eval's minerva_math compares answers, as of version 0.4.13.

Words, units and LaTeX for spacing are removed, and shorthand is written out. The rules are those of
Lewkowycz et al. 2022, appendix D, with lm-eval's corrections.
"""

import re

_REPLACED = (
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    (r"\$", ""),
    (r"\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (r",\text{and}", ","),
    (r"\text{and}", ","),
    (r"\text{m}", r"\text{}"),
)
_WORDS = """square ways integers dollars mph inches ft hours km units sue points feet minutes digits
cents degrees cm gm pounds meters meals edges students childrentickets multiples""".split()
_REMOVED = (
    *(r"\ldots", r"\text{s}", r"\text{.}", "\\text{\ns}", r"\text{}^2", r"\text{}^3"),
    *("\\text{\n}", r"\text{}", r"\mathrm{th}", r"^\circ", r"^{\circ}", r"\;", r",\!", "{,}"),
    *('"', r"\dots"),
)
_REWRITTEN = tuple(
    (re.compile(pattern), form)
    for pattern, form in (
        (r"(.*?)(\$)(.*?)(\$)(.*)", r"$\3$"),  # only what is in dollar signs
        (r"\\text\{(.*?)\}", r"\1"),
        (r"\\textbf\{(.*?)\}", r"\1"),
        (r"\\overline\{(.*?)\}", r"\1"),
        (r"\\boxed\{(.*)\}", r"\1"),
        (r"frac([^{])(.)", r"frac{\1}{\2}"),
        (r"(sqrt\[[^\]]*\])(\w)", r"\1{\2}"),
        (r"sqrt(?!\[)([^{])", r"sqrt{\1}"),
    )
)
_WORD = re.compile(rf"(?<!\\)\b(?:{'|'.join(_WORDS)})\b")
_COMMAND = re.compile(r"(\\[a-zA-Z]+)")


def normalize(answer: str) -> str:
    """Returns an answer in the form that is compared.

    Example:
      >>> normalize("x = \\\\frac12 \\\\text{ cm}"), normalize("1,000 dollars")
      ('\\\\frac{1}{2}', '1000')
    """
    answer = _WORD.sub("", answer.split("=")[-1])
    for before, after in _REPLACED:
        answer = answer.replace(before, after)
    answer = "".join(
        part if part.startswith("\\") else _without_words(part) for part in _COMMAND.split(answer)
    )
    for text in _REMOVED:
        answer = answer.replace(text, "")
    for pattern, form in _REWRITTEN:
        answer = pattern.sub(form, answer)
    answer = answer.replace("$", "")
    return answer.replace(",", "") if re.fullmatch(r"-?\d{1,3}(,\d{3})+", answer) else answer


def _without_words(text: str) -> str:
    """Removes words that stand next to others without a space."""
    for word in _WORDS:
        text = text.replace(word, "")
    return text
