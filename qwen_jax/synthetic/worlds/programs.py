"""Function writing with unit tests, as a small HumanEval: docstring in, body out.

In Python and JavaScript, with docstrings in English and Chinese. Expected values are computed from
the tree that the program was made from, so no code of this module is ever run to make them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from qwen_jax.synthetic.worlds import expressions
from qwen_jax.synthetic.worlds.problem import check_level

LEVELS = ("one operator", "two operators", "three operators", "condition", "loop", "strings")
PROGRAMMING = ("python", "javascript")
_POINTS = 8
_LETTERS = "abcde"
_HEADS = {
    "python": 'def f({0}):\n    """{1}"""\n',
    "javascript": "// {1}\nfunction f({0}) {{\n",
}
_END = {"python": "", "javascript": "}\n"}
_RETURN = {"en": "Return {}.", "zh": "返回{}。"}


@dataclasses.dataclass(frozen=True)
class Program:
    """A function to write, a right body, and its tests."""

    prompt: str  # the signature and the docstring
    body: str  # what follows: a right solution
    tests: tuple[tuple[tuple[Any, ...], Any], ...]  # (arguments, expected value)
    level: str
    language: str  # of the docstring
    programming: str
    key: str  # equal in both languages and every phrasing: held out together
    shape: str  # operators without their operands: whether training had such a function


@dataclasses.dataclass(frozen=True)
class _Function:
    """A function in every language."""

    parameters: str
    describe: Callable[[str, int], str]  # (language, phrasing) -> words
    lines: dict[str, tuple[str, ...]]  # programming -> lines of the body, without indentation
    value: Callable[..., Any]
    arguments: Callable[[np.random.Generator], tuple[Any, ...]]
    key: str
    shape: str


def make(rng: np.random.Generator, level: str, language: str, programming: str) -> Program:
    """Returns a random program of a level of LEVELS.

    Args:
      language: of the docstring, en or zh.
      programming: python or javascript.
    """
    check_level(level, LEVELS, "programs.make(level)")
    function = _FUNCTIONS[level](rng)
    phrasing = int(rng.integers(expressions.phrasings(language)))
    description = _RETURN[language].format(function.describe(language, phrasing))
    prompt = _HEADS[programming].format(function.parameters, description)
    indent = "    " if programming == "python" else "  "
    body = "".join(f"{indent}{line}\n" for line in function.lines[programming])
    return Program(
        prompt=prompt,
        body=body + _END[programming],
        tests=_tests(function, rng),
        level=level,
        language=language,
        programming=programming,
        key=function.key,
        shape=function.shape,
    )


def _tests(function: _Function, rng: np.random.Generator):
    points: dict[str, tuple[Any, ...]] = {}
    while len(points) < _POINTS:
        arguments = function.arguments(rng)
        points[repr(arguments)] = arguments
    return tuple((arguments, function.value(*arguments)) for arguments in points.values())


def _pair(rng: np.random.Generator) -> tuple[int, int]:
    return int(rng.integers(-20, 21)), int(rng.integers(-20, 21))


def _both(python: tuple[str, ...], javascript: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {"python": python, "javascript": javascript}


def _expression(operators: int) -> Callable[[np.random.Generator], _Function]:
    def made(rng: np.random.Generator) -> _Function:
        tree = expressions.random_expression(rng, operators)
        return _Function(
            parameters="x, y",
            describe=lambda language, phrasing: expressions.words(tree, language, phrasing),
            lines=_both(
                (f"return {expressions.code(tree, 'python')}",),
                (f"return {expressions.code(tree, 'javascript')};",),
            ),
            value=lambda x, y: expressions.value(tree, x, y),
            arguments=_pair,
            key=repr(tree),
            shape=expressions.shape(tree),
        )

    return made


_COMPARISONS = {
    "<": ("is less than", "小于"),
    ">": ("is greater than", "大于"),
}


def _condition(rng: np.random.Generator) -> _Function:
    limit, comparison = int(rng.integers(-5, 6)), str(rng.choice(list(_COMPARISONS)))
    yes, no = (expressions.random_expression(rng, 1) for _ in range(2))
    while no == yes:
        no = expressions.random_expression(rng, 1)
    english, chinese = _COMPARISONS[comparison]

    def describe(language: str, phrasing: int) -> str:
        first, second = (expressions.words(tree, language, phrasing) for tree in (yes, no))
        if language == "en":
            return f"{first} if x {english} {limit}, otherwise {second}"
        return f"如果x{chinese}{limit}，{first}，否则{second}"

    python, javascript = (
        tuple(expressions.code(tree, programming) for tree in (yes, no))
        for programming in PROGRAMMING
    )
    return _Function(
        parameters="x, y",
        describe=describe,
        lines=_both(
            (f"if x {comparison} {limit}:", f"    return {python[0]}", f"return {python[1]}"),
            (
                f"if (x {comparison} {limit}) {{",
                f"  return {javascript[0]};",
                "}",
                f"return {javascript[1]};",
            ),
        ),
        value=lambda x, y: expressions.value(
            yes if (x < limit if comparison == "<" else x > limit) else no, x, y
        ),
        arguments=_pair,
        key=repr((comparison, limit, yes, no)),
        shape=f"if({expressions.shape(yes)},{expressions.shape(no)})",
    )


_TERMS = {  # of a loop: code -> (English, Chinese, value); {0} is which elements
    "x": ("the elements of items{0}", "{0}元素", lambda x, n: x),
    "x * x": ("the squares of the elements of items{0}", "{0}元素的平方", lambda x, n: x * x),
    "x + {n}": ("{n} plus each element of items{0}", "{0}每个元素加{n}后", lambda x, n: x + n),
    "x * {n}": ("{n} times each element of items{0}", "{0}每个元素乘以{n}后", lambda x, n: x * n),
}
_FILTERS = {  # code -> (English, Chinese, whether an element counts)
    "": ("", "", lambda x, n: True),
    "x > {n}": (" greater than {n}", "大于{n}的", lambda x, n: x > n),
    "x < {n}": (" less than {n}", "小于{n}的", lambda x, n: x < n),
}


def _loop(rng: np.random.Generator) -> _Function:
    term, condition = (list(kinds)[rng.integers(len(kinds))] for kinds in (_TERMS, _FILTERS))
    n, limit = int(rng.integers(2, 10)), int(rng.integers(-5, 6))
    words_of_term, words_of_filter = _TERMS[term], _FILTERS[condition]
    add, test = term.format(n=n), condition.format(n=limit)

    def describe(language: str, phrasing: int) -> str:
        index = 0 if language == "en" else 1
        which = words_of_filter[index].format(n=limit)
        what = words_of_term[index].format(which, n=n)
        if language == "en":
            return f"{('the sum of', 'the total of', 'the result of adding')[phrasing]} {what}"
        return f"列表items中{what}的{('和', '总和')[phrasing]}"

    inner = f"total += {add}"
    return _Function(
        parameters="items",
        describe=describe,
        lines=_both(
            (
                "total = 0",
                "for x in items:",
                *((f"    if {test}:", f"        {inner}") if test else (f"    {inner}",)),
                "return total",
            ),
            (
                "let total = 0;",
                "for (const x of items) {",
                *((f"  if ({test}) {{", f"    {inner};", "  }") if test else (f"  {inner};",)),
                "}",
                "return total;",
            ),
        ),
        value=lambda items: sum(
            words_of_term[2](x, n) for x in items if words_of_filter[2](x, limit)
        ),
        arguments=lambda rng: (rng.integers(-9, 10, rng.integers(0, 7)).tolist(),),
        key=repr((add, test)),
        shape=f"loop({term},{condition})",
    )


def _strings(rng: np.random.Generator) -> _Function:
    letter, n = str(rng.choice(list(_LETTERS))), int(rng.integers(1, 5))
    kinds = (
        ("reverse", ("text reversed", "倒序的text"), "text[::-1]",
         "text.split('').reverse().join('')", lambda text: text[::-1]),
        ("count", (f"how often {letter} occurs in text", f"text中{letter}出现的次数"),
         f"text.count('{letter}')", f"text.split('{letter}').length - 1",
         lambda text: text.count(letter)),
        ("first", (f"the first {n} letters of text", f"text的前{n}个字母"),
         f"text[:{n}]", f"text.slice(0, {n})", lambda text: text[:n]),
        ("without", (f"text without every {letter}", f"去掉所有{letter}的text"),
         f"text.replace('{letter}', '')", f"text.split('{letter}').join('')",
         lambda text: text.replace(letter, "")),
        ("repeat", (f"text repeated {n} times", f"重复{n}次的text"),
         f"text * {n}", f"text.repeat({n})", lambda text: text * n),
    )  # fmt: skip
    outer, inner = (kinds[i] for i in rng.choice(len(kinds), 2, replace=False))
    if inner[0] == "count":  # it returns a number, which no other function takes
        outer, inner = inner, outer

    def describe(language: str, phrasing: int) -> str:
        index = 0 if language == "en" else 1
        first, second = inner[1][index], outer[1][index]
        if language == "en":
            start = ("for text = ", "with text set to ", "taking as text ")[phrasing]
            return f"{second}, {start}{first}"
        return f"先取text为{first}，{('再求', '然后求')[phrasing]}{second}"

    return _Function(
        parameters="text",
        describe=describe,
        lines=_both(
            (f"text = {inner[2]}", f"return {outer[2]}"),
            (f"text = {inner[3]};", f"return {outer[3]};"),
        ),
        value=lambda text: outer[4](inner[4](text)),
        arguments=lambda rng: ("".join(rng.choice(list(_LETTERS), rng.integers(1, 9))),),
        key=repr((outer[2], inner[2])),
        shape=f"{outer[0]}({inner[0]})",
    )


_FUNCTIONS: dict[str, Callable[[np.random.Generator], _Function]] = {
    "one operator": _expression(1),
    "two operators": _expression(2),
    "three operators": _expression(3),
    "condition": _condition,
    "loop": _loop,
    "strings": _strings,
}
