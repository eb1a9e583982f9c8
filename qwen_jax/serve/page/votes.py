"""Votes of the page's comparisons, in the files of evaluate/pairwise.

FOLDER/comparisons.jsonl has a line for each vote, and is only appended to. From it come
answers.jsonl (the judged answers) and votes.jsonl, which `experiments.compare_models
--output=FOLDER --votes=FOLDER/votes.jsonl` counts. Report: 3.3.
"""

import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from qwen_jax.errors import DataError
from qwen_jax.evaluate.pairwise.questions import Question
from qwen_jax.evaluate.pairwise.sheet import Answer, make_sheet, write_sheet
from qwen_jax.evaluate.pairwise.votes import Vote, vote_row
from qwen_jax.serve.errors import ApiError
from qwen_jax.utils.append_only import open_exclusive
from qwen_jax.utils.jsonl import read_rows, write_rows

_ROLES = ("system", "user", "assistant", "tool")
_SEED = 0  # of the codes of answers; the browser has shuffled them already
_SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty", "max_tokens", "seed")


class Votes:
    """The votes of a folder, which this process locks until it ends.

    Raises:
      ConfigError: another process has the folder, or it cannot be written.
      DataError: comparisons.jsonl is damaged.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder, self._lock = pathlib.Path(folder), threading.Lock()
        path = self.folder / "comparisons.jsonl"
        self._file = open_exclusive(path, self.folder)
        self._file.seek(0)
        if not _ends_a_line(self._file.read()):  # a killed process; the line was never confirmed
            self._file.write(b"\n")
        bad: list[DataError] = []
        self._rows: list[dict[str, Any]] = []
        for where, row in read_rows(path, bad=bad):
            try:
                _entry(row)
                self._rows.append(row)
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"not a comparison: {type(error).__name__} {error}.",
                    where,
                    "restore the file, or choose another --page.votes.",
                ) from error

    def add(self, body: Mapping[str, Any], models: Collection[str]) -> dict[str, Any]:
        """Keeps a vote; a rater's later vote on the same answers replaces the earlier one.

        Args:
          body: {"rater", "messages", "answers": [{"model", "text", "finish", "sampling"}, ...],
            "ranking": [[index, ...], ...]}: answers in the order in which they were shown, and
            groups of their indices, the best first.
          models: names that an answer may have.

        Returns:
          {"votes": number of votes, "wins": {model: {"wins", "ties", "losses"}}}.

        Raises:
          ApiError: the vote is malformed.
        """
        row = _row(body, models)
        with self._lock:
            self._file.write(json.dumps(row, ensure_ascii=True).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            self._rows.append(row)
            return self._write()

    def close(self) -> None:
        self._file.close()

    def _write(self) -> dict[str, Any]:
        last = {(row["rater"], row["question"]["id"]): row for row in self._rows}
        rows = list({row["question"]["id"]: row for row in last.values()}.values())
        sheet = make_sheet(map(_entry, rows), seed=_SEED)
        votes: list[Vote] = []
        for row in last.values():
            entry = sheet.by_id[row["question"]["id"]]
            codes = [answer.code for answer in entry.answers]
            ranking = tuple(tuple(codes[index] for index in group) for group in row["ranking"])
            votes.append(
                Vote(
                    entry.question.id, entry.question.category, row["rater"], ranking, tuple(codes)
                )
            )
        write_sheet(sheet, self.folder / "answers.jsonl")
        write_rows(self.folder / "votes.jsonl", [vote_row(vote, sheet.page) for vote in votes])
        return {"votes": len(votes), "wins": _wins(last.values())}


def _ends_a_line(content: bytes) -> bool:
    return not content or content.endswith(b"\n")


def _row(body: Mapping[str, Any], models: Collection[str]) -> dict[str, Any]:
    """Returns a line of comparisons.jsonl."""
    rater, messages = body.get("rater"), body.get("messages")
    answers, ranking = body.get("answers"), body.get("ranking")
    if not isinstance(rater, str) or not rater.strip() or len(rater) > 100:
        raise ApiError("rater is not a name.", "rater", "pass up to 100 characters.")
    turns = [_turn(message) for message in messages] if isinstance(messages, list) else []
    if not turns or turns[-1][0] != "user":
        raise ApiError("the last message is not the user's.", "messages")
    if not isinstance(answers, list) or len(answers) != 2:
        raise ApiError("a comparison has two answers.", "answers")
    found = [_answer(answer, models) for answer in answers]
    if found[0]["model"] == found[1]["model"]:  # two settings of one model
        for own, other in (found, found[::-1]):
            own["label"] = _with_settings(own, other)
        for own in found:
            own["model"] = own.pop("label")
    groups = [[0], [1]], [[1], [0]], [[0, 1]]
    if ranking not in groups:
        raise ApiError("the ranking is not one of two answers.", "ranking", "pass [[0], [1]].")
    if found[0]["model"] == found[1]["model"]:
        raise ApiError("both answers have the same model and settings.", "answers")
    content = json.dumps([turns, found], sort_keys=True).encode()
    identity = hashlib.blake2b(content, digest_size=8).hexdigest()
    question = Question(identity, "chat", tuple(turns))
    return {
        "rater": rater.strip(),
        "question": question.row(),
        "answers": found,
        "ranking": ranking,
    }


def _turn(message: Any) -> tuple[str, str]:
    role = message.get("role") if isinstance(message, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    if role not in _ROLES or not isinstance(content, str):
        raise ApiError("a message has no role, or its content is not text.", "messages")
    return role, content


def _answer(answer: Any, models: Collection[str]) -> dict[str, Any]:
    if not isinstance(answer, dict) or not isinstance(answer.get("text"), str):
        raise ApiError("an answer has no text.", "answers")
    if answer.get("model") not in models:
        raise ApiError("an answer is of a model that is not served.", "answers")
    sampling = answer.get("sampling", {})
    if not isinstance(sampling, dict) or not all(
        name in _SAMPLING and isinstance(value, (int, float)) for name, value in sampling.items()
    ):
        raise ApiError(f"sampling has other keys than {', '.join(_SAMPLING)}.", "answers")
    finish = answer.get("finish")
    return {
        "model": answer["model"],
        "text": answer["text"],
        "finish": finish if finish in ("stop", "length") else "",
        "sampling": sampling,
    }


def _with_settings(own: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Returns the name of a model with the settings in which it differs from the other answer's."""
    differing = [
        f"{name} {own['sampling'].get(name, 'default')}"
        for name in _SAMPLING
        if own["sampling"].get(name) != other["sampling"].get(name) and name != "seed"
    ]
    return f"{own['model']} ({', '.join(differing)})" if differing else own["model"]


def _entry(row: Mapping[str, Any]) -> tuple[Question, Sequence[Answer]]:
    question = row["question"]
    turns = tuple((turn["role"], turn["content"]) for turn in question["messages"])
    answers = [Answer(**answer) for answer in row["answers"]]
    if len(answers) != 2 or not isinstance(row["rater"], str) or not row["ranking"]:
        raise ValueError("an incomplete vote")
    return Question(question["id"], question["category"], turns), answers


def _wins(rows: Collection[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        best = row["ranking"][0]
        for index, answer in enumerate(row["answers"]):
            kind = "ties" if len(best) == 2 else "wins" if index in best else "losses"
            found.setdefault(answer["model"], {"wins": 0, "ties": 0, "losses": 0})[kind] += 1
    return found
