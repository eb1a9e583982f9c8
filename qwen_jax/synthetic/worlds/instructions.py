"""Instructions whose answers a program can check: what a chat model is first taught to follow.

Each names an operation on a few words: repeat, reverse, first, last, count, join, capital letters.
"""

import numpy as np

from qwen_jax.synthetic.worlds.problem import Problem

_WORDS = {
    "en": tuple(
        "sun moon tree stone river bird fish horse bread milk salt iron gold silk rope door "
        "chair table glass paper wind rain snow fire sand leaf root seed corn rice".split()
    ),
    "zh": tuple(
        "日 月 树 石 河 鸟 鱼 马 米 奶 盐 铁 金 丝 绳 门 椅 桌 纸 风 雨 雪 火 沙 叶".split()
    ),
}
LEVELS = ("repeat", "first", "last", "count", "reverse", "second")
_FORMS = {
    "en": {
        "repeat": ("Repeat: {}", "Say this again: {}", "Copy these words: {}"),
        "first": ("What is the first word of: {}", "Give the first word: {}"),
        "last": ("What is the last word of: {}", "Give the last word: {}"),
        "second": ("What is the second word of: {}", "Give the second word: {}"),
        "count": ("How many words are here: {}", "Count the words: {}"),
        "reverse": ("Reverse the order: {}", "Say these words backwards: {}"),
    },
    "zh": {
        "repeat": ("重复：{}", "再说一遍：{}", "抄写这些字：{}"),
        "first": ("第一个字是什么：{}", "给出第一个字：{}"),
        "last": ("最后一个字是什么：{}", "给出最后一个字：{}"),
        "second": ("第二个字是什么：{}", "给出第二个字：{}"),
        "count": ("这里有几个字：{}", "数一数有几个字：{}"),
        "reverse": ("倒过来说：{}", "把顺序反过来：{}"),
    },
}


def make(rng: np.random.Generator, level: str, language: str) -> Problem:
    """Returns a random instruction of a level of LEVELS; its result is the text of the answer."""
    vocabulary = _WORDS[language]
    words = [vocabulary[i] for i in rng.choice(len(vocabulary), rng.integers(3, 7), replace=False)]
    forms = _FORMS[language][level]
    listed = " ".join(words)
    answer = {
        "repeat": listed,
        "first": words[0],
        "last": words[-1],
        "second": words[1],
        "count": str(len(words)),
        "reverse": " ".join(reversed(words)),
    }[level]
    wrong = " ".join(rng.permutation(words)) if " " in answer else vocabulary[rng.integers(20)]
    if wrong == answer:
        wrong = " ".join(words[:-1])
    return Problem(
        question=forms[rng.integers(len(forms))].format(listed),
        answer=answer,
        steps=answer,
        wrong=str(len(words) + 1) if level == "count" else wrong,
        result=answer,
        level=level,
        language=language,
        key=f"{level} {listed}",
    )


def is_right(problem: Problem, response: str) -> bool:
    """Returns whether a response is the answer, up to spaces and a final period."""
    return " ".join(response.split()).rstrip(".。") == problem.result
