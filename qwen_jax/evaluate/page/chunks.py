"""Samples as scripts that a page loads when they are looked at.

    OUTPUT/page/TASK/index.js   id, subject and flags of every sample
    OUTPUT/page/TASK/000.js     the first SIZE samples

A page that is opened as a file may load scripts, but may not read other files.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from qwen_jax.utils.files import atomic_write

SIZE = 50  # samples in a script: of MMLU, about 150 kB
RIGHT, TRUNCATED, TIED, ABSTAINED, FAILED, UNENDED = (1 << bit for bit in range(6))


def write(folder: pathlib.Path, task: str, samples: Sequence[Mapping[str, Any]]) -> int:
    """Writes the samples of a task; returns the bytes of their scripts.

    Args:
      folder: the folder `page` of an evaluation's output.
      task: its key.
      samples: in order.
    """
    target = folder / task
    target.mkdir(parents=True, exist_ok=True)
    total = 0
    for number, begin in enumerate(range(0, len(samples), SIZE)):
        part = list(samples[begin : begin + SIZE])
        raw = script("chunk", task, number, part)
        total += len(raw)
        _write(target / f"{number:03}.js", raw)
    subjects = sorted({one["subject"] for one in samples})
    index = {
        "size": SIZE,
        "ids": [one["id"] for one in samples],
        "subjects": subjects,
        "subject": [subjects.index(one["subject"]) for one in samples],
        "flags": [flags(one) for one in samples],
        "bytes": total,
    }
    _write(target / "index.js", script("index", task, index))
    return total


def flags(sample: Mapping[str, Any]) -> int:
    """Returns what the page can filter by, as bits."""
    failed = "error" in sample
    return (
        RIGHT * bool(sample["correct"])
        | TRUNCATED * bool(sample["truncated"])
        | TIED * bool(sample.get("ties"))
        | ABSTAINED * (sample["extracted"] is None and not failed)
        | FAILED * failed
        | UNENDED * (sample.get("finish") == "length")
    )


def script(name: str, *arguments: Any) -> bytes:
    """Returns a script in UTF-8 that calls `evaluation.NAME` with arguments."""
    return f"evaluation.{name}({', '.join(map(literal, arguments))});\n".encode()


def literal(value: Any) -> str:
    """Returns a value as JavaScript that is safe inside of HTML and encodable in UTF-8.

    JSON may contain </script> and <!--, and the line separators U+2028 and U+2029; half of a
    surrogate pair, which a model may write, has no encoding.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _write(path: pathlib.Path, raw: bytes) -> None:
    with atomic_write(path) as file:
        file.write(raw)
