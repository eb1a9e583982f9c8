"""An agent on a file of questions: JSONL in, JSONL out, each question with tools of its own."""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from qwen_jax.agent.events import Answer, Call, Event, Reply, Stopped
from qwen_jax.agent.loop import Budgets, run
from qwen_jax.agent.models.protocol import Model
from qwen_jax.agent.toolbox import Sources, opened
from qwen_jax.errors import DataError, QwenJaxError
from qwen_jax.utils.append_only import AppendOnly
from qwen_jax.utils.jsonl import read_rows

_QUESTION = ("prompt", "question")


def answer_file(
    model: Model,
    sources: Sources,
    budgets: Budgets,
    path: str | os.PathLike,
    output: str | os.PathLike,
    *,
    provenance: Mapping[str, Any],
    system: str = "",
    language: str = "en",
    log: Callable[[str], None] = print,
) -> None:
    """Answers every question of a file.

    A line is {"prompt": ...} or {"messages": [...]}, the last of which is a user's; other keys are
    copied. The output adds `answer` (null without one), `stopped` (why; null), `calls` and
    `tokens`, and the conversation as `messages`. Each question has a fresh interpreter and a copy
    of the working folder, OUTPUT.files/NUMBER, which stays if it has files. To resume a killed run,
    run it again.

    Args:
      provenance: what the answers depend on; a file is resumed only with the same.

    Raises:
      DataError: a line has no question.
      ConfigError: the output belongs to another run; or as `opened`.
    """
    rows = [(where, row, _messages(where, row, system)) for where, row in read_rows(path)]
    folder = pathlib.Path(f"{output}.files")
    with AppendOnly(output, dict(provenance)) as file:
        for number, (_, row, messages) in enumerate(rows):
            if number < len(file.rows):
                continue
            own = folder / f"{number:05}"
            shutil.rmtree(own, ignore_errors=True)  # of a run that was killed
            if sources.folder is not None:
                shutil.copytree(sources.folder, own)
            own.mkdir(parents=True, exist_ok=True)
            found = _answer(
                model, dataclasses.replace(sources, folder=str(own)), messages, budgets, language
            )
            for each in (own, folder):
                if not any(each.iterdir()):
                    each.rmdir()
            file.add({**row, **found})
            log(f"{number + 1} of {len(rows)}: {found['stopped'] or 'answered'}")


def _answer(
    model: Model,
    sources: Sources,
    messages: list[dict[str, Any]],
    budgets: Budgets,
    language: str,
) -> dict[str, Any]:
    calls = tokens = 0
    last: Event | None = None
    with opened(sources) as (tools, _):
        for last in run(model, tools, messages, budgets, language=language):
            calls += isinstance(last, Call)
            tokens += last.count if isinstance(last, Reply) else 0
    return {
        "answer": last.text if isinstance(last, Answer) else None,
        "stopped": last.reason if isinstance(last, Stopped) else None,
        "calls": calls,
        "tokens": tokens,
        "messages": messages,
    }


def _messages(where: str, row: Mapping[str, Any], system: str) -> list[dict[str, Any]]:
    found = [row[key] for key in _QUESTION if isinstance(row.get(key), str)]
    messages = row.get("messages")
    if len(found) == 1 and messages is None:
        messages = [{"role": "user", "content": found[0]}]
    if not isinstance(messages, list) or not messages or found and "messages" in row:
        raise _no_question(where)
    if not all(isinstance(each, dict) and "role" in each for each in messages):
        raise _no_question(where)
    if messages[-1]["role"] != "user" or not isinstance(messages[-1].get("content"), str):
        raise _no_question(where)
    messages = [dict(message) for message in messages]
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _no_question(where: str) -> QwenJaxError:
    return DataError(
        "the line has no question.",
        where,
        'write {"prompt": "..."}, or {"messages": [...]} that ends with a user\'s.',
    )
