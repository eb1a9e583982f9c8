"""Reads partitions into rows: the first stage of the corpus pipeline. Report: 2.1.

The content of a file decides how it is read (formats.py). A long plain text file becomes several
documents (plain_text.py); rows of JSONL or Parquet and web pages are documents at any length.
Corrupted input becomes a rejected row with its location and the reason. A missing or unreadable
file fails its partition.
"""

from __future__ import annotations

import codecs
import collections
import dataclasses
import io
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from tqdm import tqdm

from qwen_jax.config import option
from qwen_jax.corpus import partitions, source_files
from qwen_jax.corpus.arrow import pa, pq
from qwen_jax.corpus.partitions import FileRange, Partition
from qwen_jax.corpus.sources import charset, code_files, formats, plain_text, warc
from qwen_jax.corpus.sources.page_worker import PageWorker
from qwen_jax.corpus.sources.rows import (
    column_values,
    from_bytes,
    from_object,
    rejected,
    replace_lone_surrogates,
)
from qwen_jax.corpus.stage import rejected_schema, schema
from qwen_jax.corpus.stage_files import BATCH_BYTES
from qwen_jax.data.document import Document
from qwen_jax.errors import DataError
from qwen_jax.ranges import ABOVE_ZERO, ZERO_OR_MORE, Checked
from qwen_jax.utils import compressed

_CHARSET = re.compile(r"""charset\s*=\s*["']?([^\s"';,]+)""", re.IGNORECASE)
_MAX_BYTES = 1 << 28  # maximum size of a text file or line; larger ones are rejected
_ROW_BYTES = 512  # approximate memory of a row in addition to its text


@dataclasses.dataclass(frozen=True)
class Read(Checked, where="--read.{}"):
    """The read stage, which converts partitions to batches of rows."""

    name: ClassVar[str] = "read"
    counted: ClassVar[tuple[str, ...]] = ("source", "kind")

    text_field: str = option("text", "name of the text column in JSONL and Parquet")
    extractor: Literal["article", "article_fast", "page"] = option(
        "article",
        "article: the main text of web pages; article_fast: the same, faster; page: all text",
    )
    page_seconds: float = option(10.0, "time limit for extracting a page in seconds", ABOVE_ZERO)
    page_mb: float = option(
        10.0, "maximum size of a page in MB of HTML; larger pages are rejected", ABOVE_ZERO
    )
    # Ours: about 10,000 words, a long chapter. A part of a single file can then be held out.
    max_text_kb: float = option(
        64.0,
        "plain text files of more KB are split into documents of at most this size, after blank "
        "lines or else line ends; 0: never",
        ZERO_OR_MORE,
    )

    def notes(self, made: Sequence[Partition]) -> list[str]:
        """Returns a line per source about its local text files that become several documents."""
        size, found = self.max_text_kb * 1e3, collections.Counter()
        for file_range in itertools.chain.from_iterable(made):
            path = file_range.path
            if size and self.is_split(file_range) and os.path.isfile(path):
                found[file_range.source] += os.path.getsize(path) > size
        return [
            f"{name}: {count:,} text files over {self.max_text_kb:g} KB are split into documents "
            "after blank lines or line ends (--read.max_text_kb)"
            for name, count in found.items()
            if count
        ]

    @staticmethod
    def is_split(file_range: FileRange) -> bool:
        """Returns whether a long file is split: it is plain text, not code, a table or settings."""
        return file_range.kind != "code" and partitions.is_prose(file_range.path)

    def batches(self, partition: Partition) -> Iterator[pa.Table]:
        """Yields the rows of a partition as tables: at least one, possibly empty.

        Raises:
          OSError: a file is missing or cannot be read.
        """
        rows: list[dict] = []
        size, empty = 0, True
        with _Reader(self) as reader:
            for file_range in partition:
                where = (
                    ""
                    if file_range.root in partitions.PYTHON
                    else (file_range.name or file_range.root.rsplit("/", 1)[-1])
                )
                for row in reader.named_rows(file_range):
                    location = row["location"]
                    row["id"] = source_files.digest(
                        f"{file_range.source}\0{file_range.name}\0{location}"
                    )
                    row["source"], row["path"] = file_range.source, where + location
                    row.setdefault("kind", file_range.kind)
                    row.setdefault("text", "")
                    rows.append(row)
                    size += len(row["text"]) + len(row.get("metadata") or "") + _ROW_BYTES
                    if size >= BATCH_BYTES:
                        yield _table(rows)
                        rows, size, empty = [], 0, False
        if empty or rows:
            yield _table(rows)


def documents(source: str) -> Iterator[Document]:
    """Yields every non-empty document of a source, in the order of its file names.

    Args:
      source: a source as in --sources (see partitions.py), usually the path of a file or folder.

    Raises:
      DataError: the source is missing, is empty, has files of unknown types or is corrupted.
    """
    names = ["path", "text", "group", *rejected_schema().names]
    made, _ = partitions.make_partitions([source], partition_mb=_MAX_BYTES)
    for batch in itertools.chain.from_iterable(map(Read().batches, made)):
        for row in batch.select(names).to_pylist():
            if row["rejected_by"] is None:
                yield Document(row["path"], row["text"], row["group"])
            elif row["rejected_by"] not in ("no_text", "empty_file"):
                raise DataError(
                    f"{row['rejected_by']}: {row['rejected_value']}.",
                    f"{row['path']} of {source}",
                    "repair the file or remove it from the source.",
                )


def _table(rows: list[dict]) -> pa.Table:
    row_schema, known = pa.schema([*schema(), *rejected_schema()]), set().union(*rows)
    columns = [
        [row.get(name) for row in rows] if name in known else [None] * len(rows)
        for name in row_schema.names
    ]
    try:
        return pa.table(columns, row_schema)
    except UnicodeEncodeError:
        return pa.table(
            [[value and replace_lone_surrogates(value) for value in column] for column in columns],
            row_schema,
        )


class _Reader:
    def __init__(self, settings: Read):
        self._settings = settings
        self._limit = int(settings.page_mb * 1e6)
        self._workers: dict[str, PageWorker] = {}

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_) -> None:
        for worker in self._workers.values():
            worker.close()

    def named_rows(self, file_range: FileRange) -> Iterator[dict[str, Any]]:
        """Yields the rows of a file range; an empty file becomes a rejected row."""
        row = None
        for row in self.rows(file_range):
            yield row
        if row is None and file_range.end < 0:  # unlike a range in which no line starts
            yield rejected("", "empty_file")

    def rows(self, file_range: FileRange) -> Iterator[dict[str, Any]]:
        if file_range.root in partitions.PYTHON:
            yield from _python(file_range)
            return
        with source_files.open_binary(file_range.path) as file:
            if not file.read(1):
                return
            suffix = partitions.known_suffix(file_range.path)
            read = {
                "lines": self._lines,
                "values": self._values,
                "parquet": self._parquet,
                "warc": self._warc,
                "html": self._html,
                "text": self._text,
            }[formats.detect(file, suffix, self._settings.text_field)]
            try:
                yield from read(file_range, file)
            except formats.DAMAGED as error:
                yield rejected("", "damaged_file", formats.damage(error))

    def _html(self, file_range: FileRange, file) -> Iterator[dict]:
        content = compressed.decompressed(file).read(self._limit + 1)
        if len(content) > self._limit:
            yield rejected("", "too_large", f"over {self._limit} bytes")
        else:
            yield self._page("", content, file_range.kind)

    def _text(self, file_range: FileRange, file) -> Iterator[dict]:
        stream, code = formats.open_utf8(file), self._code(file_range)
        size = int(self._settings.max_text_kb * 1e3)
        if size and self._settings.is_split(file_range):
            parts = plain_text.documents(stream, size)
            begin = list(itertools.islice(parts, 2))
            for offset, content in itertools.chain(begin, parts):
                yield from_bytes(f"@{offset}" if len(begin) > 1 else "", content)
            return
        content = stream.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            yield rejected("", "too_large", f"over {_MAX_BYTES} bytes")
        else:
            yield from_bytes("", content) | code

    def _code(self, file_range: FileRange) -> dict:
        language = code_files.LANGUAGES.get(partitions.plain_suffix(file_range.path))
        if file_range.kind != "code" or file_range.root.startswith(source_files.REMOTE):
            return {"language": language} if file_range.kind == "code" else {}
        return {
            "language": language,
            "license": code_files.license_of(file_range.root, file_range.name)
            if file_range.name
            else None,
        }

    def _page(
        self, location: str, content: bytes, kind: str, declared: str | None = None, **columns
    ) -> dict:
        """Returns the row of an HTML page."""
        if charset.is_binary(content):
            return rejected(location, "binary", content[:8].hex(), **columns)
        html, name = charset.decode(content, declared)
        # Reference documentation needs all of its lines, including link menus.
        extractor = "page" if kind == "documentation" else self._settings.extractor
        worker = self._workers.setdefault(
            extractor, PageWorker(extractor, self._settings.page_seconds)
        )
        text, problem = worker.extract(html)
        metadata = json.dumps({"charset": name, "html_bytes": len(content)})
        columns |= {"metadata": metadata}
        if problem:
            return rejected(location, "extraction", problem, **columns)
        if not text.strip():
            return rejected(location, "no_text", len(content), **columns)
        return {"location": location, "text": text, **columns}

    def _warc(self, file_range: FileRange, file) -> Iterator[dict]:
        kind = compressed.compression(file)
        if kind not in ("", "gzip"):
            yield rejected("", "unsupported", f"WARC in {kind}; compress it with gzip instead")
            return
        for record in warc.records(
            file,
            compressed=kind == "gzip",
            begin=file_range.begin,
            end=file_range.end,
            limit=self._limit,
        ):
            url = record.headers.get("warc-target-uri", "").strip("<>") or None
            # A gzip member can hold several records.
            number = self._repeated(record)
            location = f"@{record.offset}#{number}" if number else f"@{record.offset}"
            kind = record.headers.get("warc-type")
            if record.problem:
                yield rejected(location, f"warc_{record.problem}", record.detail, url=url)
            elif kind == "conversion":  # in a .wet file
                yield from_bytes(location, record.content) | {"url": url}
            elif kind == "response":
                yield self._response(file_range, location, record, url)
            elif kind == "resource":
                yield self._body(
                    file_range,
                    location,
                    record.headers.get("content-type", ""),
                    record.content,
                    url,
                )
            else:
                yield rejected(location, "not_a_page", kind, url=url)

    _last = (-1, 0)

    def _repeated(self, record: warc.Record) -> int:
        offset, number = self._last
        self._last = (record.offset, number + 1 if record.offset == offset else 0)
        return self._last[1]

    def _response(
        self, file_range: FileRange, location: str, record: warc.Record, url: str | None
    ) -> dict:
        status, headers, body, problem = warc.http_body(record.content, self._limit)
        if problem:
            return rejected(
                location, f"http_{problem}", headers.get("content-encoding", status), url=url
            )
        if status != 200:
            return rejected(location, "http_status", status, url=url)
        return self._body(file_range, location, headers.get("content-type", ""), body, url)

    def _body(
        self, file_range: FileRange, location: str, declared: str, body: bytes, url: str | None
    ) -> dict:
        mime, _, rest = declared.partition(";")
        mime = mime.strip().lower()
        found = _CHARSET.search(rest)
        name = found and found[1]
        if mime in ("text/html", "application/xhtml+xml", ""):
            return self._page(location, body, file_range.kind, name, url=url)
        if mime == "text/plain" and not charset.is_binary(body):
            text = charset.decode(body, name)[0]
            return (
                {"location": location, "text": text, "url": url}
                if text.strip()
                else rejected(location, "no_text", len(body), url=url)
            )
        return rejected(location, "content_type", mime, url=url)

    def _lines(self, file_range: FileRange, file) -> Iterator[dict]:
        lines = formats.open_utf8(file)
        offset = file_range.begin
        if offset:  # a line belongs to the range of its first byte
            lines.seek(offset - 1)
            offset += _skip_line(lines) - 1
        while file_range.end < 0 or offset < file_range.end:
            location = f"@{offset}"
            try:
                line = lines.readline(_MAX_BYTES)
                longer = 0 if line.endswith(b"\n") or len(line) < _MAX_BYTES else _skip_line(lines)
            except formats.DAMAGED as error:
                yield rejected(location, "damaged_file", formats.damage(error))
                return
            if not line:
                return
            offset += len(line) + longer
            if longer:
                yield rejected(location, "too_large", f"{len(line) + longer} bytes")
            elif line.strip():
                yield self._json_row(location, line)

    def _values(self, file_range: FileRange, file) -> Iterator[dict]:
        found = formats.values(formats.open_utf8(file), _MAX_BYTES)
        for number, value in enumerate(found):
            if isinstance(value, Exception):
                yield rejected(f"#{number}", "not_json", f"from here on: {value}")
            else:
                yield self._row(f"#{number}", value)

    def _row(self, location: str, row: Any) -> dict:
        return from_object(location, row, self._settings.text_field)

    def _json_row(self, location: str, line: bytes) -> dict:
        try:
            return self._row(location, json.loads(line.removeprefix(codecs.BOM_UTF8).decode()))
        except (ValueError, RecursionError) as error:
            return rejected(location, "not_json", error)

    def _parquet(self, file_range: FileRange, file) -> Iterator[dict]:
        if compressed.compression(file):
            file = io.BytesIO(compressed.decompressed(file).read())
        try:
            opened = pq.ParquetFile(file)
        except source_files.arrow_errors() as error:
            yield rejected("", "damaged_file", source_files.damage(error))
            return
        stop = 0
        for number in range(opened.num_row_groups):
            row, stop = stop, stop + opened.metadata.row_group(number).num_rows
            if row < file_range.begin or 0 <= file_range.end <= row:
                continue
            try:
                # Few rows: with dictionary encoding, each can be a copy of one huge text.
                for batch in opened.iter_batches(16, row_groups=[number]):
                    columns = map(column_values, batch.columns)
                    for values in zip(*columns, strict=True):
                        yield self._row(
                            f"#{row}", dict(zip(batch.schema.names, values, strict=True))
                        )
                        row += 1
            except source_files.arrow_errors() as error:  # other row groups may be intact
                yield rejected(
                    f"#{row}",
                    "damaged_rows",
                    f"{stop - row} rows: {source_files.damage(error)}",
                )


def _skip_line(lines) -> int:
    """Skips to the end of the line and returns the number of skipped bytes."""
    skipped = 0
    while part := lines.readline(1 << 20):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def _python(file_range: FileRange) -> Iterator[dict]:
    from qwen_jax.corpus.sources import python_docs

    if file_range.root == "python:code":
        documents, failures = python_docs.source_code(), {}
    else:
        with tqdm(unit=" modules", disable=None) as bar:  # off if stderr is not a terminal

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            documents, failures = python_docs.documentation(progress)
    code = {"language": "python", "license": "Python-2.0"} if file_range.kind == "code" else {}
    for document in documents:
        yield {"location": document.name, "text": document.text, "group": document.group, **code}
    for module in sorted(failures):
        yield rejected(module, "cannot_be_imported", failures[module])
