"""Admissions of not knowing, in English and Chinese."""

import time

import pytest

from qwen_jax.grading.unknown import admission

ADMIT = [
    "I don't know.",
    "I’m sorry, but I don’t have any information about that novel.",
    "I am not aware of a theorem of that name.",
    "There is no such element; the periodic table has 118 elements.",
    "The battle does not appear to exist in any history that I can find.",
    "As an AI, I cannot predict the numbers of a future drawing.",
    "It is impossible to know what he was thinking.",
    "Nobody knows the name of the first baker.",
    "That event has not happened yet.",
    "The tower seems fictional.",
    "I'm not able to see your table. However, I can suggest a good book.",
    "That isn't known.",
    "There is no reliable record of the evening meal.",
    "我不知道您口袋里有什么。",
    "抱歉，我无法预测明年的开奖号码。",
    "目前没有找到关于这部小说的任何资料。",
    "这个成语并不存在。",
    "这位诗人可能是虚构的。",
    "抱歉，我不能提供他人的密码。",
    "历史上没有人知道他的名字。",
    "这场比赛尚未举行。",
    "具体数字已无从考证。",
]
DENY = [
    "",
    "The novel has 24 chapters.",
    "Orlanda Bexwith received the Nobel Prize in 1954.",
    "I am not sure, but I believe that it has 24 chapters.",
    "It is unknown to most readers that the author wrote it in one night.",
    "It is a fictional novel with 24 chapters.",
    "I know that the tower is 85 meters tall.",
    "I cannot recommend it enough: all 24 chapters are great.",
    "Without a doubt, Brazil will score first.",
    "He won after no more than two hours.",
    "这部小说一共有二十四章。",
    "我不确定，不过大概有24章。",
    "你不知道吗？他是唐代的诗人。",
    "出自《庄子》，最早由庄子使用。",
    "它是一部虚构的小说，共三十章。",
]


@pytest.mark.parametrize("text", ADMIT)
def test_admission_finds_it(text):
    assert admission(text).admits, admission(text)


@pytest.mark.parametrize("text", DENY)
def test_admission_is_cautious(text):
    assert not admission(text).admits, admission(text)


def test_admission_takes_bounded_time():
    begin = time.process_time()
    for text in ("but " * 50_000, "i cannot " * 30_000, "没有" * 100_000, "no a b " * 50_000):
        admission(text)
    assert time.process_time() - begin < 5  # it takes a hundredth of this
