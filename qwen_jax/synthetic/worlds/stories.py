"""Short stories from templates, in English and Chinese: plain text with words that recur.

A story says who has what and where it goes. Questions about it have one right word as the answer.
"""

import dataclasses

import numpy as np

NAMES = {
    "en": ("Anna", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Henry", "Iris", "Jack"),
    "zh": ("小明", "小红", "小刚", "小丽", "小华", "小军", "小芳", "小强", "小燕", "小龙"),
}
_THINGS = {
    "en": ("ball", "book", "hat", "key", "lamp", "ring", "drum", "map", "cup", "kite"),
    "zh": ("球", "书", "帽子", "钥匙", "灯", "戒指", "鼓", "地图", "杯子", "风筝"),
}
_PLACES = {
    "en": ("garden", "kitchen", "forest", "market", "school", "barn", "tower", "station"),
    "zh": ("花园", "厨房", "森林", "市场", "学校", "谷仓", "塔楼", "车站"),
}
_COLORS = {
    "en": ("red", "blue", "green", "yellow", "white", "black"),
    "zh": ("红色", "蓝色", "绿色", "黄色", "白色", "黑色"),
}
_OPENINGS = {
    "en": (
        "One morning {a} found a {color} {thing} in the {place}.",
        "{a} had a {color} {thing} and took it to the {place}.",
        "In the {place} lived {a}, who loved a {color} {thing}.",
    ),
    "zh": (
        "一天早上，{a}在{place}里发现了一个{color}的{thing}。",
        "{a}有一个{color}的{thing}，把它带到了{place}。",
        "{a}住在{place}，很喜欢一个{color}的{thing}。",
    ),
}
_MIDDLES = {
    "en": (
        "{b} came and wanted to see the {thing}.",
        "Then {b} walked by and smiled.",
        "It was a warm day, and {b} was there too.",
    ),
    "zh": ("{b}走过来，想看看{thing}。", "这时{b}路过，笑了。", "天气很暖和，{b}也在那里。"),
}
_ENDINGS = {
    "en": (
        "So {a} gave the {thing} to {b}, and they were happy.",
        "{a} and {b} played with the {color} {thing} until the evening.",
        "In the end {b} carried the {thing} home from the {place}.",
    ),
    "zh": (
        "于是{a}把{thing}送给了{b}，他们都很高兴。",
        "{a}和{b}玩那个{color}的{thing}，一直玩到晚上。",
        "最后{b}把{thing}从{place}带回了家。",
    ),
}
_QUESTIONS = {
    "en": (("What color is the {thing}?", "color"), ("Where does the story take place?", "place")),
    "zh": (("{thing}是什么颜色的？", "color"), ("故事发生在哪里？", "place")),
}


@dataclasses.dataclass(frozen=True)
class Story:
    """A story with a question about it."""

    text: str
    question: str
    answer: str  # one word of the story
    language: str
    key: str  # for the split: who and what


def make(rng: np.random.Generator, language: str) -> Story:
    """Returns a random story in English (en) or Chinese (zh)."""

    def one(words: dict[str, tuple[str, ...]]) -> int:
        return int(rng.integers(len(words[language])))

    a = one(NAMES)
    b = (a + 1 + int(rng.integers(len(NAMES[language]) - 1))) % len(NAMES[language])
    chosen = {"thing": one(_THINGS), "place": one(_PLACES), "color": one(_COLORS)}
    words = {"a": NAMES[language][a], "b": NAMES[language][b]} | {
        name: kinds[language][chosen[name]]
        for name, kinds in (("thing", _THINGS), ("place", _PLACES), ("color", _COLORS))
    }
    sentences = [
        forms[language][rng.integers(len(forms[language]))].format(**words)
        for forms in (_OPENINGS, _MIDDLES, _ENDINGS)
    ]
    question, about = _QUESTIONS[language][rng.integers(len(_QUESTIONS[language]))]
    return Story(
        text=(" " if language == "en" else "").join(sentences),
        question=question.format(**words),
        answer=words[about],
        language=language,
        key=f"{a} {b} {sorted(chosen.items())}",
    )
