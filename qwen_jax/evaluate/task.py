"""What a benchmark is: its files, prompts, scorer and published scores. Report: 2.6.

A task is data. It has no access to the model: the harness sends its prompts to one, and gives back
log-probabilities of choices, or a completion.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from qwen_jax.evaluate.data_files import DataFolders

# Columns of distributions.
_QUESTIONS = ("question", "problem", "query", "prompt", "original_text", "text")
_SOLUTIONS = ("answer", "solution", "canonical_solution", "code", "test", "test_list")
_LETTERS = frozenset("ABCDEFGHIJ")
_MIN_SOLUTION = 40  # characters
LM_EVAL_MAX_NEW_TOKENS = 256  # of lm-eval's tasks that do not say


@dataclasses.dataclass(frozen=True)
class Example:
    """A question of a benchmark, as its distribution has it.

    Attributes:
      index: position in its file, from 0.
      fields: the question's own columns, as text.
      answer: the right answer in the task's own form, such as a letter.
      subject: the part of the benchmark that it belongs to; "" if there are none.
      sample: which of several completions of the question this is, from 0; None: the only one.
    """

    index: int
    fields: Mapping[str, Any]
    answer: str
    subject: str = ""
    sample: int | None = None

    @property
    def question(self) -> str:
        """What all samples of the question have in common."""
        return f"{self.subject}/{self.index}" if self.subject else str(self.index)

    @property
    def id(self) -> str:
        return self.question if self.sample is None else f"{self.question}#{self.sample}"

    @property
    def identity(self) -> dict[str, Any]:
        """The first fields of its record."""
        found: dict[str, Any] = {"id": self.id, "subject": self.subject}
        return (
            found
            if self.sample is None
            else found
            | {
                "question": self.question,
                "sample": self.sample,
            }
        )

    def texts(self) -> tuple[str, ...]:
        """Returns what identifies the example in a text: its question with choices; its solution.

        Answers of a few characters are left out: they are everywhere.
        """
        question = next((str(self.fields[key]) for key in _QUESTIONS if self.fields.get(key)), "")
        choices = [str(self.fields[key]) for key in sorted(self.fields) if key in _LETTERS]
        found = ["\n".join([question, *choices])] if question else []
        for key in _SOLUTIONS:
            value = self.fields.get(key, "")
            text = "\n".join(map(str, value)) if isinstance(value, list) else str(value)
            text = re.sub(r"<<[^<>]*>>", "", text)  # calculator annotations of GSM8K
            if len(text) >= _MIN_SOLUTION:
                found.append(text)
        return tuple(found)


@dataclasses.dataclass(frozen=True)
class Questions:
    """A benchmark that was read.

    Attributes:
      examples: what is scored, in the order of the distribution.
      shots: worked examples by subject, in the order in which prompts show them; by the id of an
        example if it has its own.
      dropped: rows of the files that have no right answer, and are not in `examples`.
    """

    examples: tuple[Example, ...]
    shots: Mapping[str, tuple[Example, ...]] = dataclasses.field(default_factory=dict)
    dropped: int = 0


@dataclasses.dataclass(frozen=True)
class Item:
    """An example with its prompt, encoded for a model.

    Attributes:
      lost: tokens at the beginning of the prompt that do not fit the model's context.
    """

    example: Example
    prompt: str
    lost: int


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a completion is right.

    Attributes:
      correct: the verdict; an abstention is wrong.
      extracted: the answer that was found in the completion; None: none.
      rule: the rule that found it.
      also: other verdicts of the protocol by name, true and false or from 0 to 1; their means are
        scored next to this one.
    """

    correct: bool
    extracted: str | None
    rule: str
    also: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Next(NamedTuple):
    """What a model reads after a tool has answered it, or a person went on.

    Attributes:
      messages: the turns, (role, content), of which the last is a user's.
      begun: the assistant's answer so far, which the model continues.
      transcript: the text of the example so far, which the next completion is appended to.
    """

    messages: list[tuple[str, str]]
    begun: str
    transcript: str


@dataclasses.dataclass(frozen=True)
class Generation:
    """How a completion ends and is graded.

    Attributes:
      stops: a completion ends before the first of these strings.
      max_new_tokens: maximum length.
      grade: completion, example -> verdict; a sandboxed one also takes `unsafe`.
      sandboxed: whether grading runs what the model wrote.
      symbolic: whether grading compares mathematical answers, which may take sympy.
      language: of the programs that are run, as in sandbox.run.
      gold: example -> a right completion, which measures the protocol's ceiling; None: not known.
      floors: name -> (example -> a completion that needs no model), scored next to a model's.
      follow: text so far, example -> what the model reads next, or None at the end; a sandboxed one
        also takes `unsafe`. What is graded is then the whole text. None: there is one completion.
    """

    stops: tuple[str, ...]
    max_new_tokens: int
    grade: Callable[..., Verdict]
    sandboxed: bool = False
    symbolic: bool = False
    language: str = "python"
    gold: Callable[[Example], str] | None = None
    floors: Mapping[str, Callable[[Example], str]] = dataclasses.field(default_factory=dict)
    follow: Callable[..., Next | None] | None = None

    def verdict(self, text: str, example: Example, *, unsafe: bool = False) -> Verdict:
        """Grades a completion that was cut at the stop strings.

        Args:
          unsafe: run programs even where the kernel isolates neither files nor network.

        Raises:
          SandboxError: the completion has to be run, and cannot be isolated here.
        """
        if self.sandboxed:
            return self.grade(text, example, unsafe=unsafe)
        return self.grade(text, example)

    def following(self, text: str, example: Example, *, unsafe: bool = False) -> Next | None:
        """Returns what the model reads after `text`; None: the example is complete.

        Raises:
          SandboxError: as verdict does.
        """
        if self.follow is None:
            return None
        return self.follow(text, example, **({"unsafe": unsafe} if self.sandboxed else {}))


@dataclasses.dataclass(frozen=True)
class Task:
    """A benchmark under a protocol.

    Attributes:
      name: such as "mmlu".
      protocol: whose prompts and rules these are: "qwen" (the released scripts) or "lm_eval".
      read: reads the distribution's files.
      num_shots: worked examples in a prompt.
      template: example, its worked examples -> the prompt; for a chat task, the user's turn.
      choices: example -> continuations whose likelihood is compared; None: `generation` is used.
      letters: answer of each choice, in order; an example may have fewer choices.
      per_byte: whether the choice with the highest log-probability per byte wins (acc_norm of
        lm-eval), not the one with the highest sum. Results have both.
      generation: how to sample and grade a completion; None: `choices` are compared.
      macro: whether the score is the mean over subjects, not over examples.
      points: subject -> what a right answer is worth there; the score is the share of all points.
        Empty: every example counts the same.
      groups: named groups of subjects.
      chat: whether the prompt is a user's turn, to be rendered with the chat template.
      response: worked example -> the assistant's turn; each example is then two turns before the
        user's last one, which has none of them. None: `template` shows them in the user's turn.
      published: name of a model -> its score in percent.
      source: table or section of the report.
      files: files that are read, for errors and for --help.
      counts: number of examples in the published files.
      checked: whether prompts were compared with published ones.
    """

    name: str
    protocol: str
    read: Callable[[DataFolders], Questions]
    template: Callable[[Example, Sequence[Example]], str]
    files: tuple[str, ...]
    counts: int
    source: str
    num_shots: int = 0
    choices: Callable[[Example], tuple[str, ...]] | None = None
    letters: Sequence[str] = "ABCD"
    per_byte: bool = False
    generation: Generation | None = None
    macro: bool = False
    points: Mapping[str, float] = dataclasses.field(default_factory=dict)
    groups: Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict)
    chat: bool = False
    response: Callable[[Example], str] | None = None
    published: Mapping[str, float] = dataclasses.field(default_factory=dict)
    checked: bool = True

    def __post_init__(self):
        assert (self.choices is None) != (self.generation is None), self.name
        assert not (self.macro and self.points), self.name

    @property
    def key(self) -> str:
        """The name for --tasks: a bare name has the protocol "qwen"."""
        return self.name if self.protocol == "qwen" else f"{self.name}@{self.protocol}"

    def prompt(self, example: Example, shots: Sequence[Example]) -> str:
        """Returns the prompt of an example; for chat, the user's last turn."""
        return self.template(example, () if self.response is not None else shots)

    def messages(self, example: Example, shots: Sequence[Example]) -> list[tuple[str, str]]:
        """Returns the turns of a chat task, (role, content), to be rendered."""
        found = []
        if self.response is not None:
            for one in shots:
                found += [("user", self.prompt(one, ())), ("assistant", self.response(one))]
        return [*found, ("user", self.prompt(example, shots))]

    def shown(self, example: Example, shots: Sequence[Example]) -> str:
        """Returns all that a model is given, as text; turns are marked if there are several."""
        if self.response is None:
            return self.prompt(example, shots)
        turns = self.messages(example, shots)
        return "\n\n".join(f"[{role}]\n{content}" for role, content in turns)


@dataclasses.dataclass(frozen=True)
class Mean:
    """The mean of several tasks' scores, as a column of the report has it.

    Attributes:
      tasks: keys of tasks on the same problems.
      published: name of a model -> its mean in percent.
    """

    tasks: tuple[str, ...]
    published: Mapping[str, float] = dataclasses.field(default_factory=dict)
