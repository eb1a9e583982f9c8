"""Prompts in, answers out, a line of JSON each; killed at any moment, it goes on where it was.

A line is {"prompt": text} or {"messages": [...]}, with an "id" if it likes and any field of
sampling.SamplingParams. Its answer is
{"line": number, "id": ..., "answers": [{"text", "finish", "tokens"}]}.

Answers are appended to OUTPUT.partial as they end; when all are there they are put in the order of
the input and OUTPUT appears, whole. OUTPUT.run.json says what it was made from. The seed of a line
is the run's plus its place, so an answer depends neither on what it is computed with nor on when.
"""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError, DataError, QwenJaxError, unknown_name
from qwen_jax.inference.engine import Engine
from qwen_jax.inference.request import Request
from qwen_jax.inference.sampling import SamplingParams, check_stop_token_ids
from qwen_jax.tokenizer import chatml
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.types import Params
from qwen_jax.utils.append_only import check_same, open_alone, whole_lines
from qwen_jax.utils.files import atomic_write, read_json, write_json

_MOST_NAMED = 20  # bad lines in one error


# What a line gets where it does not say otherwise.
DEFAULTS = SamplingParams(max_new_tokens=200, temperature=0.7, top_p=0.95)


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the input, as it goes to the engine."""

    number: int  # from 1, as editors count
    id: Any  # the line's own; None if it has none
    request: Request


class Source:
    """The input file, read twice: once to find every fault, once to work through it."""

    def __init__(
        self,
        path: str | os.PathLike,
        tokenizer: Tokenizer,
        sampling: SamplingParams,
        *,
        context: int,
    ):
        self._path, self._tokenizer = pathlib.Path(path), tokenizer
        self._sampling, self._context = sampling, context

    def check(self) -> tuple[int, str]:
        """The number of lines with something in them, and the file's SHA-256.

        Raises:
          DataError: bad lines, by number; no lines; no such file.
        """
        bad, count, digest = [], 0, hashlib.sha256()
        for number, raw in self._raw():
            digest.update(raw)
            if not raw.strip():
                continue
            count += 1
            try:
                self._parse(number, raw)
            except QwenJaxError as error:
                bad.append(f"line {number}: {error.what}")
        if bad:
            more = [f"and {len(bad) - _MOST_NAMED} more"] if len(bad) > _MOST_NAMED else []
            named = "\n         ".join([f"{len(bad)} bad lines.", *bad[:_MOST_NAMED], *more])
            raise DataError(named, str(self._path), "correct them; nothing was run.")
        if not count:
            raise DataError("there are no lines.", str(self._path), "write one prompt a line.")
        return count, digest.hexdigest()

    def identity(self) -> dict[str, Any]:
        """What the answers depend on in addition to the file, as OUTPUT.run.json has it.

        A setting that is younger than the files in use is named only if it is set, so that older
        runs go on.
        """
        settings = dataclasses.asdict(self._sampling)
        if not settings["stop_token_ids"]:
            del settings["stop_token_ids"]
        return {
            "tokenizer": self._tokenizer.fingerprint,
            "context": self._context,
            **settings,
        }

    def __iter__(self) -> Iterator[Line]:
        for number, raw in self._raw():
            if raw.strip():
                yield self._parse(number, raw)

    def _raw(self) -> Iterator[tuple[int, bytes]]:
        try:
            with open(self._path, "rb") as file:
                yield from enumerate(file, start=1)
        except OSError as error:
            raise DataError(
                f"the prompts cannot be read: {error.strerror}.",
                str(self._path),
                "name a file with a line of JSON for each prompt.",
            ) from error

    def _parse(self, number: int, raw: bytes) -> Line:
        where = f"line {number}"
        try:
            fields = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise DataError(f"it is not JSON ({error}).", where, "write one object.") from None
        if not isinstance(fields, dict) or ("prompt" in fields) == ("messages" in fields):
            raise DataError(
                "it is not an object with either prompt or messages.",
                where,
                'write {"prompt": ...} or {"messages": [...]}.',
            )
        line_id = fields.pop("id", None)
        if "prompt" in fields:
            text = fields.pop("prompt")
            if not isinstance(text, str):
                raise DataError("the prompt is not text.", where, "write a string.")
            prompt = self._tokenizer.encode(text) or [self._tokenizer.end_of_text]
            stop_ids = (self._tokenizer.end_of_text,)
        else:
            messages = fields.pop("messages")
            prompt = chatml.prompt(
                messages if isinstance(messages, list) else [messages], self._tokenizer
            ).tolist()
            stop_ids = chatml.stop_ids(self._tokenizer)
        request = self._request(prompt, stop_ids, fields, number)
        if len(prompt) + request.sampling.max_new_tokens > self._context:
            raise DataError(
                f"{len(prompt)} tokens and {request.sampling.max_new_tokens} new ones are over "
                f"the context of {self._context}.",
                where,
                "shorten it.",
            )
        return Line(number, line_id, request)

    def _request(self, prompt, stop_ids, fields: dict[str, Any], number: int) -> Request:
        known = {field.name for field in dataclasses.fields(SamplingParams)}
        for name in fields:
            if name not in known:
                raise unknown_name(
                    "field", name, known | {"id", "prompt", "messages"}, f"line {number}", DataError
                )
        seed = (self._sampling.seed + number - 1) % 2**32
        sampling = dataclasses.replace(self._sampling, **{"seed": seed} | fields)
        sampling = sampling.also_ending_at(stop_ids)
        check_stop_token_ids(sampling, self._tokenizer.vocab_size)
        return Request(prompt, sampling)


class Output:
    """The output file as it grows. One process at a time; made before anything is computed.

    Args:
      identity: what the answers depend on. A file that was begun with another is refused.

    Raises:
      ConfigError: the file belongs to another run, another process writes it, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike, identity: dict[str, Any]):
        self.path = pathlib.Path(path)
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._record = self.path.with_name(self.path.name + ".run.json")
        identity = json.loads(json.dumps(identity))  # tuples become lists, as in the file
        self._file = open_alone(self._partial, self.path)
        try:
            self._same_run(identity)
        except ConfigError:
            self.close()
            raise
        self.complete = self.path.exists()
        self._places: dict[int, tuple[int, int]] = {}  # line -> offset and length in the partial
        self._read_places()

    @property
    def done(self) -> set[int]:
        """The numbers of the lines whose answers are there."""
        return set(self._places)

    def add(self, line: Line, answers: list[dict[str, Any]]) -> None:
        """Keeps a line's answers."""
        record = {"line": line.number} | ({} if line.id is None else {"id": line.id})
        raw = (
            json.dumps(record | {"answers": answers}, ensure_ascii=False).encode("utf-8", "replace")
            + b"\n"
        )
        offset = self._file.seek(0, os.SEEK_END)
        self._file.write(raw)
        self._file.flush()
        self._places[line.number] = offset, len(raw)

    def finish(self) -> None:
        """Puts the answers in order under their name."""
        with atomic_write(self.path) as file:
            for _, (offset, length) in sorted(self._places.items()):
                self._file.seek(offset)
                file.write(self._file.read(length))
        self.complete = True

    def close(self) -> None:
        """Lets go of the file; a partial one that is empty or not needed any more goes."""
        empty = self._file.seek(0, os.SEEK_END) == 0
        if getattr(self, "complete", False) or empty:
            self._partial.unlink(missing_ok=True)
        self._file.close()

    def _same_run(self, identity: dict[str, Any]) -> None:
        if self._record.exists():
            check_same(read_json(self._record), identity, self.path, self._record)
        elif self.path.exists():
            raise ConfigError(
                "the file is there, and not one of ours.", str(self.path), "name another file."
            )
        else:
            write_json(self._record, identity)

    def _read_places(self) -> None:
        """Finds what is there; a line that was being written when the process died is cut off."""
        for offset, length, row in whole_lines(self._file, self._partial):
            self._places[row["line"]] = offset, length


def answer_file(
    source: Source,
    path: str | os.PathLike,
    made_from: dict[str, Any],
    start_engine: Callable[[], Engine],
    *,
    rows: int,
    log: Callable[[str], None],
) -> None:
    """Answers all lines, from where an earlier run ended; with a bar on stderr.

    Args:
      path: the output.
      made_from: what the answers depend on in addition to the source, such as the model.
      start_engine: called if there is something left to do.
      rows: what the engine computes at once.

    Raises:
      DataError: bad lines, by number; ConfigError: as of Output.
    """
    count, digest = source.check()
    output = Output(path, {"input_sha256": digest, **source.identity(), **made_from})
    try:
        if not output.complete:
            log(f"{count} lines, {len(output.done)} of them done")
            run(start_engine(), source, output, rows=rows, count=count)
    finally:
        output.close()
    log(f"{path}: {count} lines")


def run(engine: Engine, source: Source, output: Output, *, rows: int, count: int) -> None:
    """Answers every line that has no answer yet: lines, time left and speed on stderr."""
    # Where nobody looks, a line in a while instead of one that moves.
    interval = 0.5 if sys.stderr.isatty() else 30
    with tqdm(total=count, initial=len(output.done), unit="line", mininterval=interval) as bar:
        tokens = 0
        for new in answer_lines(engine, source, output, rows=rows):
            tokens += new
            seconds = max(bar.format_dict["elapsed"], 1e-6)
            bar.set_postfix_str(f"{tokens / seconds:.1f} tokens/s", refresh=False)
            bar.update()


def answer_lines(engine: Engine, source: Source, output: Output, *, rows: int) -> Iterator[int]:
    """Answers every line that has no answer yet, then completes the output.

    Yields the number of new tokens of each line that is in the file.

    Args:
      rows: what the engine computes at once; twice as many are handed to it ahead.
    """
    waiting = (line for line in source if line.number not in output.done)
    owners: dict[int, tuple[Line, int]] = {}  # request id -> line, sample
    unfinished: dict[int, dict[int, list]] = {}  # line -> sample -> its events
    ended: collections.Counter[int] = collections.Counter()
    line = next(waiting, None)
    while line is not None or owners:
        while line is not None and len(owners) < 2 * rows:
            for sample, request_id in enumerate(engine.submit(line.request)):
                owners[request_id] = line, sample
            unfinished[line.number] = {sample: [] for sample in range(line.request.sampling.n)}
            line = next(waiting, None)
        for event in engine.step():
            owner, sample = owners[event.request_id]
            unfinished[owner.number][sample].append(event)
            if event.finish is not None:
                del owners[event.request_id]
                ended[owner.number] += 1
                if ended[owner.number] == owner.request.sampling.n:
                    answers = [
                        _answer(events, owner.request.sampling.logprobs)
                        for events in unfinished.pop(owner.number).values()
                    ]
                    output.add(owner, answers)
                    yield sum(answer["tokens"] for answer in answers)
    output.finish()


def _answer(events: list, logprobs: bool) -> dict[str, Any]:
    tokens = [event for event in events if event.token is not None]
    answer = {
        "text": "".join(event.text for event in events),
        "finish": events[-1].finish,
        "tokens": len(tokens),
    }
    return answer | ({"logprobs": [event.logprob for event in tokens]} if logprobs else {})


def fingerprint(config: ModelConfig, params: Params) -> str:
    """16 hex digits of the config and of a piece of each weight: training changes them all."""
    digest = hashlib.sha256(repr(config).encode())
    for leaf in jax.tree.leaves(params):
        piece = leaf[(slice(0, 1),) * (leaf.ndim - 1) + (slice(0, 256),)]
        digest.update(np.asarray(piece).tobytes())
    return digest.hexdigest()[:16]
