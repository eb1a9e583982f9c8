"""Scores what a model writes: prompts through the engine, and a verdict for each completion."""

import collections
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from qwen_jax.errors import DataError
from qwen_jax.evaluate.samples.sampling import GREEDY, Sampling
from qwen_jax.evaluate.task import Example, Item, Task
from qwen_jax.inference.engine import Engine
from qwen_jax.inference.request import Request
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.inference.token_ids import interned
from qwen_jax.parallel import distributed
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.template import tokens as template

_GRADING_SECONDS = 24 * 3600  # until a process is missing; one that dies is noticed earlier
_barriers = itertools.count()


@dataclasses.dataclass(frozen=True)
class Prompt(Item):
    """An example as a request to the engine."""

    request: Request


class Completion(NamedTuple):
    """What a model wrote.

    Attributes:
      text: ends before the first stop string.
      finish: "stop", "length", or another reason that a server gave.
      tokens: its length; None: not known.
    """

    text: str
    finish: str
    tokens: int | None


def encode(
    task: Task,
    example: Example,
    shots: Sequence[Example],
    tokenizer: Tokenizer,
    max_length: int,
    sampling: Sampling = GREEDY,
) -> Prompt:
    """Returns the request of an example, with the task's stop strings.

    The turns of a chat task are rendered by the model's chat template, with `sampling`'s variables.

    A prompt that leaves no room for max_new_tokens loses tokens from its beginning; of a chat
    prompt, from the beginning of the user's turn.

    Raises:
      DataError: the model's context has no room for a completion; names the example.
    """
    assert task.generation is not None
    prompt, settings = task.shown(example, shots), task.generation
    room = max_length - settings.max_new_tokens
    if task.chat:
        turns = task.messages(example, shots)
        tokens = tuple(template.prompt(tokenizer, turns, **sampling.variables).tolist())
        stop_ids = template.stop_ids(tokenizer)
    else:
        tokens, stop_ids = interned(tokenizer.encode(prompt)), (tokenizer.end_of_text,)
    lost = max(0, len(tokens) - room)
    if room < 1 or task.chat and lost:
        raise DataError(
            f"the prompt has {len(tokens):,} tokens and the completion up to "
            f"{settings.max_new_tokens:,}, but the model's context has {max_length:,}.",
            f"{task.key} {example.id}",
            "use a model with a longer context: a larger --max_length, or in training "
            "--model.context_length.",
        )
    seed = sampling.seed_of(task.key, example.question, example.sample or 0)
    params = SamplingParams(
        max_new_tokens=settings.max_new_tokens,
        stop=settings.stops,
        stop_token_ids=stop_ids,
        seed=0 if sampling.is_greedy else seed,
        **sampling.settings,
    )
    request = Request(tokens[lost:] or (tokenizer.end_of_text,), params)
    return Prompt(example, prompt, lost, request)


def generate(
    engine: Engine,
    items: Sequence[Prompt],
    task: Task,
    *,
    progress: Callable[[int], object],
    unsafe: bool = False,
    grades: bool = True,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (index of an item, its sample), as completions end.

    Items with equal prompts and seeds get one completion. Greedy ones have the same seed. A task
    that goes on after a completion (Generation.follow) gets further ones.

    Args:
      progress: receives 1 for each item.
      unsafe: as in Generation.verdict.
      grades: whether completions are graded; samples are empty otherwise.
    """
    equal: dict[Request, list[int]] = {}
    for index, item in enumerate(items):
        equal.setdefault(item.request, []).append(index)
    texts = {index: "" for index in range(len(items))}  # before the current completion
    lengths = dict.fromkeys(texts, 0)
    waiting = collections.deque(equal.items())
    running: dict[int, tuple[list[int], list[str]]] = {}
    tokens: dict[int, int] = {}
    ended = False
    while running or waiting:
        # Twice the slots: the engine always has a prompt to start with.
        while waiting and len(running) < 2 * engine.max_num_seqs:
            request, indices = waiting.popleft()
            (request_id,) = engine.submit(request)
            running[request_id], tokens[request_id] = (indices, []), 0
        if ended:  # devices of other processes wait for this one only a short time
            distributed.barrier(f"completions {next(_barriers)}", seconds=_GRADING_SECONDS)
        ended = False
        for event in engine.step():
            indices, parts = running[event.request_id]
            parts.append(event.text)
            tokens[event.request_id] += event.token is not None
            if event.finish is None:
                continue
            ended, following = True, {}
            del running[event.request_id]
            length = tokens.pop(event.request_id)
            for index in indices:
                item, text = items[index], texts[index] + "".join(parts)
                lengths[index] += length
                step = _following(task, text, item, engine, unsafe=unsafe)
                if step is not None:
                    request, texts[index] = step
                    following.setdefault(request, []).append(index)
                    continue
                progress(1)
                done = Completion(text, event.finish, lengths[index])
                size = len(item.request.prompt)
                yield (
                    index,
                    sample(item, done, task, prompt_tokens=size, unsafe=unsafe) if grades else {},
                )
            waiting.extendleft(following.items())


def _following(
    task: Task, text: str, item: Prompt, engine: Engine, *, unsafe: bool
) -> tuple[Request, str] | None:
    """Returns the next request of an example, and the text before its completion.

    None: the example is complete, or what follows leaves no room for a completion.
    """
    assert task.generation is not None
    if task.generation.follow is None:
        return None
    assert engine.tokenizer is not None
    found = None
    if jax.process_index() == 0:  # what a tool returns may differ between processes
        found = task.generation.following(text, item.example, unsafe=unsafe)
    step = json.loads(distributed.broadcast(json.dumps(found)))
    if step is None:
        return None
    messages, begun, transcript = step
    turns = template.prompt(engine.tokenizer, [tuple(one) for one in messages]).tolist()
    ids = (*turns, *engine.tokenizer.encode(begun))
    if len(ids) + item.request.sampling.max_new_tokens > engine.max_model_len:
        return None
    return Request(ids, item.request.sampling), transcript


def sample(
    item: Item,
    completion: Completion,
    task: Task,
    *,
    prompt_tokens: int | None,
    unsafe: bool = False,
) -> dict[str, Any]:
    """Returns the record of an example: its completion and the verdict.

    Args:
      prompt_tokens: length of what the model read; None: not known.
      unsafe: as in Generation.verdict.

    Raises:
      SandboxError: the completion has to be run, and cannot be isolated here.
    """
    assert task.generation is not None
    verdict = task.generation.verdict(completion.text, item.example, unsafe=unsafe)
    return {
        **item.example.identity,
        "prompt": item.prompt,
        "completion": completion.text,
        "finish": completion.finish,
        "completion_tokens": completion.tokens,
        "gold": item.example.answer,
        "extracted": verdict.extracted,
        "rule": verdict.rule,
        "correct": verdict.correct,
        **{f"correct_{name}": correct for name, correct in verdict.also.items()},
        "prompt_tokens": prompt_tokens,
        "truncated": item.lost,
    }
