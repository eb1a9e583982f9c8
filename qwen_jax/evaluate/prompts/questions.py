"""The questions of a task that are scored, with their prompts."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from qwen_jax.errors import DataError
from qwen_jax.evaluate import generation, likelihood
from qwen_jax.evaluate.data_files import DataFolders
from qwen_jax.evaluate.samples.sampling import GREEDY, Sampling
from qwen_jax.evaluate.task import Example, Questions, Task
from qwen_jax.tokenizer.bpe import Tokenizer


class Work(NamedTuple):
    """A task's examples that are to be scored, with the worked examples of their prompts.

    Attributes:
      dropped: as in Questions.
      sampling: of the completions.
    """

    task: Task
    examples: tuple[Example, ...]
    shots: Mapping[str, tuple[Example, ...]]
    dropped: int = 0
    sampling: Sampling = GREEDY

    @property
    def sampled(self) -> tuple[Example, ...]:
        """The examples, each as often as it is sampled; choices are compared once."""
        if self.sampling.samples == 1 or self.task.choices is not None:
            return self.examples
        return tuple(
            dataclasses.replace(example, sample=number)
            for example in self.examples
            for number in range(self.sampling.samples)
        )

    def shots_of(self, example: Example) -> tuple[Example, ...]:
        own = self.shots.get(example.question, self.shots.get(example.subject, ()))
        return own[: self.task.num_shots]

    def encode(self, example: Example, tokenizer: Tokenizer, max_length: int) -> Any:
        """Returns an example as likelihood.Question or generation.Prompt.

        Raises:
          DataError: it does not fit into `max_length` tokens.
        """
        shots = self.shots_of(example)
        if self.task.choices is not None:
            return likelihood.encode(self.task, example, shots, tokenizer, max_length)
        return generation.encode(self.task, example, shots, tokenizer, max_length, self.sampling)

    def prompt(self, example: Example) -> str:
        return self.task.shown(example, self.shots_of(example))

    def log_dropped(self, log: Callable[[str], None]) -> None:
        """Logs how many rows of the files are not among the examples."""
        if self.dropped:
            log(f"note: {self.task.key}: rows without a right answer, left out: {self.dropped}")


def read(task: Task, data: DataFolders, limit: int | None) -> Work:
    """Returns the questions of a task.

    Args:
      limit: number of examples; they are spread evenly over the set. None: all.

    Raises:
      DataError: files are missing, damaged, or of another version.
    """
    try:
        with data.located():
            questions: Questions = task.read(data)
    except DataError as error:
        raise DataError(
            " ".join([error.what, *data.differing()]), error.where, error.fix
        ) from error
    examples = questions.examples
    if limit is not None and limit < len(examples):
        examples = tuple(examples[i * len(examples) // limit] for i in range(limit))
    return Work(task, examples, questions.shots, questions.dropped)


def read_all(tasks: Sequence[Task], data: DataFolders, limit: int | None) -> list[Work]:
    """Returns the questions of all tasks.

    Args:
      limit: as in `read`.

    Raises:
      DataError: files are missing, damaged, or of another version; names those of all tasks.
    """
    found, errors = [], {}
    for task in tasks:
        try:
            found.append(read(task, data, limit))
        except DataError as error:
            errors.setdefault(str(error), (task.key, error))
    if len(errors) == 1:
        raise next(iter(errors.values()))[1]
    if errors:
        lines = [
            f"{key}: {error.what} ({error.where}) {error.fix}" for key, error in errors.values()
        ]
        raise DataError(
            "\n         ".join([f"the data of {len(lines)} tasks cannot be read.", *lines]),
            f"--data={','.join(map(str, data.folders))}",
            "get these files, and add their folders to --data.",
        )
    return found


def hash_of(work: Work) -> str:
    """Returns a SHA-256 over all prompts and choices."""
    digest = hashlib.sha256()
    for example in work.examples:
        choices = [] if work.task.choices is None else work.task.choices(example)
        line = [example.id, work.prompt(example), *choices, example.answer]
        digest.update(json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def prompts(work: Work) -> Iterator[dict[str, Any]]:
    """Yields every prompt as a record, without a model."""
    for example in work.examples:
        choices = None if work.task.choices is None else list(work.task.choices(example))
        yield {
            "task": work.task.key,
            "id": example.id,
            "prompt": work.prompt(example),
            "choices": choices,
        }
