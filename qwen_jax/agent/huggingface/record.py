"""What the agent over tools of Hugging Face was asked and replied, as rows of training."""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

from qwen_jax.errors import ConfigError, DataError
from qwen_jax.utils.jsonl import as_line, read_rows

_FIELDS = ("prompt", "reply", "error")


class Recorder:
    """Writes a line for each reply: its prompt, its text, and why its program failed.

    Args:
      path: of a new file.

    Raises:
      ConfigError: the file exists, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike):
        try:
            pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "xb")
        except OSError as error:
            raise ConfigError(
                f"cannot write the record: {error}.", str(path), "name a new file."
            ) from None

    def write(self, prompt: str, reply: str, error: str) -> None:
        """Writes a reply. `error` is "" if its program ran to its end."""
        self._file.write(as_line({"prompt": prompt, "reply": reply, "error": error}))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def to_sft_rows(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """Yields one row of experiments.sft for each reply whose program ran.

    The prompt is the agent's, so training reads the ids that the model will read. A step of a chat
    is a row of its own, with the steps before it in its prompt. Replies whose program failed are
    left out; an incomplete last line, as a killed session leaves, too.

    Raises:
      DataError: the file is missing, or is not such a record.
    """
    for where, row in read_rows(path, bad=[]):
        if row.keys() != set(_FIELDS) or any(not isinstance(row[f], str) for f in _FIELDS):
            raise DataError(
                "the line is not a reply of the agent.", where, "pass a file that HFAgent wrote."
            )
        if not row["error"]:
            turns = (("user", row["prompt"]), ("assistant", row["reply"].rstrip()))
            yield {"messages": [{"role": role, "content": text} for role, text in turns]}
