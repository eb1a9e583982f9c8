"""Documents from files: text, HTML, JSONL and Parquet, alone or in folders, gzipped or not.

Report: 2.1 names the kinds of sources. Nothing is left out quietly: a file that cannot be read as
what its name says stops the reading, with its name and the place in it.
"""

import gzip
import json
import pathlib
from collections.abc import Callable, Iterator

from qwen_jax.corpus.sources import extract
from qwen_jax.data.document import Document
from qwen_jax.errors import DataError

HTML = (".html", ".htm", ".xhtml")
TABLES = (".jsonl", ".ndjson", ".parquet")
TEXT = (
    ".txt",
    ".text",
    ".md",
    ".rst",
    ".tex",
    ".csv",
    ".json",
    ".xml",
    ".yaml",
    ".yml",
    ".toml",
    ".py",
    ".pyi",
    ".ipynb",
    ".c",
    ".h",
    ".cc",
    ".cpp",
    ".hpp",
    ".cu",
    ".java",
    ".js",
    ".ts",
    ".go",
    ".rs",
    ".rb",
    ".sh",
    ".sql",
    ".php",
    ".cs",
    ".scala",
    ".kt",
    ".swift",
    ".lua",
    ".r",
    ".jl",
    ".pl",
    ".hs",
    ".css",
    ".proto",
)


def documents(
    path: str, *, text_field: str = "text", html_to_text: Callable[[str], str] = extract.article
) -> Iterator[Document]:
    """Every document of a file or, in the order of their names, of a folder.

    A column "group" of a JSONL file becomes Document.group.

    Args:
      text_field: the column of JSONL and Parquet files that holds the text.
      html_to_text: see extract.py.

    Raises:
      DataError: `path` is missing or has no document; a file is of an unknown kind, is not UTF-8,
        or has a row without text.
    """
    for file in files(path):
        yield from _read(file, text_field, html_to_text)


def files(path: str) -> list[pathlib.Path]:
    """The files that `documents` reads, sorted; hidden ones are not looked at.

    Raises:
      DataError: there are none, or some are of a kind that is not known.
    """
    root = pathlib.Path(path)
    if not root.exists():
        raise DataError(
            "this source does not exist.",
            str(root),
            "check the name; a source is a file or a folder of files.",
        )
    if root.is_file():
        found = [root]
    else:
        found = sorted(
            file
            for file in root.rglob("*")
            if file.is_file()
            and not any(part.startswith(".") for part in file.relative_to(root).parts)
        )
    if not found:
        raise DataError(
            "this source is an empty folder.",
            str(root),
            f"put files there: {' '.join(HTML[:1] + TABLES + TEXT[:3])} ...",
        )
    strange = [file for file in found if _kind(file) not in HTML + TABLES + TEXT]
    if strange:
        kinds = sorted({_kind(file) or "no suffix" for file in strange})
        raise DataError(
            f"{len(strange)} of {len(found)} files are of kinds that are not read: "
            f"{', '.join(kinds)}.",
            f"{strange[0]} and others" if strange[1:] else str(strange[0]),
            "move them out of the folder, or rename them to .txt.",
        )
    return found


def _kind(file: pathlib.Path) -> str:
    return (file.with_suffix("") if file.suffix == ".gz" else file).suffix.lower()


def _read(file: pathlib.Path, text_field: str, html_to_text) -> Iterator[Document]:
    kind = _kind(file)
    if kind == ".parquet":
        yield from _parquet_rows(file, text_field)
    elif kind in TABLES:
        yield from _json_rows(file, text_field)
    else:
        text = _decode(file, _bytes(file))
        yield Document(str(file), html_to_text(text) if kind in HTML else text)


def _json_rows(file: pathlib.Path, text_field: str) -> Iterator[Document]:
    opened = gzip.open(file) if file.suffix == ".gz" else open(file, "rb")
    with opened as lines:
        number = 0
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    row = json.loads(_decode(file, line, f" line {number}"))
                    text = _text_of(row, text_field, f"{file} line {number}")
                    yield Document(f"{file}:{number}", text, row.get("group"))
        except (json.JSONDecodeError, EOFError, OSError) as error:
            raise DataError(
                f"not a line of JSON: {error}.",
                f"{file} line {number}",
                "each line is one JSON object; a copy that broke off ends so.",
            ) from error


def _parquet_rows(file: pathlib.Path, text_field: str) -> Iterator[Document]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            "reading Parquet needs pyarrow.", str(file), "pip install 'qwen_jax[data]'."
        ) from error
    try:
        table = pyarrow.parquet.ParquetFile(file)
        if text_field not in table.schema_arrow.names:
            raise DataError(
                f"no column {text_field!r}; there are {', '.join(table.schema_arrow.names)}.",
                str(file),
                "name the column with the text.",
            )
        row = 0
        for batch in table.iter_batches(batch_size=256, columns=[text_field]):
            for value in batch.column(0).to_pylist():
                yield Document(
                    f"{file}:{row}", _text_of({text_field: value}, text_field, f"{file} row {row}")
                )
                row += 1
    except pyarrow.ArrowException as error:
        raise DataError(f"not a Parquet file: {error}.", str(file), "write it again.") from error


def _text_of(row, text_field: str, where: str) -> str:
    text = row.get(text_field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        has = f"; it has {', '.join(map(str, row))}" if isinstance(row, dict) else ""
        raise DataError(f"no text in {text_field!r}{has}.", where, "name the field with the text.")
    return text


def _bytes(file: pathlib.Path) -> bytes:
    try:
        raw = file.read_bytes()
        return gzip.decompress(raw) if file.suffix == ".gz" else raw
    except (OSError, EOFError) as error:
        raise DataError(f"cannot be read: {error}.", str(file), "copy it again.") from error


def _decode(file: pathlib.Path, raw: bytes, where: str = "") -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8: byte {raw[error.start]:#04x} at {error.start}.",
            f"{file}{where}",
            "convert it, as in `iconv -f latin1 -t utf-8`.",
        ) from error
