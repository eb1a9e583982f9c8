"""Lists sources and splits them into partitions, each the input of one task. Report: 2.1.

A source is written [NAME=][KIND:]PATH, as in `web=web:crawl` or `code:repositories`. PATH is a
local file or folder, `s3://...` or `gs://...` (listed and read by Daft), or `python:docs` and
`python:code`, the documentation and source code of the running Python. Large JSONL, Parquet and
WARC files are split into ranges; small files are grouped, in the order of their names. A file with
an unknown suffix is read if it is text, or in a format that its content shows.
"""

import collections
import dataclasses
import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

from qwen_jax.corpus import source_files
from qwen_jax.corpus.sources import formats
from qwen_jax.corpus.sources.code_files import LANGUAGES
from qwen_jax.corpus.stage import KINDS
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.utils.compressed import SUFFIXES, compression

PYTHON = ("python:docs", "python:code")
TABLES = (*formats.LINES, ".parquet")
TEXT = tuple(
    """
    .txt .text .md .rst .tex .csv .json .xml .yaml .yml .toml .py .pyi .ipynb .c .h .cc .cpp
    .hpp .cu .java .js .ts .go .rs .rb .sh .sql .php .cs .scala .kt .swift .lua .r .jl .pl .hs
    .css .proto
    """.split()
)
_PROSE = (*formats.PROSE, ".md", ".rst", ".tex")
# What saved pages have with them. It has no text and is counted, not refused.
_MEDIA = frozenset(
    ".avif .bmp .eot .gif .ico .jpeg .jpg .mp3 .mp4 .ogg .otf .png .tif .tiff .ttf .wav .webm "
    ".webp .woff .woff2".split()
)
_KNOWN = frozenset((*formats.HTML, *TABLES, *TEXT, *formats.ARCHIVES))
# Made by programs; of no use in any corpus.
_GENERATED = {"__pycache__", "Thumbs.db", "desktop.ini"}


@dataclasses.dataclass(frozen=True)
class Source:
    """A parsed --sources entry."""

    name: str
    kind: str | None  # None: inferred per file
    path: str


@dataclasses.dataclass(frozen=True)
class FileRange:
    """A file or a range of it.

    `begin` and `end` are byte offsets, or row indices in a Parquet file; an `end` of -1 is the
    file's end.
    """

    source: str
    kind: str
    root: str  # path of the source
    name: str  # path of the file within the source; "" if the source is this file
    begin: int = 0
    end: int = -1

    @property
    def path(self) -> str:
        return f"{self.root}/{self.name}" if self.name else self.root


Partition = tuple[FileRange, ...]


def parse(text: str) -> Source:
    """Parses a source written as [NAME=][KIND:]PATH.

    Raises:
      ConfigError: it has no path, or its name cannot be a folder name.
    """
    name, equals, rest = text.partition("=")
    if not equals or "/" in name or ":" in name:
        name, rest = "", text
    kind, colon, path = rest.partition(":")
    word = kind
    if not colon or kind not in KINDS:
        kind, path = None, rest
    if not path:
        raise ConfigError(
            "this source has no path.",
            f"--sources={text}",
            f"write [NAME=][KIND:]PATH; kinds: {', '.join(KINDS)}.",
        )
    local = not path.startswith(source_files.REMOTE) and not os.path.exists(path)
    if colon and kind is None and path not in PYTHON and local and re.fullmatch(r"[a-z]{2,}", word):
        raise ConfigError(
            f"there is no kind {word!r}, and no file of this name.",
            f"--sources={text}",
            f"write [NAME=][KIND:]PATH; kinds: {', '.join(KINDS)}.",
        )
    if path in PYTHON:
        kind = kind or ("documentation" if path == PYTHON[0] else "code")
    path = path.rstrip("/") or "/"
    full = (
        path if path.startswith(source_files.REMOTE) else os.path.abspath(path)
    )  # gives `.` and `..` a name
    name = name or full.rsplit("/", 1)[-1].lstrip(".").split(".")[0].replace(":", "-")
    if name in ("", ".", ".."):  # its shards go into a folder with this name
        raise ConfigError(
            f"{name!r} is not a valid source name.",
            f"--sources={text}",
            "set a name: --sources=NAME=PATH.",
        )
    return Source(name, kind, path)


def make_partitions(wanted: Sequence[str], *, partition_mb: float) -> tuple[list[Partition], dict]:
    """Splits all sources into partitions.

    Args:
      wanted: sources as in --sources. Of duplicate documents, the one from the first source is
        kept.
      partition_mb: megabytes of source files per partition.

    Returns:
      (partitions, {source: {"path", "files", "bytes", "passed_over": {suffix: number of skipped
      files}, "listing": hash of all names, sizes and modification times}}).

    Raises:
      ConfigError: there are no sources, or two have the same name.
      DataError: a source is missing, is empty or has files of unknown types.
    """
    parsed = [parse(text) for text in wanted]
    names = [source.name for source in parsed]
    if not parsed:
        raise ConfigError("no sources.", "--sources", "pass the files or folders to read.")
    for name, count in collections.Counter(names).items():
        if count > 1:
            raise ConfigError(
                f"{count} sources are named {name!r}.",
                "--sources",
                "give each its own name: --sources=NAME=PATH,OTHER=PATH.",
            )
    partitions, record = [], {}
    size = max(1, int(partition_mb * 1e6))
    for source in parsed:
        if source.path in PYTHON:
            partitions.append((FileRange(source.name, _kind(source, ""), source.path, ""),))
            record[source.name] = {
                "path": source.path,
                "files": 1,
                "bytes": 0,
                "passed_over": {},
                "listing": "",
            }
            continue
        files, passed_over = _listing(source)
        partitions += _split(source, files, size)
        record[source.name] = {
            "path": source.path,
            "files": len(files),
            "bytes": sum(file.size for file in files),
            "passed_over": dict(sorted(passed_over.items())),
            "listing": source_files.digest(
                json.dumps([[f.name, f.size, f.mtime_ns] for f in files])
            ),
        }
    return partitions, record


def check_outside(wanted: Sequence[str], output: pathlib.Path) -> None:
    """Raises ConfigError if `output` is inside a source: the run would read its own output."""
    for source in map(parse, wanted):
        local = source.path not in PYTHON and not source.path.startswith(source_files.REMOTE)
        if local and output.resolve().is_relative_to(pathlib.Path(source.path).resolve()):
            raise ConfigError(
                "the output folder is inside a source, so the next run would read it.",
                str(output),
                f"choose an --output folder outside {source.path}.",
            )


def plain_suffix(name: str) -> str:
    """Returns the suffix without `.gz` and the like: `.warc` for a/b.warc.gz; `.gz` for c.gz."""
    path = pathlib.PurePosixPath(name.lower())
    return (path.suffix in SUFFIXES and path.with_suffix("").suffix) or path.suffix


def known_suffix(name: str) -> str:
    """Returns the plain suffix, or "" if it says nothing about the content."""
    end = plain_suffix(name)
    return end if end in _KNOWN else ""


def is_prose(name: str) -> bool:
    """Returns whether the name is that of a plain text, and not of code, a table or settings."""
    return known_suffix(name) in _PROSE


def _listing(source: Source) -> tuple[list[source_files.File], collections.Counter]:
    files = source_files.listing(source.path)
    code = source.kind == "code"
    wanted, refused, passed_over = [], [], collections.Counter()
    for file in files:
        name = file.name or source.path
        generated = _GENERATED.intersection(pathlib.PurePosixPath(file.name).parts)
        end = next(iter(generated), None) or file.unreadable or plain_suffix(name)
        if not (generated or file.unreadable) and _is_read(source, file, end):
            wanted.append(file)
            continue
        passed_over[end or "none"] += 1
        if not code and not generated and end not in _MEDIA:
            refused.append((name, end or "none"))
    if refused:
        raise DataError(
            f"{len(refused)} of {len(files)} files have an unsupported type, or are text that is "
            f"not UTF-8: {', '.join(sorted({end for _, end in refused}))}.",
            f"{source.path}, first: {refused[0][0]}",
            "move them out of the folder, unpack archives, and convert documents to text, and text "
            "to UTF-8 (iconv); a `code:` source counts and skips them.",
        )
    if not wanted:
        raise DataError(
            "this source has no supported files.",
            source.path,
            "add text, HTML, JSONL, Parquet or WARC files.",
        )
    return wanted, passed_over


def _is_read(source: Source, file: source_files.File, end: str) -> bool:
    if source.kind == "code":
        return end in LANGUAGES or end in TABLES
    if end in _KNOWN:
        return True
    with source_files.open_binary(f"{source.path}/{file.name}" if file.name else source.path) as f:
        return formats.is_text(f)


def _kind(source: Source, name: str) -> str:
    if source.kind:
        return source.kind
    end = plain_suffix(name)
    if end in (*formats.HTML, *formats.ARCHIVES):
        return "web"
    return "code" if end in LANGUAGES else "text"


def _split(source: Source, files: Iterable[source_files.File], size: int) -> list[Partition]:
    partitions, together, total = [], [], 0
    for file in files:
        name = file.name or source.path
        full_file = FileRange(source.name, _kind(source, name), source.path, file.name)
        if file.size > size and (edges := _edges(full_file.path, file.size, size)):
            if together:
                partitions.append(tuple(together))
                together, total = [], 0
            partitions += [
                (dataclasses.replace(full_file, begin=begin, end=stop),)
                for begin, stop in itertools.pairwise(edges)
            ]
            continue
        if together and total + file.size > size:
            partitions.append(tuple(together))
            together, total = [], 0
        together.append(full_file)
        total += file.size
    if together:
        partitions.append(tuple(together))
    return partitions


def _edges(path: str, total: int, size: int) -> list[int]:
    """Returns where to split a large file: bytes, or rows of Parquet; [] if it cannot be split."""
    end = known_suffix(path)
    if end not in (*formats.LINES, ".json", ".parquet", *formats.ARCHIVES):
        return []
    if end == ".parquet":
        return source_files.row_groups(path, size)
    with source_files.open_binary(path) as file:
        kind, layout = compression(file), formats.detect(file, end, None)
        split = (layout == "warc" and kind in ("", "gzip")) or (
            layout == "lines" and not kind and formats.open_utf8(file) is file
        )
    return [*range(0, total, size), total] if split else []
