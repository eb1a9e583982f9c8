"""Which letter a chat model chose: the cascades of the released scripts, and ours.

`mmlu_chat` and `ceval_chat` are protocol qwen: a choice's text is replaced by its letter, phrases
are looked for in order, and if no letter is found the choice whose text is most similar is taken,
so they never abstain and a random text scores 25%. The kinds that end in `_strict` have the same
phrases, abstain instead of guessing, and read `A` as a letter, not as the article.

`capitals` and `exam_answers` are the rules of AGIEval and of GAOKAO-Bench, which take letters as
they come.
"""

import re
from collections.abc import Mapping

from qwen_jax.errors import unknown_name
from qwen_jax.grading.fuzzy import similarity

LETTERS = "ABCD"
_NO_LETTER = "[^ABCD]"
MAX_CHARACTERS = 20_000  # of a response; chat answers have a few hundred


def _near(shortest: int, longest: int) -> str:
    """Characters that are no choice letter, as few as possible."""
    return f"{_NO_LETTER}{{{shortest},{longest}}}?"


def _not(*parts: str) -> str:
    return f"(?!{''.join(parts)})"


_LETTER = "(A|B|C|D)"
_NEGATION = "(?:n't|not)"
_RIGHT = "(?:correct|right)"
_STATES = (
    r"(?:[Aa]nswer|[Cc]hoice)" + _not(_near(0, 20), _NEGATION) + _near(0, 10) + r"\b(?:|is|:|be)"
)
ENGLISH = (
    ("answer is X", re.compile(rf"(?:[Cc]hoose|{_STATES}\b){_near(0, 20)}\b{_LETTER}\b")),
    (
        "X is correct",
        re.compile(
            rf"\b{_LETTER}\b{_not(_near(0, 8), _NEGATION, _near(0, 5), _RIGHT)}"
            rf"{_near(0, 10)}\b{_RIGHT}\b"
        ),
    ),
    ("leading letter", re.compile(rf"^{_LETTER}(?:\.|,|:|$)")),
    ("first letter", re.compile(rf"(?<![a-zA-Z]){_LETTER}(?![a-zA-Z=])")),
)

_CHINESE_NOT = "(?:不|非)"
_CHINESE_IS = "(?:是|选|为|：|:|】)"
_CHINESE_RIGHT = "(?:正确|对[的，。：]|符合)"
_CHINESE_STATES = (
    "(?:答案|选项)"
    + _not(_near(0, 10), _CHINESE_NOT, _near(0, 10), _CHINESE_IS)
    + _near(0, 10)
    + _CHINESE_IS
)
_CHINESE_END = r"(?:选项)?(?:[)。.，,．、ABCD：:）]|$)"
CHINESE = (
    (
        "答案是X",
        re.compile(
            rf"(?:(?:选|选择|选定)[：:]?\s*|{_CHINESE_STATES}{_near(0, 10)}){_LETTER}{_CHINESE_END}"
        ),
    ),
    (
        "X正确",
        re.compile(
            rf"{_LETTER}(?:选?项)?{_not(_near(0, 4), _CHINESE_NOT, _near(0, 4), _CHINESE_RIGHT)}"
            rf"{_near(0, 4)}{_CHINESE_RIGHT}"
        ),
    ),
    ("leading letter", re.compile(rf"^[(（]?{_LETTER}(?:[。)）.，,．：:]|$)")),
    ("first letter", re.compile(rf"(?<![a-zA-Z]){_LETTER}(?![a-zA-Z=])")),
)

# The article, as in "A common mistake", and "A 5-year plan"; a letter that stands alone is none.
_ARTICLE = re.compile(r"(?<![a-zA-Z])A(?=\s+[a-z0-9])")
_IS_SAID = re.compile(r"A\s+(?:is|was|are|and|or|because|since|as)\b")

EXAM_KINDS = ("single_choice", "multi_choice", "multi_question_choice", "five_out_of_seven")
_ANSWER_MARK = "【答案】"
_MARKED = re.compile(rf"{_ANSWER_MARK}[\s:：]*([A-Z])")

CASCADES = ("mmlu_chat", "mmlu_chat_strict", "ceval_chat", "ceval_chat_strict")


def choose(text: str, options: Mapping[str, str], kind: str) -> tuple[str | None, str]:
    """Returns the chosen letter, None if there is none, and the rule that fired.

    Args:
      text: the response.
      options: A, B, C and D -> the choice's text; for C-Eval, `question` -> the question's text.
      kind: one of `CASCADES`.
    """
    strict, chinese = kind.endswith("_strict"), kind.startswith("ceval")
    text = text[:MAX_CHARACTERS]
    texts = {letter: options[letter] for letter in LETTERS if letter in options}
    if chinese:
        question = options.get("question", "")
        replaced = _replaced_chinese(text, question, texts)
    else:
        replaced = _replaced(text, texts)
    if strict:
        replaced = _ARTICLE.sub(_without_article, replaced)
    for rule, pattern in CHINESE if chinese else ENGLISH:
        if (found := pattern.search(replaced)) is not None:
            return found[1], rule
    if strict or not texts:
        return None, "abstained"
    return max(texts, key=lambda letter: similarity(replaced, texts[letter])), "most similar"


def capitals(text: str, letters: str = "ABCDEF") -> list[str]:
    """Returns the capital letters of choices in a text, in order, also those inside of words."""
    return [one for one in text if one in letters]


def exam_answers(text: str, kind: str, count: int) -> list[str]:
    """Returns the letters that a response to a question of GAOKAO-Bench gives, by its rules.

    Args:
      kind: its type of question: single_choice (the last letter), multi_choice (all letters behind
        the mark 【答案】, else in the last ten characters; they are one answer),
        multi_question_choice (a letter behind each mark, else the first letters), or
        five_out_of_seven (the first letters, A to G).
      count: answers of the question.

    Raises:
      ConfigError: an unknown kind.
    """
    if kind == "single_choice":
        return capitals(text, LETTERS)[-1:]
    if kind == "multi_choice":
        _, mark, behind = "".join(text.split()).partition(_ANSWER_MARK)
        found = capitals(behind if mark else "".join(text.split())[-10:], LETTERS)
        return ["".join(sorted(set(found)))] if found else []
    if kind == "multi_question_choice":
        marked = _MARKED.findall(text)
        return marked if len(marked) == count else re.findall("[A-Z]", text)[:count]
    if kind == "five_out_of_seven":
        return capitals(text, "ABCDEFG")[:count]
    raise unknown_name("type of question", kind, EXAM_KINDS, "kind")


def _without_article(match: re.Match[str]) -> str:
    return "A" if _IS_SAID.match(match.string, match.start()) else "a"


def _longest_first(texts: Mapping[str, str]) -> list[tuple[str, str]]:
    return sorted(texts.items(), key=lambda item: len(item[1]), reverse=True)


def _replaced(text: str, texts: Mapping[str, str]) -> str:
    for letter, choice in _longest_first(texts):
        text = re.sub(re.escape(choice.rstrip(".")), letter, text, flags=re.IGNORECASE)
        text = text[: 4 * MAX_CHARACTERS]  # an empty choice doubles the text
    return text


def _replaced_chinese(text: str, question: str, texts: Mapping[str, str]) -> str:
    """Also takes the question's last sentence, up to the gap, as 答案是."""
    parts = question.rstrip("。").split("。")[-1].split("_")
    if len(parts[0].strip()) > 4:
        text = text.replace(parts[0], "答案是")
    if len(parts[-1].strip()) > 4:
        text = text.replace(parts[-1], "")
    for letter, choice in _longest_first(texts):
        text = text.replace(choice.rstrip("。"), letter)[: 4 * MAX_CHARACTERS]
    return text
