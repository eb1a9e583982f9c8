"""Answers of a model to questions: by the engine, by a server, or from a file.

Answers are written as they finish. To resume a killed run, run the same command again.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from qwen_jax.errors import ConfigError, DataError
from qwen_jax.evaluate.pairwise.questions import Question
from qwen_jax.evaluate.pairwise.sheet import Answer
from qwen_jax.evaluate.server.client import Client, Flags, Server
from qwen_jax.evaluate.server.conversations import Conversation, answers
from qwen_jax.inference import chat, jsonl
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.inference.warmup import start_engine
from qwen_jax.pretrained.load import load_model
from qwen_jax.utils.append_only import PATHS, AppendOnly
from qwen_jax.utils.jsonl import read_rows, write_rows

_TEXTS = ("answer", "response", "completion", "output", "text")  # keys of an answer in a file
_SENT = {"max_new_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p",
         "top_k": "top_k", "repetition_penalty": "repetition_penalty", "stop": "stop"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the answers of a model come from.

    Attributes:
      name: the model's name in tables.
      path: a model folder, a .jsonl file of answers, or a server as URL#MODEL.
      flag: the flag that names it, for errors.
    """

    name: str
    path: str
    flag: str

    @property
    def is_file(self) -> bool:
        return not _is_url(self.path) and pathlib.Path(self.path).suffix in (".json", ".jsonl")


def name_sources(paths: Sequence[tuple[str, str]], names: Sequence[str] = ()) -> list[Source]:
    """Returns the sources of (flag, path) pairs, with their names.

    Args:
      names: a name for each; empty: the last part of each path, or the model's name of a server.

    Raises:
      ConfigError: two have the same name, or there is another number of names.
    """
    if names and len(names) != len(paths):
        raise ConfigError(
            f"{len(names)} names for {len(paths)} models.", "--names", "give one to each model."
        )
    found = [
        Source(name, path, flag)
        for name, (flag, path) in zip(names or [_name(p) for _, p in paths], paths, strict=True)
    ]
    for index, one in enumerate(found):
        for other in found[:index]:
            if one.name == other.name:
                raise ConfigError(
                    f"{other.flag} and {one.flag} have the same name, {one.name!r}.",
                    "--names",
                    "give each model its own name, as in --names=before,after.",
                )
    return found


def _is_url(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def _name(path: str) -> str:
    if _is_url(path):
        url, _, model = path.partition("#")
        return model or url.partition("://")[2].partition("/")[0]
    path = path.rstrip("/")
    return pathlib.Path(path).name.partition(".json")[0] or path


def answers_of(
    source: Source,
    questions: Sequence[Question],
    folder: pathlib.Path,
    settings: Sequence[SamplingParams],
    *,
    max_num_seqs: int = 8,
    context: int | None = None,
    key_variable: str = Server.key_variable,
    log: Callable[[str], None] = print,
) -> list[list[Answer]]:
    """Returns the answers of a model to each question, those of the first settings first.

    Args:
      folder: where the prompts and completions are written, in files named after the source.
      settings: sampling parameters; each gives `n` answers. Those of a file have their own.
      max_num_seqs: completions decoded at once, or requests sent to a server at once.
      context: as in experiments.generate.
      key_variable: environment variable with a server's API key.
      log: receives messages about the context and the numbers of answers.

    Raises:
      ConfigError: the model or the settings do not fit, or `folder` belongs to another run.
      ServerError: a server refuses a request, or does not answer.
      DataError: a prompt leaves no room for an answer, or a file lacks an answer.
    """
    if source.is_file:
        return [[answer] for answer in _from_file(source, questions)]
    log(f"{source.name}: answers of {source.path}")
    folder.mkdir(parents=True, exist_ok=True)
    found: list[list[Answer]] = [[] for _ in questions]
    stem = "".join(c if c.isalnum() or c in "._-" else "_" for c in source.name)[:80]
    paths = [
        folder / (f"{stem}.jsonl" if len(settings) == 1 else f"{stem}_{number}.jsonl")
        for number in range(len(settings))
    ]
    if _is_url(source.path):
        server = _server(source, key_variable, max_num_seqs)
        for path, sampling in zip(paths, settings, strict=True):
            _from_server(source.name, server, questions, path, sampling, found)
        return found
    prompts = folder / "prompts.jsonl"
    write_rows(prompts, ({"id": q.id, "messages": q.row()["messages"]} for q in questions))
    _from_engine(
        source, prompts, list(zip(paths, settings, strict=True)), max_num_seqs, context, log
    )
    for path, sampling in zip(paths, settings, strict=True):
        for into, (_, row) in zip(found, read_rows(path), strict=True):
            into += [
                Answer(source.name, one["text"], "", _recorded(sampling, index), one["finish"])
                for index, one in enumerate(row["answers"])
            ]
    return found


def _from_engine(
    source: Source,
    prompts: pathlib.Path,
    runs: Sequence[tuple[pathlib.Path, SamplingParams]],
    max_num_seqs: int,
    context: int | None,
    log: Callable[[str], None],
) -> None:
    """Writes the completions of each run to its file; loads the model once."""
    model, params, tokenizer = load_model(source.path)
    length, sentence = chat.context(model, context)
    log(f"context: {sentence}")
    start = functools.cache(
        lambda: start_engine(
            params, model, tokenizer, max_num_seqs=max_num_seqs, context=length, cache_dtype=None
        )
    )
    made_from = {
        "model": jsonl.fingerprint(model, params),
        "cache_dtype": None,
        PATHS: {"model": source.path, "tokenizer": source.path},
    }
    for path, sampling in runs:
        lines = jsonl.Source(prompts, tokenizer, sampling, context=length)
        jsonl.complete_file(lines, path, made_from, start, max_num_seqs=max_num_seqs, log=log)


def _server(source: Source, key_variable: str, concurrency: int) -> Server:
    """Returns the server of URL or URL#MODEL."""
    url, _, model = source.path.partition("#")
    flags = Flags(source.flag, f"{source.flag}=URL#MODEL")
    return Server(url, model, key_variable, concurrency, flags=flags)


def _from_server(
    name: str,
    server: Server,
    questions: Sequence[Question],
    path: pathlib.Path,
    sampling: SamplingParams,
    found: list[list[Answer]],
) -> None:
    """Adds a server's answers to `found`; sends the prompts that the file has no answer to yet."""
    model = server.model or Client(server).model
    sent = server_settings(sampling)
    provenance = {"server": server.url, "model": model, **dataclasses.asdict(sampling)}
    with AppendOnly(path, provenance) as file:
        known = {(row["id"], row["sample"], row["prompt"]): row for row in file.rows}
        missing = [
            (question, sample)
            for question in questions
            for sample in range(sampling.n)
            if (question.id, sample, _key(question)) not in known
        ]
        wanted = [
            Conversation(
                f"prompt {question.id!r}",
                question.turns,
                {**sent, "seed": (sampling.seed + sample) % 2**31},
            )
            for question, sample in missing
        ]
        for index, text, finish in answers(server, wanted):
            question, sample = missing[index]
            row = {"id": question.id, "sample": sample, "prompt": _key(question), "text": text,
                   "finish": finish}  # fmt: skip
            file.add(row)
            known[row["id"], row["sample"], row["prompt"]] = row
    for into, question in zip(found, questions, strict=True):
        for sample in range(sampling.n):
            row = known[question.id, sample, _key(question)]
            into.append(Answer(name, row["text"], "", _recorded(sampling, sample), row["finish"]))


def server_settings(sampling: SamplingParams) -> dict[str, Any]:
    """Returns the sampling parameters under OpenAI's names; those with their default are left out,
    because hosted servers refuse names that they do not know."""
    defaults = SamplingParams(max_new_tokens=1, temperature=1.0)
    sent = {}
    for name, theirs in _SENT.items():
        value = getattr(sampling, name)
        if value != getattr(defaults, name) or name == "max_new_tokens":
            sent[theirs] = list(value) if isinstance(value, tuple) else value
    return sent


def _from_file(source: Source, questions: Sequence[Question]) -> list[Answer]:
    """Reads answers by the ids of questions, or in their order if no row has an id."""
    rows = list(read_rows(source.path))
    by_id: dict[str, tuple[str, dict[str, Any]]] = {}
    for where, row in rows:
        if row.get("id") is not None:
            if str(row["id"]) in by_id:
                raise DataError(f"a second answer to {row['id']!r}.", where, "remove one of them.")
            by_id[str(row["id"])] = where, row
    if not by_id:
        if len(rows) != len(questions):
            raise DataError(
                f"{len(rows)} answers without ids, but {len(questions)} questions.",
                source.path,
                'give each row the "id" of its question.',
            )
        by_id = {question.id: row for question, row in zip(questions, rows, strict=True)}
    missing = [question.id for question in questions if question.id not in by_id]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(questions)} questions have no answer, such as {missing[0]!r}.",
            f"{source.flag}={source.path}",
            "add the answers, or compare on the questions that have one.",
        )
    return [_file_answer(source, *by_id[question.id]) for question in questions]


def _file_answer(source: Source, where: str, row: dict[str, Any]) -> Answer:
    given = row.get("answers")  # as experiments.generate writes them
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], dict):
        text, finish = given[0].get("text"), str(given[0].get("finish") or "")
    else:
        key = next((key for key in _TEXTS if isinstance(row.get(key), str)), None)
        text, finish = (row[key] if key else None), str(row.get("finish") or "")
    if not isinstance(text, str):
        raise DataError(
            f"the row has no single answer; its keys are {', '.join(map(str, row))[:200]}.",
            where,
            'write {"id": ..., "answer": ...}, or use a file of experiments.generate with n=1.',
        )
    return Answer(source.name, text, "", {}, finish)


def _recorded(sampling: SamplingParams, sample: int) -> dict[str, Any]:
    """Returns the settings that determine an answer, for its record."""
    names = ("temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "seed")
    return {name: getattr(sampling, name) for name in names} | {"sample": sample}


def _key(question: Question) -> str:
    return repr([list(turn) for turn in question.turns])
