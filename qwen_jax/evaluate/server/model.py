"""A server as a source of samples for the harness.

An example that the server refuses, such as a prompt longer than its context, is counted as an error
and is wrong. It is tried again when the evaluation is run again.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from qwen_jax.errors import ConfigError
from qwen_jax.evaluate import generation, likelihood
from qwen_jax.evaluate.prompts.questions import Work
from qwen_jax.evaluate.server import choices, completions, threads
from qwen_jax.evaluate.server.client import Client, Refused, Server
from qwen_jax.evaluate.task import Example, Item
from qwen_jax.tokenizer.load import load_tokenizer

_MAX_REFUSED = 5  # in a row from the beginning: then it is not the example


class ServedModel:
    """A model behind a server.

    Args:
      unsafe: run programs even where the kernel isolates neither files nor network.

    Raises:
      ConfigError: the URL or the model's name is wrong.
      ServerError: the server does not answer.
    """

    def __init__(self, server: Server, *, unsafe: bool = False):
        self._server, self.unsafe = server, unsafe
        self.tokenizer = None if server.tokenizer is None else load_tokenizer(server.tokenizer)
        self.client = Client(server)

    def encode(self, work: Work, examples: Sequence[Example]) -> list[tuple[Example, str]]:
        """Returns each example with its prompt."""
        return [(one, work.prompt(one)) for one in examples]

    def samples(self, work: Work, items: Sequence[tuple[Example, str]]) -> Iterator[dict[str, Any]]:
        """Yields the sample of each example, as answers arrive.

        Raises:
          ServerError: the server does not answer.
          ConfigError: it refuses every request.
          DataError: an answer cannot be used; names the example.
        """
        answered = refused = 0
        try:
            found = threads.completed(
                lambda pair: self._answer(work, *pair), items, threads=self._server.concurrency
            )
            for index, answer in tqdm(found, desc=work.task.key, total=len(items), unit=""):
                example, prompt = items[index]
                if isinstance(answer, Refused):
                    refused += 1
                    if not answered and refused >= min(_MAX_REFUSED, len(items)):
                        raise ConfigError(
                            f"the server refuses every request: {answer.what}",
                            f"{work.task.key} {example.id}",
                            answer.fix,
                        ) from answer
                else:
                    answered += 1
                yield self._sample(work, Item(example, prompt, 0), answer)
        except BaseException:
            self.client.close()
            raise

    def _answer(self, work: Work, example: Example, prompt: str) -> Any:
        """The server's answer, or why it refused the request."""
        task = work.task
        try:
            if task.choices is None:
                messages = task.messages(example, work.shots_of(example))
                return self._complete(work, example, prompt, messages)
            where = f"{task.key} {example.id}"
            return choices.score(self.client, prompt, task.choices(example), self.tokenizer, where)
        except Refused as error:
            return error

    def _complete(
        self, work: Work, example: Example, prompt: str, messages: Sequence[tuple[str, str]]
    ) -> tuple[generation.Completion, int | None]:
        """Returns the completion, or all of them as one if the task goes on; and prompt tokens."""
        task = work.task
        assert task.generation is not None
        sampling = completions.sampling_of(work.sampling, task, example)
        found, size = completions.complete(self.client, task, prompt, messages, sampling)
        while step := task.generation.following(found.text, example, unsafe=self.unsafe):
            after, _ = completions.complete(
                self.client, task, "", step.messages, sampling, begun=step.begun
            )
            lengths = (found.tokens, after.tokens)
            total = None if None in lengths else sum(filter(None, lengths))
            found = generation.Completion(step.transcript + after.text, after.finish, total)
        return found, size

    def _sample(self, work: Work, item: Item, answer: Any) -> dict[str, Any]:
        task = work.task
        if isinstance(answer, Refused):
            return _failed(item, answer)
        if isinstance(answer, choices.Likelihoods):
            assert task.choices is not None
            return likelihood.compared(
                item,
                task.choices(item.example),
                answer.logprobs,
                task,
                prompt_tokens=answer.prompt_tokens,
                separate=answer.separate,
            )
        completion, length = answer
        return generation.sample(item, completion, task, prompt_tokens=length, unsafe=self.unsafe)


def _failed(item: Item, error: Refused) -> dict[str, Any]:
    """The record of an example without an answer."""
    return {
        **item.example.identity,
        "prompt": item.prompt,
        "gold": item.example.answer,
        "extracted": None,
        "rule": "refused by the server",
        "correct": False,
        "truncated": 0,
        "error": error.what,
    }
