"""A writer for tests of self-instruct: right questions and transcripts, some of them spoiled.

It takes the place of the model, and knows what it has spoiled. So what the filters remove and keep
can be compared with what they should. It is no model: nothing that it writes is a result of
self-instruct.
"""

import random
import re
from collections.abc import Iterator, Sequence

from qwen_jax.data.chat import react
from qwen_jax.data.chat.conversations import Turn
from qwen_jax.data.chat.react import Tool
from qwen_jax.inference.request import Completion
from qwen_jax.synthetic.self_instruct import Seed
from qwen_jax.synthetic.tool_use import questions, transcripts, values
from qwen_jax.synthetic.tool_use.families import FAMILIES

# What is spoiled, and whether a rule can see it in the text.
QUESTION_FAULTS = {
    "an earlier question again": True,
    "a question for a picture": True,
    "three words": True,
    "begins with punctuation": True,
    "Russian": True,
    "another user's tool": False,  # none of the listed tools helps; a fair question all the same
}
TRANSCRIPT_FAULTS = {
    "unknown tool": True,
    "broken JSON": True,
    "missing parameter": True,
    "unknown parameter": True,
    "no final answer": True,
    "labels out of order": True,
    "truncated": True,
    "repeats itself": True,
    "wrong tool of the listed ones": False,
    "wrong argument": False,
    "answer unlike the observation": False,
}


_RUSSIAN = "будет завтра утром в городе на море или вечером около реки после обеда".split()
_WORDS = sorted({word for one in FAMILIES for word in one.description["en"].lower()[:-1].split()})


class NoisyWriter:
    """Answers the conversations of SelfInstruct about tools.

    Args:
      noise: probability that a question, or a transcript, is spoiled.
      seed: of everything that it writes.

    Attributes:
      tools: what SelfInstruct may use, and `seeds` their worked examples.
      question_faults: question -> what is spoiled in it, or None.
      transcript_faults: question -> what is spoiled in its transcript, or None.
    """

    def __init__(self, *, noise: float, seed: int):
        self._noise, self._rng = noise, random.Random(f"noisy writer {seed}")
        known = [family for family in FAMILIES if not family.held_out]
        self._named = questions.named(self._rng, known, "train", "en")
        self._families = dict(
            zip((one["name_for_model"] for one in self._named), known, strict=True)
        )
        self.tools = [
            Tool(**{**one, "parameters": tuple(one["parameters"])}) for one in self._named
        ]
        self._items: dict[str, questions.Item] = {}
        self.question_faults: dict[str, str | None] = {}
        self.transcript_faults: dict[str, str | None] = {}
        self.seeds = [self._seed() for _ in range(6)]

    def __call__(
        self, conversations: Sequence[Sequence[Turn]], seeds: Sequence[int]
    ) -> Iterator[tuple[int, Completion | None]]:
        """Yields (index, completion), as a model of ResponseCache does."""
        for index, conversation in enumerate(conversations):
            role, last = conversation[-1]
            if (role, last) == ("assistant", "Thought:"):
                text, finish = self._transcript(conversation[-2][1])
            else:
                text, finish = self._list(conversation[0][1], last), "stop"
            yield index, Completion((1,), text, None, finish)

    def is_spoiled(self, question: str) -> bool:
        """Returns whether a question, or its transcript, is spoiled."""
        faults = (self.question_faults, self.transcript_faults)
        return any(found.get(question) is not None for found in faults)

    def _seed(self) -> Seed:
        item = self._item(list(self._families))
        del self._items[item.question]
        names = tuple(one["name_for_model"] for one in item.tools)
        return Seed(item.question, transcripts.transcript(item), names)

    def _item(self, names: Sequence[str]) -> questions.Item:
        """Returns a new question for one of the tools with these names."""
        name = self._rng.choice(list(names))
        family = self._families[name]
        question, arguments = questions.asked(self._rng, family, "train", "en")
        # Random words make questions as different as those of a model; novelty is a rule.
        said = " ".join(self._rng.sample(_WORDS, self._rng.randint(6, 12)))
        question = f"My note says {said}. {question}"
        result = family.run(arguments, "en")
        tools = tuple(one for one in self._named if one["name_for_model"] in names)
        item = questions.Item(
            "", "train", "en", "call", question, tools, name, arguments, result,
            f"The result is: {result}.",
        )  # fmt: skip
        self._items[question] = item
        return item

    def _list(self, prompt: str, begun: str) -> str:
        """Returns four new questions as the rest of a numbered list."""
        names = [one.name_for_model for one in self.tools if one.description_for_model in prompt]
        first = int(re.findall(r"(\d+)\.", begun)[-1])
        found = []
        for _ in range(4):
            question, fault = self._item(names).question, None
            if self._rng.random() < self._noise:
                fault = self._rng.choice(list(QUESTION_FAULTS))
                question = self._spoiled_question(question, fault, names)
            self.question_faults[question] = fault
            found.append(question)
        head, *rest = found
        return "".join([f" {head}", *(f"\n{first + i}. {one}" for i, one in enumerate(rest, 1))])

    def _spoiled_question(self, question: str, fault: str, names: Sequence[str]) -> str:
        earlier = [one for one, found in self.question_faults.items() if found is None]
        if fault == "another user's tool":
            others = [name for name in self._families if name not in names]
            return self._item(others or names).question
        return {
            "an earlier question again": self._rng.choice(earlier or [question]) + " Please.",
            "a question for a picture": f"Draw a picture of this: {question}",
            "three words": " ".join(self._rng.sample(_WORDS, 3)),
            "begins with punctuation": f"... {question}",
            "Russian": "Какая погода " + " ".join(self._rng.sample(_RUSSIAN, 6)) + "?",
        }[fault]

    def _transcript(self, prompt: str) -> tuple[str, str]:
        """Returns what follows "Thought:", and how it ends."""
        question = prompt.rpartition("\nQuestion: ")[2]
        item = self._items.get(question)
        if item is None:  # a spoiled question
            self.transcript_faults[question] = None
            return " I answer directly.\nFinal Answer: I cannot help with that.", "stop"
        text = transcripts.transcript(item).removeprefix("Thought:")
        if self._rng.random() >= self._noise:
            self.transcript_faults[question] = None
            return text, "stop"
        offered = [one for one in self.tools if f"\n{one.name_for_model}: " in prompt]
        fault = self._rng.choice(list(TRANSCRIPT_FAULTS))
        spoiled = self._spoiled(text, item, fault, offered)
        self.transcript_faults[question] = (
            fault if spoiled != text or fault == "truncated" else None
        )
        return spoiled, "length" if fault == "truncated" else "stop"

    def _spoiled(
        self, text: str, item: questions.Item, fault: str, offered: Sequence[react.Tool]
    ) -> str:
        tool, arguments = str(item.tool), dict(item.arguments or {})
        first = next(iter(arguments))
        others = [one.name_for_model for one in offered if one.name_for_model != tool]
        written = transcripts.written(arguments)

        def with_input(changed: dict) -> str:
            return text.replace(written, transcripts.written(changed))

        changes = {
            "unknown tool": lambda: text.replace(f"Action: {tool}", f"Action: {tool}s"),
            "broken JSON": lambda: text.replace(written, written[:-1]),
            "missing parameter": lambda: with_input(
                {k: v for k, v in arguments.items() if k != first}
            ),
            "unknown parameter": lambda: with_input({**arguments, "please": True}),
            "no final answer": lambda: text.partition("\nFinal Answer:")[0],
            "labels out of order": lambda: text.replace("\nThought:", "\nAction:"),
            "truncated": lambda: text,
            "repeats itself": lambda: text + " and again" * 12,
            "wrong tool of the listed ones": lambda: text.replace(
                f"Action: {tool}", f"Action: {self._rng.choice(others or [tool])}"
            ),
            "wrong argument": lambda: with_input(
                {**arguments, first: values.stem(self._rng, "train")}
            ),
            "answer unlike the observation": lambda: text.replace(
                f"Final Answer: {item.answer}", "Final Answer: It is 1000 and more."
            ),
        }
        return changes[fault]()
