"""Word problems from templates, as GSM8K and Math23K have them, in English and Chinese.

A story has numbers that the question needs, and at the harder levels one that it does not.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from qwen_jax.synthetic.worlds.problem import Problem, check_level
from qwen_jax.synthetic.worlds.sums import wrong_result

LEVELS = ("one step", "one step, distractor", "two steps", "two steps, distractor")
_NAMES = {
    "en": ("Anna", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Henry", "Iris", "Jack"),
    "zh": ("小明", "小红", "小刚", "小丽", "小华", "小军", "小芳", "小强", "小燕", "小龙"),
}
_THINGS = {
    "en": ("apples", "books", "pens", "stamps", "coins", "shells", "cards", "eggs"),
    "zh": ("苹果", "书", "笔", "邮票", "硬币", "贝壳", "卡片", "鸡蛋"),
}
_DISTRACTORS = {
    "en": (
        "{name} is {n} years old. ",
        "It is {n} degrees outside. ",
        "The bus takes {n} minutes. ",
    ),
    "zh": ("{name}今年{n}岁。", "外面气温{n}度。", "公交车要{n}分钟。"),
}


@dataclasses.dataclass(frozen=True)
class _Story:
    """A template in two languages, its calculation, and the range of each number."""

    en: str
    zh: str
    calculate: Callable[..., tuple[list[str], int]]  # numbers -> (steps, result)
    ranges: tuple[tuple[int, int], ...]


def _plus(a: int, b: int) -> tuple[list[str], int]:
    return [f"{a} + {b} = {a + b}"], a + b


def _minus(a: int, b: int) -> tuple[list[str], int]:
    return [f"{a} - {b} = {a - b}"], a - b


def _times(a: int, b: int) -> tuple[list[str], int]:
    return [f"{a} * {b} = {a * b}"], a * b


def _times_plus(a: int, b: int, c: int) -> tuple[list[str], int]:
    return [f"{a} * {b} = {a * b}", f"{a * b} + {c} = {a * b + c}"], a * b + c


def _plus_minus(a: int, b: int, c: int) -> tuple[list[str], int]:
    return [f"{a} + {b} = {a + b}", f"{a + b} - {c} = {a + b - c}"], a + b - c


def _minus_times(a: int, b: int, c: int) -> tuple[list[str], int]:
    return [f"{a} - {b} = {a - b}", f"{a - b} * {c} = {(a - b) * c}"], (a - b) * c


_ONE_STEP = (
    _Story(
        "{name} has {0} {thing} and gets {1} more. {extra}How many {thing} does {name} have now?",
        "{name}有{0}个{thing}，又得到{1}个。{extra}{name}现在有多少个{thing}？",
        _plus,
        ((2, 30), (2, 30)),
    ),
    _Story(
        "{name} has {0} {thing} and gives {1} of them away. {extra}How many {thing} are left?",
        "{name}有{0}个{thing}，送给别人{1}个。{extra}还剩多少个{thing}？",
        _minus,
        ((15, 40), (2, 14)),
    ),
    _Story(
        "{name} has {0} boxes with {1} {thing} in each. {extra}How many {thing} are there?",
        "{name}有{0}个盒子，每个盒子里有{1}个{thing}。{extra}一共有多少个{thing}？",
        _times,
        ((2, 9), (2, 9)),
    ),
    _Story(
        "There are {0} {thing} on the table and {1} on the floor. {extra}How many does {name} see?",
        "桌子上有{0}个{thing}，地上有{1}个。{extra}{name}一共看到多少个{thing}？",
        _plus,
        ((2, 30), (2, 30)),
    ),
)
_TWO_STEPS = (
    _Story(
        "{name} buys {0} bags with {1} {thing} in each and finds {2} more. {extra}"
        "How many {thing} does {name} have?",
        "{name}买了{0}袋{thing}，每袋{1}个，又找到{2}个。{extra}{name}有多少个{thing}？",
        _times_plus,
        ((2, 9), (2, 9), (2, 20)),
    ),
    _Story(
        "{name} has {0} {thing}, gets {1} more and loses {2}. {extra}How many {thing} are left?",
        "{name}有{0}个{thing}，又得到{1}个，丢了{2}个。{extra}还剩多少个{thing}？",
        _plus_minus,
        ((10, 30), (2, 20), (2, 9)),
    ),
    _Story(
        "Each of {2} children had {0} {thing} and ate {1}. {extra}"
        "How many {thing} do they have together?",
        "{2}个孩子每人有{0}个{thing}，每人吃了{1}个。{extra}他们一共还有多少个{thing}？",
        _minus_times,
        ((6, 15), (1, 5), (2, 6)),
    ),
)


def make(rng: np.random.Generator, level: str, language: str) -> Problem:
    """Returns a random word problem of a level of LEVELS, in English (en) or Chinese (zh).

    A problem is held out by its story and numbers, in both languages and with every name and thing.
    """
    check_level(level, LEVELS, "word_problems.make(level)")
    stories = _ONE_STEP if level.startswith("one") else _TWO_STEPS
    index = int(rng.integers(len(stories)))
    story = stories[index]
    numbers = [int(rng.integers(low, high + 1)) for low, high in story.ranges]
    name, thing = (words[language][rng.integers(len(words[language]))] for words in _WORDS)
    extra = ""
    if level.endswith("distractor"):
        forms = _DISTRACTORS[language]
        extra = forms[rng.integers(len(forms))].format(name=name, n=int(rng.integers(2, 40)))
    steps, result = story.calculate(*numbers)
    end, separator, final = (".", "; ", "The answer is {}")
    if language == "zh":
        end, separator, final = ("。", "；", "答案是{}")
    return Problem(
        question=getattr(story, language).format(*numbers, name=name, thing=thing, extra=extra),
        answer=final.format(result) + end,
        steps=separator.join(steps) + f"{end} {final.format(result)}{end}",
        wrong=final.format(wrong_result(result, rng)) + end,
        result=str(result),
        level=level,
        language=language,
        key=f"{len(numbers)} {index} {numbers}",
    )


_WORDS = (_NAMES, _THINGS)
