"""Text of an answer as people, LaTeX and Chinese keyboards write it -> one plain LaTeX spelling.

Nothing is evaluated here. Every pattern runs in linear time, and callers bound the length first.
"""

import re
import unicodedata

from qwen_jax.grading.symbolic import repeating, units

MAX_CHARACTERS = 2000  # of an answer that is parsed; the longest gold answer of MATH has 190

_SUPERSCRIPT = re.compile("[⁰¹²³⁴-⁹⁺⁻ⁿ]+")
_SUBSCRIPT = re.compile("[₀-₉]+")
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_SYMBOLS = str.maketrans(
    {
        "√": r"\sqrt ",
        "π": r"\pi ",
        "∞": r"\infty ",
        "∪": r"\cup ",
        "∩": r"\cap ",
        "∈": r"\in ",
        "±": r"\pm ",
        "≤": r"\le ",
        "≥": r"\ge ",
        "≠": r"\ne ",
        "≈": r"\approx ",
        "×": r"\cdot ",
        "·": r"\cdot ",
        "⋅": r"\cdot ",
        "∙": r"\cdot ",
        "÷": "/",
        "⁄": "/",
        "−": "-",
        "–": "-",
        "—": "-",
        "°": r"^\circ ",
        "θ": r"\theta ",
        "、": ",",
        "。": ".",
        "€": "",
        "£": "",
        "¥": "",
        "\t": " ",
        "\n": " ",
        "\r": " ",
    }
)
# Commands that only change how the formula looks.
_LOOKS = re.compile(
    r"\\(?:left|right|bigl|bigr|Bigl|Bigr|big|Big|bigg|Bigg|displaystyle|textstyle|limits"
    r"|nolimits|phantom\{\})(?![A-Za-z])"
)
_SPACES = re.compile(r"\\q?quad|\\(?:enspace|thinspace)(?![A-Za-z])|(?<!\\)\\[,;: ]|~")
_FRACTION = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_UPRIGHT = re.compile(r"\\(?:mathrm|mathit|mathbf|operatorname|mathsf)\s*\{([^{}]*)\}")
_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|mbox|hbox|textnormal|emph)(?![A-Za-z])\s*(?=\{)"
)
_NUMBER_IN_TEXT = re.compile(r"\\text\s*\{(\s*-?\s*[\d.][^{}]*)\}")  # \text{5 cm}
_POWER_OF_TEN = re.compile(r"(?<![\w.])(\d+(?:\.\d*)?)[eE]([+-]?\d{1,4})(?![\w.^{])")  # 1.5e-3
_ESCAPED_COMMAND = re.compile(r"\\\\(?=[A-Za-z])")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_GROUPS_OF_THREE = re.compile(r"-?\d{1,3}(?: \d{3})+(?:\.\d+)?")
_TEX_COMMA = re.compile(r"(?<=\d) ?(?:,\\! ?|\{, ?\} ?|\\!,)(?=\d{3})")


def plain(text: str) -> str:
    """Returns the answer without wrapping, in one spelling of characters and LaTeX commands.

    Example:
      >>> plain(r"$\\boxed{10{,}080}$。")
      '10080'
    """
    text = _SUPERSCRIPT.sub(lambda run: "^{" + unicodedata.normalize("NFKC", run[0]) + "}", text)
    text = _SUBSCRIPT.sub(lambda run: "_{" + unicodedata.normalize("NFKC", run[0]) + "}", text)
    text = _VULGAR.sub(_spelled_fraction, text)
    text = unicodedata.normalize("NFKC", text).translate(_SYMBOLS)
    text = _unwrapped(repeating.spelled(text))
    if "\\begin" not in text:  # there, two backslashes end a row
        text = _ESCAPED_COMMAND.sub(r"\\", text)
    text = _LOOKS.sub(" ", text)
    text = _FRACTION.sub(r"\\frac", text)
    text = _UPRIGHT.sub(r" \1", text)
    text = _NUMBER_IN_TEXT.sub(r" \1 ", _TEXT.sub(r"\\text", text))
    text = units.marked(text)
    text = _POWER_OF_TEN.sub(r"\1 \\cdot 10^{\2}", text)
    text = _TEX_COMMA.sub("", text).replace(r"\!", "")
    text = text.replace(r"\%", "%").replace(r"\$", "").replace("$", " ")
    text = _SPACES.sub(" ", text)
    text = _joined_thousands(text.strip().rstrip("\\ "))  # 5\ ends with a space
    if _GROUPS_OF_THREE.fullmatch(text):
        text = text.replace(" ", "")
    return text


def _spelled_fraction(match: re.Match[str]) -> str:
    over, _, under = unicodedata.normalize("NFKC", match[0]).partition("⁄")
    return rf" \frac{{{over}}}{{{under}}}"


def boxed(text: str) -> list[tuple[int, int]]:
    r"""Returns where the contents of every complete outermost \boxed{...} and \fbox{...} lie."""
    found, end = [], 0
    for match in re.finditer(r"\\(?:boxed|fbox)\s*", text):
        start = match.end()
        if match.start() < end or start >= len(text):
            continue
        if text[start] != "{":
            if text[start].isalnum():  # \boxed 5
                found.append((start, start + 1))
            continue
        close = closing_brace(text, start)
        if close is None:
            break  # every later one would be inside this one
        found.append((start + 1, close))
        end = close
    return found


def closing_brace(text: str, start: int) -> int | None:
    """Returns the index of the brace that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        if match[0] in "{}":
            depth += 1 if match[0] == "{" else -1
            if depth == 0:
                return match.start()
    return None


def _unwrapped(text: str) -> str:
    r"""Returns the text inside \boxed{}, $ $, \( \), \[ \] and ** **, without a final period."""
    for _ in range(4):  # a wrapping inside a wrapping
        before = text
        text = text.strip().rstrip(".") if not text.rstrip().endswith(r"\.") else text.strip()
        for first, last in ((r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("$$", "$$"), ("$", "$")):
            inner = text[len(first) : len(text) - len(last)]
            if text.startswith(first) and text.endswith(last) and first not in inner:
                text = inner
        boxes = boxed(text)
        if boxes:
            text = joined_boxes(text, boxes)
        if text == before:
            break
    return text.replace(r"\(", " ").replace(r"\)", " ").replace(r"\[", " ").replace(r"\]", " ")


def joined_boxes(text: str, boxes: list[tuple[int, int]]) -> str:
    """Returns what the last box holds; boxes that words join to it are parts of one answer."""
    parts = [text[slice(*boxes[-1])]]
    for before, after in zip(boxes[-2::-1], boxes[:0:-1], strict=True):
        gap = text[before[1] + 1 : after[0]]
        if len(gap) > 60 or len(parts) > 40:
            break
        if not _JOIN.fullmatch(_BETWEEN.sub("", gap)):
            break
        parts.append(text[slice(*before)])
    return r" \text{ and } ".join(reversed(parts))


_BETWEEN = re.compile(r"\\(?:q?quad|text|mbox|boxed|fbox|[()\[\], ])|[\s${}]")
_JOIN = re.compile(r",?(?:and|or|,|;|和|或|、)(?:[A-Za-z]\w*=)?")


def _joined_thousands(text: str) -> str:
    """Returns the text with 1,234 as 1234, but not in (1,234), which is a pair."""
    if "," not in text:
        return text
    spaced = re.search(r",\s", text) is not None
    parts, end = [], 0
    for match in _THOUSANDS.finditer(text):
        depth = sum(text.count(c, 0, match.start()) for c in "([{") - sum(
            text.count(c, 0, match.start()) for c in ")]}"
        )
        join = depth <= 0 or spaced
        parts += [text[end : match.start()], match[0].replace(",", "") if join else match[0]]
        end = match.end()
    return "".join(parts) + text[end:]


def words(text: str) -> str:
    r"""Returns the words of an answer such as \text{(C)} or Evelyn: letters only, in lower case.

    The result is empty if the text has digits or signs with a meaning.
    """
    text = re.sub(r"\\text|\\!|\\", " ", text)
    text = re.sub(r"[\s{}()$.,;:!?\"'*]+", " ", text).strip().lower()
    return text if text and all(c.isalpha() or c in " -" for c in text) else ""
