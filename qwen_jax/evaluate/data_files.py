"""Finds and reads the files of benchmarks, as their distributions have them. Nothing is downloaded.

The SHA-256 of each file that is read is kept for the results.
"""

import csv
import gzip
import hashlib
import io
import json
import lzma
import os
import pathlib
import tarfile
import zipfile
import zlib
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
    "gsm8k_train.jsonl": "grade_school_math/data/train.jsonl of "
    "github.com/openai/grade-school-math",
    "qwen_gsm8k_8shot.txt": "eval/gsm8k_prompt.txt of github.com/QwenLM/Qwen",
    "MATH.tar": "MATH.tar of github.com/hendrycks/math, or its folder MATH with the folder test",
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
                content = self._content(path)
                self.hashes[name] = hashlib.sha256(content).hexdigest()
                self._bytes[name] = content
                return name, content
        raise DataError(
            f"no folder has {' or '.join(names)}.",
            f"--data={','.join(map(str, self.folders))}",
            f"{source_of(*names)}, and add its folder to --data.",
        )

    def archive(self, *names: str) -> dict[str, bytes]:
        """Returns the members of a zip or tar file, or of a folder, by their path in it.

        Raises:
          DataError: none of `names` exists, or a file is not a complete archive.
        """
        for name in names:
            path = self.find(name)
            if path is not None and path.is_dir():
                return self._folder(name, path)
        name, content = self.read(*names)
        try:
            return _members(content)
        except _DAMAGED as error:
            what = "zip" if content.startswith(_ZIP) else "tar"
            raise DataError(
                f"the {what} file is damaged: {error}.", name, "download it again."
            ) from error

    def _folder(self, name: str, path: pathlib.Path) -> dict[str, bytes]:
        """Returns the files in a folder; their paths and contents have one hash."""
        found, digest = {}, hashlib.sha256()
        for file in sorted(one for one in path.rglob("*") if one.is_file()):
            inside = file.relative_to(path).as_posix()
            found[inside] = self._content(file)
            digest.update(f"{inside}\0{len(found[inside])}\0".encode() + found[inside])
        self.hashes[name] = digest.hexdigest()
        return found

    def _content(self, path: pathlib.Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"the file cannot be read: {error}.", str(path), "check it.") from error

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
                row = parse_json(line, f"{name} line {number}")
                if not isinstance(row, dict):
                    raise DataError("not an object.", f"{name} line {number}", "check the file.")
                rows.append(row)
        return rows

    def json(self, *names: str) -> Any:
        """Returns the content of a JSON file."""
        name, content = self.read(*names)
        return parse_json(content, name)

    def text(self, *names: str) -> str:
        """Returns a text file in UTF-8."""
        name, content = self.read(*names)
        return decode(content, name)


_ZIP = b"PK"  # the first bytes
_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
    *(EOFError, NotImplementedError, RuntimeError, OSError),
)


def _members(content: bytes) -> dict[str, bytes]:
    """Returns the files in a zip file, or in a tar file of any compression."""
    if content.startswith(_ZIP):
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            return {one: packed.read(one) for one in packed.namelist() if not one.endswith("/")}
    with tarfile.open(fileobj=io.BytesIO(content)) as packed:
        files = [(one.name, packed.extractfile(one)) for one in packed if one.isfile()]
        return {name: file.read() for name, file in files if file is not None}


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


def parse_json(content: bytes, where: str) -> Any:
    """Returns the value of JSON text; raises DataError, which names `where`."""
    try:
        return json_text.parse(content, finite=False)
    except (json.JSONDecodeError, ValueError) as error:
        raise DataError(f"not JSON: {error}.", where, "download the file again.") from error


def source_of(*names: str) -> str:
    """Returns where the first known of these files is from, as an instruction."""
    found = next((SOURCES[name] for name in names if name in SOURCES), None)
    return f"get it from {found}" if found else "get it from its authors"
