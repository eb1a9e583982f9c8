"""Batch inference from a JSONL file of prompts to a JSONL file of completions; resumes if killed.

An input line is {"prompt": text} or {"messages": [...]}, with an optional "id" and any field of
sampling.SamplingParams. Messages are rendered by the model's chat template, which also takes the
"tools" and "chat_template_kwargs" of the line. Its output line is
{"line": number, "id": ..., "answers": [{"text", "finish", "tokens"}]}, one entry per completion.
Other keys of the input line, such as a reference answer, are copied to its output line.

Completions are appended to OUTPUT.partial as they finish. When all have finished, they are sorted
into input order and written to OUTPUT atomically. OUTPUT.run.json records the inputs and settings
of the run. A line's seed is the run's seed plus its index, so a completion depends neither on the
batch nor on when it is computed.
"""

import collections
import dataclasses
import difflib
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
from qwen_jax.errors import DataError, QwenJaxError, unknown_name
from qwen_jax.inference.decoder.weights import PrepackedParams
from qwen_jax.inference.engine import Engine
from qwen_jax.inference.output_lines import Line, Output
from qwen_jax.inference.request import Request
from qwen_jax.inference.sampling import SamplingParams, check_stop_token_ids, check_token_ids
from qwen_jax.parallel.batch_rows import on_host
from qwen_jax.ranges import Checked
from qwen_jax.tokenizer import generation_config
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.template import tokens as template
from qwen_jax.types import Params
from qwen_jax.utils.json_text import without_repeated_keys

_MAX_NAMED = 20  # maximum number of invalid lines listed in an error


# The default sampling parameters of a line, on top of which comes the model's file.
DEFAULTS = SamplingParams(max_new_tokens=200, temperature=0.7, top_p=0.95)


def _flag(name: str, default: Any, said: Any = None) -> Any:
    """Returns the field `name` of SamplingParams with another default.

    Args:
      said: what None means if the model's file does not say; None: it has no such meaning.
    """
    metadata = SamplingParams.__dataclass_fields__[name].metadata
    if said is not None:
        text = metadata["help"].partition("; None:")[0]
        metadata = {**metadata, "help": f"{text}; None: that of generation_config.json, or {said}"}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Settings(Checked, where="settings.{}"):
    """Flags for SamplingParams. None is the value of the model's generation_config.json, or ours.

    Raises:
      ConfigError: a value is out of range.
    """

    max_new_tokens: int = _flag("max_new_tokens", DEFAULTS.max_new_tokens)
    temperature: float | None = _flag("temperature", None, said=0.7)
    top_k: int | None = _flag("top_k", None, said="all")
    top_p: float | None = _flag("top_p", None, said=0.95)
    repetition_penalty: float | None = _flag("repetition_penalty", None, said=1)
    stop: tuple[str, ...] = _flag("stop", ())
    stop_token_ids: tuple[int, ...] = _flag("stop_token_ids", ())
    seed: int = _flag("seed", 0)
    n: int = _flag("n", 1)
    logprobs: bool = _flag("logprobs", False)

    def of_model(self, tokenizer: Tokenizer) -> tuple[SamplingParams, str]:
        """Returns the parameters for a model, and a phrase that says which ones are its own."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        ours = dataclasses.asdict(DEFAULTS)
        found, said = generation_config.resolve(tokenizer.settings, given, ours)
        return SamplingParams.named("settings.{}", **found), said


_SAMPLING = {field.name for field in dataclasses.fields(SamplingParams)}
_PROMPT = ("prompt", "messages", "tools", "chat_template_kwargs")
_OWN = ("line", "answers")  # keys of an output line
# Settings of other programs, under names that SamplingParams does not have.
_FOREIGN = frozenset(
    "max_tokens max_completion_tokens min_tokens min_p best_of response_format tool_choice "
    "functions function_call stream ignore_eos guided_json guided_regex guided_choice "
    "guided_grammar grammar structured_outputs json_schema suffix echo bad_words bad_words_ids "
    "prompt_logprobs num_beams use_beam_search do_sample length_penalty stop_strings "
    "stop_sequences max_length typical_p num_return_sequences no_repeat_ngram_size "
    "return_full_text truncate_prompt_tokens add_generation_prompt continue_final_message "
    "enable_thinking reasoning_effort parallel_tool_calls extra_body".split()
)
# What belongs to a prompt in other files, and would not be given to the model.
_CONTEXT = frozenset(
    "system system_prompt system_message systemPrompt history chat_history image images documents "
    "attachments".split()
)


def _split(fields: dict[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (what is copied to the output line, the prompt and its sampling parameters).

    Raises:
      DataError: a key is close to the name of a setting, is a setting of other programs, belongs
        to the prompt, or is a key of output lines. Copying it would ignore what it asks for.
    """
    used, copied = {}, {}
    for name, value in fields.items():
        if name in _SAMPLING or name in _PROMPT:
            used[name] = value
            continue
        said = value not in (None, "", [], {})
        if name in _CONTEXT and said:
            raise DataError(
                f"{name!r} next to the prompt is not read.",
                where,
                "make it a part of the messages, or give it another name if it is only copied.",
            )
        near = difflib.get_close_matches(name.lower(), _SAMPLING, n=1, cutoff=0.75)
        if name in _OWN or (name in _FOREIGN and said) or near:
            known = _SAMPLING | {"id", *_PROMPT}
            raise unknown_name("field", name, known, where, DataError)
        copied[name] = value
    if copied.get("id", 0) is None:  # as if the line had none
        del copied["id"]
    return copied, used


class Source:
    """The input file, read twice: once to validate all lines, then once to run them."""

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
        self.copied: set[str] = set()  # keys that `check` found and that are only copied

    def check(self) -> tuple[int, str]:
        """Returns the number of non-empty lines, and the file's SHA-256.

        Raises:
          DataError: lines are invalid (the error lists them by number), the file has no lines, or
            it cannot be read.
        """
        bad, count, digest = [], 0, hashlib.sha256()
        self.copied.clear()
        for number, raw in self._raw():
            digest.update(raw)
            if not raw.strip():
                continue
            count += 1
            try:
                self.copied |= self._parse(number, raw).copied.keys() - {"id"}
            except QwenJaxError as error:
                hint, mark, _ = error.fix.partition("? ")  # of a misspelled name
                hint = f" {hint.capitalize()}?" if mark else ""
                bad.append(f"line {number}: {error.what}{hint}")
        if bad:
            more = [f"and {len(bad) - _MAX_NAMED} more"] if len(bad) > _MAX_NAMED else []
            named = "\n         ".join([f"invalid lines: {len(bad)}.", *bad[:_MAX_NAMED], *more])
            raise DataError(named, str(self._path), "fix these lines; nothing was run.")
        if not count:
            raise DataError(
                "the file has no prompts.", str(self._path), "write one prompt per line."
            )
        return count, digest.hexdigest()

    def identity(self) -> dict[str, Any]:
        """Returns the settings that determine the completions, for OUTPUT.run.json.

        A setting that older versions did not have is included only if it is set, so older runs
        still resume.
        """
        settings = dataclasses.asdict(self._sampling)
        for name in ("stop_token_ids", "presence_penalty", "frequency_penalty", "logit_bias"):
            if not settings[name]:
                del settings[name]
        return {
            "tokenizer": self._tokenizer.fingerprint,
            "context": self._context,
            **settings,
        }

    def __iter__(self) -> Iterator[Line]:
        for number, raw in self._raw():
            if raw.strip():
                yield self._parse(number, raw)

    def outline(self) -> Iterator[tuple[int, dict[str, Any], int]]:
        """Yields (line number, what is copied, number of completions); nothing is tokenized."""
        for number, raw in self._raw():
            if raw.strip():
                copied, used = _split(json.loads(raw), f"line {number}")
                yield number, copied, used.get("n", self._sampling.n)

    def _raw(self) -> Iterator[tuple[int, bytes]]:
        try:
            with open(self._path, "rb") as file:
                yield from enumerate(file, start=1)
        except OSError as error:
            raise DataError(
                f"cannot read the prompts: {error.strerror}.",
                str(self._path),
                "pass a file with one JSON object per line.",
            ) from error

    def _parse(self, number: int, raw: bytes) -> Line:
        where = f"line {number}"
        try:
            fields = json.loads(raw, object_pairs_hook=without_repeated_keys)
        except (ValueError, RecursionError) as error:
            raise DataError(f"not JSON ({error}).", where, "write one JSON object.") from None
        if not isinstance(fields, dict) or ("prompt" in fields) == ("messages" in fields):
            raise DataError(
                "not a JSON object with exactly one of prompt and messages.",
                where,
                'write {"prompt": ...} or {"messages": [...]}.',
            )
        copied, fields = _split(fields, where)
        if "prompt" in fields:
            text = fields.pop("prompt")
            if not isinstance(text, str):
                raise DataError("the prompt is not a string.", where, "write it as a JSON string.")
            if unused := [name for name in _PROMPT[2:] if fields.get(name) is not None]:
                raise DataError(
                    f"{unused[0]} next to a prompt has no effect.", where, "write messages."
                )
            prompt = self._tokenizer.encode(text) or [self._tokenizer.end_of_text]
            stop_ids = template.text_stop_ids(self._tokenizer)
        else:
            prompt = self._render(fields, where)
            stop_ids = template.stop_ids(self._tokenizer)
        fields = {name: value for name, value in fields.items() if name not in _PROMPT}
        request = self._request(prompt, stop_ids, fields, number)
        if len(prompt) + request.sampling.max_new_tokens > self._context:
            raise DataError(
                f"{len(prompt)} prompt tokens plus {request.sampling.max_new_tokens} new tokens "
                f"exceed the context of {self._context}.",
                where,
                "shorten the prompt or lower max_new_tokens.",
            )
        return Line(number, copied, request)

    def _render(self, fields: dict[str, Any], where: str) -> list[int]:
        """Returns the ids of messages, by the chat template."""
        messages, tools = fields["messages"], fields.get("tools")
        variables = fields.get("chat_template_kwargs") or {}
        if not isinstance(variables, dict) or template.reserved(variables):
            raise DataError(
                "chat_template_kwargs are not an object of variables.",
                where,
                'write {"enable_thinking": false}.',
            )
        if tools is not None and not isinstance(tools, list):
            raise DataError("tools are not a list.", where, "write a list of definitions.")
        messages = messages if isinstance(messages, list) else [messages]
        return template.prompt(self._tokenizer, messages, tools, **variables).tolist()

    def _request(self, prompt, stop_ids, fields: dict[str, Any], number: int) -> Request:
        seed = (self._sampling.seed + number - 1) % 2**32
        sampling = dataclasses.replace(self._sampling, **{"seed": seed} | fields)
        sampling = sampling.with_stop_ids(stop_ids)
        check_stop_token_ids(sampling, self._tokenizer.vocab_size)
        check_token_ids(sampling, self._tokenizer.vocab_size)
        return Request(prompt, sampling)


def complete_file(
    source: Source,
    path: str | os.PathLike,
    made_from: dict[str, Any],
    start_engine: Callable[[], Engine],
    *,
    max_num_seqs: int,
    log: Callable[[str], None],
) -> None:
    """Completes all lines that an earlier run did not finish, with a progress bar on stderr.

    Args:
      path: the output.
      made_from: everything besides the source that determines the completions, such as the model.
      start_engine: starts the engine; called only if lines remain.
      max_num_seqs: the engine's batch size.
      log: receives a message at the start and at the end.

    Raises:
      DataError: lines are invalid; the error lists them by number. Or an existing line of the
        output does not belong to the input.
      ConfigError: as in Output.
    """
    count, digest = source.check()
    output = Output(path, {"input_sha256": digest, **source.identity(), **made_from})
    try:
        output.check(source.outline())
        if source.copied:
            log(f"copied to the output, without effect: {', '.join(sorted(source.copied))}")
        if not output.complete:
            log(f"{count} lines, {len(output.done)} already done")
            run(start_engine(), source, output, max_num_seqs=max_num_seqs, count=count)
    finally:
        output.close()
    log(f"{path}: {count} lines")


def run(engine: Engine, source: Source, output: Output, *, max_num_seqs: int, count: int) -> None:
    """Completes the remaining lines; shows progress, time left and speed on stderr."""
    # In a log file every update is a new line, so update rarely.
    interval = 0.5 if sys.stderr.isatty() else 30
    with tqdm(total=count, initial=len(output.done), unit="line", mininterval=interval) as bar:
        tokens = 0
        for new in complete_lines(engine, source, output, max_num_seqs=max_num_seqs):
            tokens += new
            seconds = max(bar.format_dict["elapsed"], 1e-6)
            bar.set_postfix_str(f"{tokens / seconds:.1f} tokens/s", refresh=False)
            bar.update()


def complete_lines(
    engine: Engine, source: Source, output: Output, *, max_num_seqs: int
) -> Iterator[int]:
    """Completes the remaining lines, then finishes the output.

    Yields the number of new tokens of each line after it is written to the file.

    Args:
      max_num_seqs: the engine's batch size; twice as many requests are submitted ahead.
    """
    waiting = (line for line in source if line.number not in output.done)
    owners: dict[int, tuple[Line, int]] = {}  # request id -> (line, sample)
    unfinished: dict[int, dict[int, list]] = {}  # line -> sample -> its events
    finished: collections.Counter[int] = collections.Counter()
    line = next(waiting, None)
    while line is not None or owners:
        while line is not None and len(owners) < 2 * max_num_seqs:
            for sample, request_id in enumerate(engine.submit(line.request)):
                owners[request_id] = line, sample
            unfinished[line.number] = {sample: [] for sample in range(line.request.sampling.n)}
            line = next(waiting, None)
        for event in engine.step():
            owner, sample = owners[event.request_id]
            unfinished[owner.number][sample].append(event)
            if event.finish is not None:
                del owners[event.request_id]
                finished[owner.number] += 1
                if finished[owner.number] == owner.request.sampling.n:
                    choices = [
                        _choice(events, owner.request.sampling.logprobs)
                        for events in unfinished.pop(owner.number).values()
                    ]
                    output.add(owner, choices)
                    yield sum(choice["tokens"] for choice in choices)
    output.finish()


def _choice(events: list, logprobs: bool) -> dict[str, Any]:
    tokens = [event for event in events if event.token is not None]
    choice = {
        "text": "".join(event.text for event in events),
        "finish": events[-1].finish,
        "tokens": len(tokens),
    }
    return choice | ({"logprobs": [event.logprob for event in tokens]} if logprobs else {})


def fingerprint(config: ModelConfig, params: Params | PrepackedParams) -> str:
    """Returns a hash of the config and of a slice of each weight, as 16 hex digits.

    A slice is enough: training changes every element of a weight. Prepacked weights have another
    hash.
    """
    digest = hashlib.sha256(repr(config).encode())
    for leaf in jax.tree.leaves(params):
        part = leaf[(slice(0, 1),) * (leaf.ndim - 1) + (slice(0, 256),)]
        digest.update(np.asarray(on_host(part)).tobytes())
    return digest.hexdigest()[:16]
