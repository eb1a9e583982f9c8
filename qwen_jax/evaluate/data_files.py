"""Finds and reads the files of benchmarks, as their distributions have them. Nothing is downloaded.

The SHA-256 of each file that is read is kept for the results.
"""

import contextlib
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
from collections.abc import Iterator, Sequence
from typing import Any

from qwen_jax.errors import ConfigError, DataError
from qwen_jax.utils import json_text

# Where files, and those of a folder, come from; nothing is downloaded.
SOURCES = {
    "mmlu.zip": "data.tar of github.com/hendrycks/test, with its folder data/ packed as a zip file",
    "ceval.zip": "ceval-exam.zip of huggingface.co/datasets/ceval/ceval-exam",
    "cmmlu.zip": "cmmlu_v1_0_1.zip of huggingface.co/datasets/haonan-li/cmmlu",
    "gsm8k_test.jsonl": "grade_school_math/data/test.jsonl of github.com/openai/grade-school-math",
    "gsm8k_train.jsonl": "grade_school_math/data/train.jsonl of "
    "github.com/openai/grade-school-math",
    "qwen_gsm8k_8shot.txt": "eval/gsm8k_prompt.txt of github.com/QwenLM/Qwen",
    "MATH.tar": "MATH.tar of github.com/hendrycks/math, or its folder MATH with the folder test",
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
    # Report, Tables 15 to 17: a clone or an unpacked archive is a folder for --data.
    "data/v1": "the folder data/v1 of github.com/ruixiangcui/AGIEval",
    "data/v1_1": "the folder data/v1_1 of github.com/ruixiangcui/AGIEval",
    "Bench": "the folder Bench of github.com/OpenLMLab/GAOKAO-Bench",
    "Data/Objective_Questions": "the folder Data/Objective_Questions of "
    "github.com/OpenLMLab/GAOKAO-Bench",
    "arc": "ARC-V1-Feb2018-2.zip of allenai.org/data/arc",
    "boolq": "BoolQ's dev.jsonl of github.com/google-research-datasets/boolean-questions",
    "commonsenseqa": "dev_rand_split.jsonl and train_rand_split.jsonl of "
    "www.tau-nlp.org/commonsenseqa",
    "NQ-open.dev.jsonl": "nq_open/NQ-open.dev.jsonl of "
    "github.com/google-research-datasets/natural-questions",
    "lambada_test.jsonl": "GPT-2's lambada_test.jsonl, or lambada_test_plain_text.txt of "
    "zenodo.org/records/2630551",
    "hellaswag_val.jsonl": "data/hellaswag_val.jsonl of github.com/rowanz/hellaswag",
    "piqa": "valid.jsonl and valid-labels.lst of yonatanbisk.com/piqa",
    "socialiqa-train-dev": "socialiqa-train-dev.zip of allenai.org/data/socialiqa",
    "ocnli": "data/ocnli/dev.json of github.com/CLUEbenchmark/OCNLI",
    # Report, 3.4
    **{
        f"{name}.jsonl": "python -m experiments.generate_agent_data, which writes it"
        for name in ("tool_use", "code_interpreter", "hf_agent")
    },
    "hf_agent_tasks.json": "the tasks of src/transformers/tools/evaluate_agent.py of "
    "github.com/huggingface/transformers (v4.33), as an object with tools, run and chat",
    **{
        f"BFCL_v4_{name}.json": "berkeley-function-call-leaderboard/bfcl_eval/data of "
        "github.com/ShishirPatil/gorilla"
        for name in ("multiple", "irrelevance")
    },
    "BFCL_v4_multiple_answer.json": "possible_answer/BFCL_v4_multiple.json in "
    "berkeley-function-call-leaderboard/bfcl_eval/data of github.com/ShishirPatil/gorilla",
}

# SHA-256 of the contents that prompts and ceilings were checked with: of a compressed file, of what
# it has; of a zip file, of its members.
CHECKED: dict[str, str] = {
    "mmlu.zip": "0be4450ccb3aec4aaba501c307aa375df3d10b2585d36d0a290052d1aa2ccf56",
    "ceval.zip": "9619b3ba64b92b008d3b50fb76df699c7f6bc906ac0c081fea436bd1ea1d85f7",
    "cmmlu.zip": "15a232ee8699909d8c522a5f9b69030453686f652c116afcaf1068cb2f3ac4d6",
    "gsm8k_test.jsonl": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
    "qwen_gsm8k_8shot.txt": "b067972c3ba476496af49bacfc2ade83e4bc72c47a52f7f0e70d7d9e8f573e0d",
    "math500_test.jsonl": "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132",
    "math401.jsonl": "0fb57c2bd632459aa325ac517109e25f940c6a732b984b1611853514db131ae2",
    "math23k_test.json": "3145d8f3eb33f3befc85e1023886b6b2c10eb40279068e989cd6cd7e56e6b8d0",
    "HumanEval.jsonl.gz": "1d49078ba3e2b196b9344535bef34a43021f038fad9561d6ee7c53450609a6a2",
    "mbpp.jsonl": "0b5e07b5b40fedd01c57b7c9177b79f8b2eebd72c304c928605d91a7237d2f33",
    "bbh_cot_prompts.json": "48349761217303d3e744a87b90f99001888a922d0d51817eca77a2f72be1f5d6",
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
        self._paths: dict[str, str] = {}  # what errors of tasks name -> where it is
        self._bytes: dict[str, bytes] = {}
        self._path_of: dict[str, pathlib.Path] = {}

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
                self._remember(names, str(self._path_of[name]))
                return name, self._bytes[name]
            path = self.find(name)
            if path is not None and path.is_file():
                self._remember(names, str(path))
                content = self._content(path)
                self._path_of[name] = path
                self.hashes[name] = hashlib.sha256(content).hexdigest()
                self._bytes[name] = content
                return name, content
        raise DataError(
            f"no folder has {' or '.join(names)}.",
            f"--data={','.join(map(str, self.folders))}",
            f"{source_of(*names)}, and add its folder to --data.",
        )

    @contextlib.contextmanager
    def located(self) -> Iterator[None]:
        """Errors of the block name files by their paths, of archives with the path of a member."""
        try:
            yield
        except DataError as error:
            name = max(
                (one for one in self._paths if f"{error.where} ".startswith(f"{one} ")),
                key=len,
                default="",
            )
            if not name:
                raise
            where = self._paths[name] + error.where[len(name) :]
            raise DataError(error.what, where, error.fix) from error

    def _remember(self, names: Sequence[str], path: str) -> None:
        """Tasks name a file by any of the names that it may have."""
        self._paths |= dict.fromkeys(names, path)

    def differing(self) -> list[str]:
        """Returns a sentence for each file that was read and is not the one that was checked."""
        found = []
        for name, content in sorted(self._bytes.items()):
            digest = _content_digest(content) if name in CHECKED else ""
            if digest != CHECKED.get(name, ""):
                found.append(
                    f"{name} has contents with SHA-256 {digest[:16]}, not {CHECKED[name][:16]} "
                    "as the file that prompts were checked with."
                )
        return found

    def archive(self, *names: str) -> dict[str, bytes]:
        """Returns the members of a zip or tar file, or of a folder, by their path in it.

        Raises:
          DataError: none of `names` exists, or a file is not a complete archive.
        """
        for name in names:
            path = self.find(name)
            if path is not None and path.is_dir():
                self._remember(names, str(path))
                members = self._folder(name, path)
                self._paths |= {one: str(path / one) for one in members}
                return members
        name, content = self.read(*names)
        try:
            members = _members(content)
            self._paths |= {one: f"{self._path_of[name]}: {one}" for one in members}
            return members
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
            except _DAMAGED as error:
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


def _content_digest(content: bytes) -> str:
    """Returns the SHA-256 of a file's contents; "damaged" if they cannot be unpacked."""
    try:
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        elif content.startswith(_ZIP):
            digests = {name: hashlib.sha256(one) for name, one in _members(content).items()}
            lines = [f"{name} {digest.hexdigest()}\n" for name, digest in sorted(digests.items())]
            content = "".join(lines).encode("utf-8", "surrogatepass")
    except _DAMAGED:
        return "damaged"
    return hashlib.sha256(content).hexdigest()


def parse_json(content: bytes, where: str) -> Any:
    """Returns the value of JSON text; raises DataError, which names `where`."""
    try:
        return json_text.parse(content, finite=False)
    except (json.JSONDecodeError, ValueError) as error:
        raise DataError(f"not JSON: {error}.", where, "download the file again.") from error


def source_of(*names: str) -> str:
    """Returns where the first known of these files is from, as an instruction."""
    keys = [key for name in names for key in (name, name.rpartition("/")[0])]
    found = next((SOURCES[key] for key in keys if key in SOURCES), None)
    return f"get it from {found}" if found else "get it from its authors"
