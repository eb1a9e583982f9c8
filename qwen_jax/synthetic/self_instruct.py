"""Generates samples with a model from a few seeds: self-instruct (Wang et al. 2023). Report: 3.4.

A round of plain instructions: in-context examples -> a list of new instructions -> filter -> an
answer to each -> filter.
A round of tool use in ReAct format: some of the tools and example questions -> new questions ->
filter -> the report's prompt with worked examples -> Thought, Action, ..., Final Answer -> filter.

Accepted samples become examples of later rounds. People review them at the end (review.py).
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from qwen_jax.config import option
from qwen_jax.data.chat import react
from qwen_jax.data.chat.conversations import Counts, Skipped, Turn, turns_of
from qwen_jax.data.chat.react import Tool
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.ranges import ONE_OR_MORE, SEED, ZERO_OR_MORE, Checked
from qwen_jax.synthetic.novelty import Novelty, words
from qwen_jax.synthetic.response_cache import Response, ResponseCache
from qwen_jax.synthetic.sample_rules import Rules, answer_fault, question_fault, react_fault
from qwen_jax.utils.jsonl import read_rows

_MAX_TOOLS = 5  # report: up to five candidate tools
_SHOTS = 2  # worked examples in context
_ITEM = re.compile(r"(?:^|\n)\s*\d{1,3}\s*[.)、．]\s*")
_TASKS = (
    "Come up with a series of tasks for an assistant who can only read and write text. Make them "
    "of many kinds: questions, writing, reasoning, language, code, everyday advice. Write each as "
    "one complete instruction on a line of its own, numbered. Never refer to images or files."
)
_QUESTIONS = (
    "An assistant has these tools:\n\n{tools}\n\nCome up with a series of questions that people "
    "would ask it. Some need one of the tools, some several calls in turn, and some none. Write "
    "each with all that is needed to answer it on a line of its own, numbered."
)


@dataclasses.dataclass(frozen=True)
class Settings(Checked, where="--settings.{}"):
    """The size of a run. The report collected about 2,000 samples."""

    samples: int = option(2000, "number of accepted samples after which the run stops", ONE_OR_MORE)
    rounds: int = option(50, "maximum number of rounds", ONE_OR_MORE)
    instruction_lists: int = option(
        8, "lists of instructions per round; 0: no plain instructions", ZERO_OR_MORE
    )
    question_lists: int = option(
        8, "lists of tool questions per round; 0: no tool use", ZERO_OR_MORE
    )
    seeds_shown: int = option(
        6, "human-written examples per list prompt (self-instruct)", ONE_OR_MORE
    )
    generated_shown: int = option(
        2, "generated examples per list prompt (self-instruct)", ZERO_OR_MORE
    )
    seed: int = option(0, "random seed of the choice of examples and of sampling", SEED)

    def __post_init__(self):
        super().__post_init__()
        if not (self.instruction_lists or self.question_lists):
            raise ConfigError(
                "instruction_lists and question_lists are both 0.",
                "--settings.instruction_lists, --settings.question_lists",
                "use 1 or more of at least one kind of list.",
            )


@dataclasses.dataclass(frozen=True)
class Seed:
    """A human-written task; for tool use, with the tools' names and a full transcript."""

    question: str
    answer: str | None = None
    tools: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Sample:
    """A conversation that passed the rules."""

    id: str  # round, stage and index
    kind: str  # "instruction" or "react"
    question: str
    tools: tuple[str, ...]
    messages: tuple[Turn, ...]


class SelfInstruct:
    """Generates samples in rounds.

    Args:
      cache: the response cache, which queries the model.
      seeds: seeds of plain instructions.
      react_seeds: example questions for `tools`, each with a ReAct transcript.
      tools: the tools that questions may use.

    Attributes:
      samples: the accepted samples.
      rejected: {"reason", "location", "text"} of each rejected text.
      counts: the number of accepted samples, and of rejections by reason.

    Raises:
      ConfigError: the settings need seeds or tools that are missing.
      DataError: a seed names an unknown tool, or its transcript is invalid for its tools.
    """

    def __init__(
        self,
        settings: Settings,
        rules: Rules,
        cache: ResponseCache,
        seeds: Sequence[Seed],
        react_seeds: Sequence[Seed],
        tools: Sequence[Tool],
    ):
        self._settings, self._rules, self._cache = settings, rules, cache
        self._seeds, self._react_seeds = list(seeds), list(react_seeds)
        self._tools = {tool.name_for_model: tool for tool in tools}
        if settings.instruction_lists and not seeds:
            raise ConfigError(
                "no seed tasks.", "seeds", "pass at least one, or set instruction_lists to 0."
            )
        if settings.question_lists and not (tools and react_seeds):
            raise ConfigError(
                "no tools, or no worked examples for them.",
                "tools, react_seeds",
                "pass both, or set question_lists to 0.",
            )
        self._check_react_seeds()
        self._novelty = Novelty(rules.novelty)
        for seed in (*seeds, *react_seeds):
            self._novelty.add(seed.question)
        self.samples: list[Sample] = []
        self.rejected: list[dict[str, Any]] = []
        self.counts = Counts()

    def rounds(self) -> Iterator[int]:
        """Runs the rounds; after each, yields the number of finished rounds."""
        for number in range(self._settings.rounds):
            self._instructions(number)
            self._react(number)
            yield number + 1
            if len(self.samples) >= self._settings.samples:
                return

    def _instructions(self, number: int) -> None:
        kept = [
            Seed(sample.question, sample.messages[-1][1])
            for sample in self.samples
            if sample.kind == "instruction"
        ]
        conversations, starts = [], []
        for index in range(self._settings.instruction_lists):
            rng = self._cache.rng(number, "instruction examples", index)
            examples = self._examples(rng, self._seeds, kept)
            starts.append(len(examples) + 1)
            conversations.append(_list_conversation(_TASKS, examples))
        found = self._new_questions(number, "instructions", conversations, starts)
        shots = [
            self._shots(number, "answer shots", index, self._seeds) for index in range(len(found))
        ]
        conversations = [
            [
                *(
                    turn
                    for shot in few
                    for turn in (("user", shot.question), ("assistant", shot.answer))
                ),
                ("user", question),
            ]
            for few, (question, _) in zip(shots, found, strict=True)
        ]
        for index, answer in enumerate(self._cache(number, "answers", conversations)):
            question = found[index][0]
            self._keep(
                number,
                "answers",
                index,
                answer,
                Sample(
                    f"{number}-answers-{index}",
                    "instruction",
                    question,
                    (),
                    (("user", question), ("assistant", answer.text.strip())),
                ),
                answer_fault(question, answer.text, answer.finish, self._rules),
            )

    def _react(self, number: int) -> None:
        """Generates questions for some tools, then a ReAct transcript for each question."""
        found, given = self._react_questions(number)
        prompts = [react.prompt(question, given[source]) for question, source in found]
        conversations = [
            [
                *self._react_shots(number, index),
                ("user", prompt),
                ("assistant", "Thought:"),
            ]
            for index, prompt in enumerate(prompts)
        ]
        for index, answer in enumerate(self._cache(number, "transcripts", conversations)):
            question, source = found[index]
            text = f"Thought:{answer.text}".strip()
            self._keep(
                number,
                "transcripts",
                index,
                answer,
                Sample(
                    f"{number}-transcripts-{index}",
                    "react",
                    question,
                    tuple(tool.name_for_model for tool in given[source]),
                    (("user", prompts[index]), ("assistant", text)),
                ),
                react_fault(text, answer.finish, given[source], self._rules),
            )

    def _react_questions(self, number: int) -> tuple[list[tuple[str, int]], list[list]]:
        """Returns (question, index of its list) pairs, and the tools of each list."""
        kept = [Seed(sample.question) for sample in self.samples if sample.kind == "react"]
        conversations, starts, given = [], [], []
        for index in range(self._settings.question_lists):
            rng = self._cache.rng(number, "question examples", index)
            tools = rng.sample(
                list(self._tools.values()), rng.randint(1, min(_MAX_TOOLS, len(self._tools)))
            )
            examples = self._examples(rng, self._react_seeds, kept)
            starts.append(len(examples) + 1)
            given.append(tools)
            described = "\n".join(
                f"- {tool.name_for_human}: {tool.description_for_model}" for tool in tools
            )
            conversations.append(_list_conversation(_QUESTIONS.format(tools=described), examples))
        return self._new_questions(number, "questions", conversations, starts), given

    def _react_shots(self, number: int, index: int) -> list[Turn]:
        """Returns the turns of the worked examples that precede a transcript's prompt."""
        return [
            turn
            for shot in self._shots(number, "transcript shots", index, self._react_seeds)
            if shot.answer is not None  # for the type checker
            for turn in (
                ("user", react.prompt(shot.question, [self._tools[name] for name in shot.tools])),
                ("assistant", shot.answer),
            )
        ]

    def _new_questions(
        self, number: int, stage: str, conversations: list[list[Turn]], starts: list[int]
    ) -> list[tuple[str, int]]:
        """Returns accepted (question, index of its list) pairs, at most as many as are needed."""
        found = []
        for index, answer in enumerate(self._cache(number, stage, conversations)):
            if answer.finish == "no room":
                self._reject("no room for a response", number, stage, index, "")
                continue
            items = parse_list(answer.text, starts[index], complete=answer.finish == "stop")
            if not items:
                self._reject("a response without a list", number, stage, index, answer.text)
            for text in items:
                fault = question_fault(text, self._rules)
                near = None if fault else self._novelty.nearest(text)
                if near:
                    fault = "too similar to an earlier one"
                    text = f"{text} (Rouge-L {near[0]:.2f} with: {near[1]})"
                if fault:
                    self._reject(fault, number, stage, index, text)
                elif len(self.samples) + len(found) < self._settings.samples:
                    self._novelty.add(text)
                    found.append((text, index))
        return found

    def _keep(
        self,
        number: int,
        stage: str,
        index: int,
        answer: Response,
        sample: Sample,
        fault: str | None,
    ) -> None:
        if answer.finish == "no room":
            fault = "no room for a response"
        if fault:
            self._reject(fault, number, stage, index, f"{sample.question} -> {answer.text}")
        else:
            self.counts.kept += 1
            self.samples.append(sample)

    def _reject(self, reason: str, number: int, stage: str, index: int, text: str) -> None:
        location = f"round {number}, {stage} {index}"
        self.counts.skip(reason, f"{location}: {text[:60]!r}")
        self.rejected.append({"reason": reason, "location": location, "text": text})

    def _examples(self, rng, seeds: list[Seed], kept: list[Seed]) -> list[str]:
        short = [seed for seed in seeds if len(words(seed.question)) <= self._rules.max_words]
        few = rng.sample(kept, min(self._settings.generated_shown, len(kept)))
        few += rng.sample(short or seeds, min(self._settings.seeds_shown, len(short or seeds)))
        rng.shuffle(few)
        return [_one_line(seed.question) for seed in few]

    def _shots(self, number: int, name: str, index: int, seeds: list[Seed]) -> list[Seed]:
        answered = [seed for seed in seeds if seed.answer]
        rng = self._cache.rng(number, name, index)
        return rng.sample(answered, min(_SHOTS, len(answered)))

    def _check_react_seeds(self) -> None:
        for seed in self._react_seeds:
            where = f"the worked example {seed.question[:60]!r}"
            unknown = [name for name in seed.tools if name not in self._tools]
            if unknown or not seed.answer:
                raise DataError(
                    f"unknown tools {unknown}." if unknown else "no transcript.",
                    where,
                    f"the tools are {', '.join(self._tools)}.",
                )
            try:
                react.check_calls(
                    react.parse(seed.answer), [self._tools[name] for name in seed.tools]
                )
            except react.Malformed as reason:
                raise DataError(
                    f"the transcript has {reason}.", where, "correct the seed."
                ) from None


def parse_list(text: str, first: int, *, complete: bool) -> list[str]:
    """Returns the items of a numbered list whose first number, "`first`.", ended the prompt.

    Args:
      complete: whether the text is complete; if not, the last item is dropped.

    Example:
      >>> parse_list(" Name a bird.\\n10. Write a poem\\nabout it.\\n11. Expl", 9, complete=False)
      ['Name a bird.', 'Write a poem about it.']
    """
    text = text.strip()
    if not _ITEM.match(text):  # most models do not repeat the number in the prompt
        text = f"{first}. {text}"
    items = _ITEM.split(text)[1:]
    items = [_one_line(item) for item in items]
    return [item for item in (items if complete else items[:-1]) if item]


def read_seeds(path: str | os.PathLike, counts: Counts) -> list[Seed]:
    """Reads seeds from a .json or .jsonl file.

    Skips and counts rows without a question or with tool use. Formats: self-instruct's
    ("instruction" and "instances" of "input" and "output"), and those of read_conversations, of
    which the first question and answer are used. The samples kept in one run can therefore seed the
    next. An answer is optional.

    Raises:
      DataError: the file is missing, is corrupted, has an unknown format or has no usable row.
    """
    seeds = []
    for where, row in read_rows(path):
        try:
            instances = row.get("instances")
            if isinstance(instances, list) and instances and isinstance(instances[0], dict):
                row = {
                    "instruction": row.get("instruction"),
                    **{key: instances[0].get(key) for key in ("input", "output")},
                }
            turns = [turn for turn in turns_of(row, where) if turn[0] != "system"]
            if not turns or turns[0][0] != "user" or not turns[0][1].strip():
                raise Skipped("without a question")
            if react.is_prompt(turns[0][1]):
                raise Skipped("a question for tools")
        except Skipped as reason:
            counts.skip(str(reason), where)
            continue
        answer = turns[1][1] if len(turns) > 1 and turns[1][0] == "assistant" else ""
        seeds.append(Seed(turns[0][1], answer if answer.strip() else None))
        counts.kept += 1
    if not seeds:
        raise DataError(
            f"no usable seeds: {counts}.",
            str(path),
            'write one {"instruction": ...} per line.',
        )
    return seeds


def read_react_seeds(path: str | os.PathLike) -> list[Seed]:
    """Reads worked examples: {"question": ..., "tools": [names], "answer": "Thought: ..."}.

    Raises:
      DataError: the file is missing or corrupted, or a row has another format.
    """
    seeds = []
    for where, row in read_rows(path):
        question, tools, answer = (row.get(key) for key in ("question", "tools", "answer"))
        if not (
            isinstance(question, str)
            and isinstance(answer, str)
            and isinstance(tools, list)
            and tools
            and all(isinstance(name, str) for name in tools)
        ):
            raise DataError(
                "this row is not a worked example.",
                where,
                'write {"question": ..., "tools": [names], "answer": "Thought: ..."}.',
            )
        seeds.append(Seed(question, answer, tuple(tools)))
    return seeds


def _list_conversation(instruction: str, examples: list[str]) -> list[Turn]:
    shown = "\n".join(f"{number}. {text}" for number, text in enumerate(examples, 1))
    return [("user", instruction), ("assistant", f"{shown}\n{len(examples) + 1}.")]


def _one_line(text: str) -> str:
    return " ".join(text.split())
