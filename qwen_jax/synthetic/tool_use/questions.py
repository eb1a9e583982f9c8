"""Items of the tool-use benchmark: a question, up to five candidate tools, and the right call.

A third of the items need none of their tools: small talk; a question for a tool that is not among
the candidates; or a question about a tool. Report: 3.4, Table 6.
"""

import dataclasses
import random
from collections.abc import Iterator, Sequence
from typing import Any

from qwen_jax.synthetic.tool_use import values
from qwen_jax.synthetic.tool_use.families import CHOICES, FAMILIES, Family

MAX_TOOLS = 5  # report: up to five candidate tools
NEGATIVES = ("off_topic", "near_miss", "about")
_WRAPPED = {  # the description of a family in three phrasings
    "en": ("{}", "Use it for this: {}", "What it does: {}"),
    "zh": ("{}", "用途：{}", "功能如下：{}"),
}
_OFF_TOPIC = {  # question and answer; {} is a topic, a thing or a person
    "train": {
        "en": (
            ("Write one line about {topic}.", "Here is a line about {topic}."),
            ("Do you like {topic}?", "I have no taste, but {topic} can be fascinating."),
            ("What is the plural of {thing}?", "The plural of {thing} is {thing}s."),
            ("My friend {person} says hello to you.", "Please say hello to {person}."),
            ("Spell the name {person} backwards.", "I would read {person} from its end."),
        ),
        "zh": (
            ("写一句关于{topic}的话。", "这是一句关于{topic}的话。"),
            ("你喜欢{topic}吗？", "我没有喜好，不过{topic}很有意思。"),
            ("用“{thing}”造一个句子。", "我家里有一个{thing}。"),
            ("我的朋友{person}向你问好。", "请代我向{person}问好。"),
            ("{person}这个名字好听吗？", "{person}这个名字很好听。"),
        ),
    },
    "test": {
        "en": (
            ("Tell me a short joke about {topic}.", "I know no joke about {topic}."),
            ("Invent a rhyme with the word {thing}.", "There are few rhymes with {thing}."),
            ("I had a long talk with {person} and feel tired.", "I hope {person} is well."),
            ("Is {topic} a noun or a verb?", "The word {topic} is a noun."),
            ("Would {person} be a good name for a cat?", "Yes, {person} suits a cat."),
        ),
        "zh": (
            ("给我讲一个关于{topic}的笑话。", "我不知道关于{topic}的笑话。"),
            ("“{thing}”是几个字的词？", "“{thing}”是一个名词。"),
            ("我和{person}聊了很久，有点累。", "希望{person}一切都好。"),
            ("以{topic}为题写一个开头。", "故事从{topic}开始。"),
            ("给猫起名叫{person}好吗？", "{person}很适合一只猫。"),
        ),
    },
}
_ABOUT = {
    "en": ("In general, what are programs called {} good for?", "They help with {}."),
    "zh": ("一般来说，名为{}的程序有什么用？", "它们用于{}。"),
}


@dataclasses.dataclass(frozen=True)
class Item:
    """A question with its tools.

    Fields:
      kind: "call", or one of NEGATIVES.
      tools: fields of data.chat.react.Tool.
      tool: name of the right one; None: none is needed.
      arguments: of the right call.
      observation: what the right call returns; "" without a call.
      answer: the final answer.
    """

    id: str
    split: str
    language: str
    kind: str
    question: str
    tools: tuple[dict[str, Any], ...]
    tool: str | None
    arguments: dict[str, Any] | None
    observation: str
    answer: str


def items(*, split: str, calls: int, no_calls: int, seed: int) -> Iterator[Item]:
    """Yields items; half of them in Chinese, and each number of tools equally often.

    Args:
      split: "train" or "test": families, names, values and phrasings have nothing in common.
      calls, no_calls: number of items that need a tool, and that need none.
    """
    for index in range(calls + no_calls):
        rng = random.Random(f"tool use {split} {seed} {index}")
        language = values.LANGUAGES[index % 2]
        number = index // 2 % MAX_TOOLS + 1
        kind = "call" if index < calls else NEGATIVES[index // 10 % len(NEGATIVES)]
        yield _item(rng, f"{split}-{index}", split, language, kind, number)


def _item(rng: random.Random, name: str, split: str, language: str, kind: str, number: int) -> Item:
    known = [family for family in FAMILIES if family.held_out == (split == "test")]
    wanted = rng.choice(known)
    others = [family for family in known if family is not wanted]
    near = [family for family in others if family.domain == wanted.domain]
    if rng.random() < 0.5:  # distractors of the same domain first
        far = [family for family in others if family.domain != wanted.domain]
        others = [*rng.sample(near, len(near)), *rng.sample(far, len(far))]
    else:
        rng.shuffle(others)
    chosen = [wanted, *others[: number - 1]] if kind == "call" else others[:number]
    rng.shuffle(chosen)
    tools = named(rng, chosen, split, language)
    if kind == "off_topic":
        kinds = ("topic", "thing", "person")
        shown = {one: values.value(rng, one, split, language) for one in kinds}
        pair = rng.choice(_OFF_TOPIC[split][language])
        question, answer = (text.format(**shown) for text in pair)
        return Item(name, split, language, kind, question, tools, None, None, "", answer)
    if kind == "about":
        family = rng.choice(chosen)
        question, answer = (text.format(family.human[language]) for text in _ABOUT[language])
        return Item(name, split, language, kind, question, tools, None, None, "", answer)
    question, arguments = asked(rng, wanted, split, language)
    if kind == "near_miss":
        answer = _MISSING[language].format(wanted.human[language])
        return Item(name, split, language, kind, question, tools, None, None, "", answer)
    observation = wanted.run(arguments, language)
    tool = tools[chosen.index(wanted)]["name_for_model"]
    answer = _ANSWER[language].format(observation)
    return Item(name, split, language, kind, question, tools, tool, arguments, observation, answer)


_MISSING = {
    "en": "I have no tool for {}, so I cannot answer that.",
    "zh": "我没有用于{}的工具，所以无法回答。",
}
_ANSWER = {"en": "The result is: {}.", "zh": "结果是：{}。"}


def named(
    rng: random.Random, families: Sequence[Family], split: str, language: str
) -> tuple[dict[str, Any], ...]:
    """Returns tools of the families under made-up names, as fields of data.chat.react.Tool."""
    found, stems = [], set()
    for family in families:
        while (stem := values.stem(rng, split)) in stems:
            pass
        stems.add(stem)
        description = rng.choice(_WRAPPED[language]).format(family.description[language])
        found.append(
            {
                "name_for_human": family.human[language],
                "name_for_model": f"{stem}_{family.name}",
                "description_for_model": description,
                "parameters": family.described_parameters(language),
            }
        )
    return tuple(found)


def asked(
    rng: random.Random, family: Family, split: str, language: str
) -> tuple[str, dict[str, Any]]:
    """Returns a question, and the arguments that it asks for."""
    phrasings = family.questions[language]
    phrasing = phrasings[2] if split == "test" else rng.choice(phrasings[:2])
    arguments: dict[str, Any] = {}
    shown: dict[str, Any] = {}
    for name, kind in family.parameters.items():
        if kind in CHOICES:
            arguments[name] = rng.choice(list(CHOICES[kind]))
            shown[name] = CHOICES[kind][arguments[name]][language == "zh"]
        else:
            arguments[name] = shown[name] = values.value(rng, kind, split, language)
    return phrasing.format(**shown), arguments
