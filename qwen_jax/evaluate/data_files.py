"""Finds and reads the files of benchmarks, as their distributions have them. Nothing is downloaded.

The SHA-256 of each file that is read is kept for the results.
"""

import csv
import gzip
import hashlib
import io
import json
import os
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any

from qwen_jax.errors import ConfigError, DataError
from qwen_jax.utils import json_text

# Where the files come from; nothing is downloaded.
SOURCES = {
    "mmlu.zip": "data.tar of github.com/hendrycks/test, with its folder data/ packed as a zip file",
    "ceval.zip": "ceval-exam.zip of huggingface.co/datasets/ceval/ceval-exam",
    "cmmlu.zip": "cmmlu_v1_0_1.zip of huggingface.co/datasets/haonan-li/cmmlu",
    "gsm8k_test.jsonl": "grade_school_math/data/test.jsonl of github.com/openai/grade-school-math",
    "qwen_gsm8k_8shot.txt": "eval/gsm8k_prompt.txt of github.com/QwenLM/Qwen",
    "qwen_gsm8k_chat_4shot.txt": "the four worked examples in eval/evaluate_chat_gsm8k.py of "
    "github.com/QwenLM/Qwen, as text",
    **{
        f"humanevalpack_{name}.jsonl": f"data/{name}/data/humanevalpack.jsonl of "
        "huggingface.co/datasets/bigcode/humanevalpack"
        for name in ("python", "js", "java", "go", "cpp", "rust")
    },
    "math500_test.jsonl": "prm800k/math_splits/test.jsonl of github.com/openai/prm800k",
    "minerva_math_4shot.json": "the four worked examples of Lewkowycz et al. 2022, appendix D.2, "
    'as a list of {"problem": ..., "solution": ...}',
    "math401.jsonl": "github.com/GanjinZero/math401-llm",
    "math23k_test.json": "the test split of Math23K (Wang et al. 2017)",
    "HumanEval.jsonl.gz": "data/HumanEval.jsonl.gz of github.com/openai/human-eval",
    "mbpp.jsonl": "mbpp/mbpp.jsonl of github.com/google-research/google-research",
    "bbh": "the folder bbh/ of github.com/suzgunmirac/BIG-Bench-Hard",
    "bbh_cot_prompts.json": "the files of cot-prompts/ of github.com/suzgunmirac/BIG-Bench-Hard, "
    "as one object from names of tasks to their texts",
}


class DataFolders:
    """Folders with the files of benchmarks.

    Args:
      folders: searched in order; a file may also lie in a subfolder of one.

    Attributes:
      hashes: name of each file that was read -> its SHA-256.
    """

    def __init__(self, folders: Sequence[str | os.PathLike]):
        self.folders = [pathlib.Path(folder) for folder in folders]
        for folder in self.folders:
            if not folder.is_dir():
                raise ConfigError(
                    "the folder does not exist.", f"--data={folder}", "pass a folder of test sets."
                )
        self.hashes: dict[str, str] = {}
        self._bytes: dict[str, bytes] = {}

    def find(self, name: str) -> pathlib.Path | None:
        """Returns the path of a file or folder; None if no folder has it."""
        for folder in self.folders:
            if (folder / name).exists():
                return folder / name
        return None

    def read(self, *names: str) -> tuple[str, bytes]:
        """Returns the name and the content of the first of `names` that exists.

        Raises:
          DataError: none exists, or it cannot be read.
        """
        for name in names:
            if name in self._bytes:
                return name, self._bytes[name]
            path = self.find(name)
            if path is not None and path.is_file():
                try:
                    content = path.read_bytes()
                except OSError as error:
                    raise DataError(
                        f"the file cannot be read: {error}.", str(path), "check it."
                    ) from error
                self.hashes[name] = hashlib.sha256(content).hexdigest()
                self._bytes[name] = content
                return name, content
        raise DataError(
            f"no folder has {' or '.join(names)}.",
            f"--data={','.join(map(str, self.folders))}",
            f"{source_of(*names)}, and add its folder to --data.",
        )

    def archive(self, name: str) -> dict[str, bytes]:
        """Returns the members of a zip file by their path in it.

        Raises:
          DataError: the file is missing or not a complete zip file.
        """
        _, content = self.read(name)
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as file:
                return {one: file.read(one) for one in file.namelist() if not one.endswith("/")}
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise DataError(
                f"the zip file is damaged: {error}.", name, "download it again."
            ) from error

    def json_lines(self, *names: str) -> list[dict[str, Any]]:
        """Returns the objects of a JSONL file, or of one that gzip compressed."""
        name, content = self.read(*names)
        if content.startswith(b"\x1f\x8b"):
            try:
                content = gzip.decompress(content)
            except (OSError, EOFError) as error:
                raise DataError(
                    f"the gzip file is damaged: {error}.", name, "download it again."
                ) from error
        rows = []
        for number, line in enumerate(content.splitlines(), 1):
            if line.strip():
                row = _json(line, f"{name} line {number}")
                if not isinstance(row, dict):
                    raise DataError("not an object.", f"{name} line {number}", "check the file.")
                rows.append(row)
        return rows

    def json(self, *names: str) -> Any:
        """Returns the content of a JSON file."""
        name, content = self.read(*names)
        return _json(content, name)

    def text(self, *names: str) -> str:
        """Returns a text file in UTF-8."""
        name, content = self.read(*names)
        return decode(content, name)


def csv_rows(content: bytes, where: str) -> list[list[str]]:
    """Returns the rows of a CSV file as text: "None" and "1.50" stay what they are.

    Raises:
      DataError: it is not CSV in UTF-8.
    """
    try:
        return list(csv.reader(io.StringIO(decode(content, where), newline=""), strict=True))
    except csv.Error as error:
        raise DataError(f"not CSV: {error}.", where, "download the file again.") from error


def decode(content: bytes, where: str) -> str:
    """Returns text in UTF-8, without a byte order mark."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {error}.", where, "download the file again.") from error


def check_count(found: int, expected: int, what: str, where: str) -> None:
    """Raises DataError if a file does not have the number of rows of the published one."""
    if found != expected:
        raise DataError(
            f"{found:,} {what}, but the published file has {expected:,}.",
            where,
            "download it again; another version gives other scores.",
        )


def _json(content: bytes, where: str) -> Any:
    try:
        return json_text.parse(content, finite=False)
    except (json.JSONDecodeError, ValueError) as error:
        raise DataError(f"not JSON: {error}.", where, "download the file again.") from error


def source_of(*names: str) -> str:
    """Returns where the first known of these files is from, as an instruction."""
    found = next((SOURCES[name] for name in names if name in SOURCES), None)
    return f"get it from {found}" if found else "get it from its authors"
