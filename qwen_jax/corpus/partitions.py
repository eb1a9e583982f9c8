"""Sources, listed and cut into partitions: what one task reads. Report: 2.1.

A source is written [NAME=][KIND:]PATH, as in `web=web:crawl` or `code:repositories`. PATH is a file
or folder here, `s3://...` or `gs://...` (listed and read by the data engine), or `python:docs` and
`python:code`, the documentation and source of this computer's own Python. Big JSONL, Parquet and
WARC files are cut into ranges, small files go together, in the order of their names.
"""

import collections
import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Sequence

from qwen_jax.corpus import source_files
from qwen_jax.corpus.sources.code_files import LANGUAGES
from qwen_jax.corpus.stage import KINDS
from qwen_jax.errors import ConfigError, DataError

PYTHON = ("python:docs", "python:code")
HTML = (".html", ".htm", ".xhtml")
TABLES = (".jsonl", ".ndjson", ".parquet")
ARCHIVES = (".warc", ".wet")
TEXT = tuple(
    """
    .txt .text .md .rst .tex .csv .json .xml .yaml .yml .toml .py .pyi .ipynb .c .h .cc .cpp
    .hpp .cu .java .js .ts .go .rs .rb .sh .sql .php .cs .scala .kt .swift .lua .r .jl .pl .hs
    .css .proto
    """.split()
)
_SPLITTABLE = (".jsonl", ".ndjson", *ARCHIVES, *(f"{end}.gz" for end in ARCHIVES))  # by bytes


@dataclasses.dataclass(frozen=True)
class Source:
    """One of the recipe's sources."""

    name: str
    kind: str | None  # None: by what each file is
    path: str


@dataclasses.dataclass(frozen=True)
class FileRange:
    """A file, or a part of one. `begin` and `end` are bytes, of Parquet rows; end -1: all of it."""

    source: str
    kind: str
    root: str  # the source's folder
    name: str  # the file's path in it
    begin: int = 0
    end: int = -1

    @property
    def path(self) -> str:
        return f"{self.root}/{self.name}" if self.name else self.root


Partition = tuple[FileRange, ...]


def parse(text: str) -> Source:
    """A source as it is written in a recipe.

    Raises:
      ConfigError: it has no path, or no name that a folder can have.
    """
    name, equals, rest = text.partition("=")
    if not equals or "/" in name or ":" in name:
        name, rest = "", text
    kind, colon, path = rest.partition(":")
    if not colon or kind not in KINDS:
        kind, path = None, rest
    if not path:
        raise ConfigError(
            "this source has no path.",
            f"--sources={text}",
            f"write [NAME=][KIND:]PATH; kinds: {', '.join(KINDS)}.",
        )
    if path in PYTHON:
        kind = kind or ("documentation" if path == PYTHON[0] else "code")
    path = path.rstrip("/") or "/"
    full = (
        path if path.startswith(source_files.REMOTE) else os.path.abspath(path)
    )  # of `.` and `..`
    name = name or full.rsplit("/", 1)[-1].lstrip(".").split(".")[0].replace(":", "-")
    if name in ("", ".", ".."):  # its shards have a folder of this name
        raise ConfigError(
            f"{name!r} is no name for a source.",
            f"--sources={text}",
            "give it one: --sources=NAME=PATH.",
        )
    return Source(name, kind, path)


def make_partitions(wanted: Sequence[str], *, partition_mb: float) -> tuple[list[Partition], dict]:
    """The partitions of all sources, and what they were made from.

    Args:
      wanted: sources as in a recipe; where documents are equal, those of earlier ones stay.

    Returns:
      (partitions, {source: {"path", "files", "bytes", "passed_over": {suffix: files}, "listing":
      hash of all names, sizes and times}}).

    Raises:
      ConfigError: none, or two of a name.
      DataError: a source is missing, empty, or has files of unknown kinds.
    """
    parsed = [parse(text) for text in wanted]
    names = [source.name for source in parsed]
    if not parsed:
        raise ConfigError("there are no sources.", "--sources", "name files or folders to read.")
    for name, count in collections.Counter(names).items():
        if count > 1:
            raise ConfigError(
                f"{count} sources are called {name!r}.",
                "--sources",
                "name them: --sources=NAME=PATH,OTHER=PATH.",
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
    """Raises ConfigError where `output` is in a source: what is written would be read as well."""
    for source in map(parse, wanted):
        local = source.path not in PYTHON and not source.path.startswith(source_files.REMOTE)
        if local and output.resolve().is_relative_to(pathlib.Path(source.path).resolve()):
            raise ConfigError(
                "the output lies in a source, which would be another one next time.",
                str(output),
                f"name a folder outside of {source.path}.",
            )


def suffix(name: str) -> str:
    """`.warc.gz` of a/b.warc.gz, `.py` of c.py."""
    path = pathlib.PurePosixPath(name.lower())
    return "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix


def plain_suffix(name: str) -> str:
    """`.warc` of a/b.warc.gz; `.gz` of c.gz, which tells nothing."""
    end = suffix(name)
    return end.removesuffix(".gz") or end


def _listing(source: Source) -> tuple[list[source_files.File], collections.Counter]:
    files = source_files.listing(source.path)
    code = source.kind == "code"
    known = {*LANGUAGES, *TABLES} if code else {*HTML, *TABLES, *TEXT, *ARCHIVES}
    suffixes = [file.unreadable or plain_suffix(file.name or source.path) for file in files]
    wanted = [file for file, end in zip(files, suffixes, strict=True) if end in known]
    passed_over = collections.Counter(end or "none" for end in suffixes if end not in known)
    if passed_over and not code:
        first = next(f.name for f, end in zip(files, suffixes, strict=True) if end not in known)
        raise DataError(
            f"{passed_over.total()} of {len(files)} files are of kinds that are not "
            f"read: {', '.join(sorted(passed_over))}.",
            f"{source.path}, first {first or 'the file itself'}",
            "move them out of the folder or rename them to .txt; of a `code:` source "
            "they are counted and passed over.",
        )
    if not wanted:
        raise DataError(
            "this source has no file that can be read.",
            source.path,
            "put text, HTML, JSONL, Parquet or WARC files there.",
        )
    return wanted, passed_over


def _kind(source: Source, name: str) -> str:
    if source.kind:
        return source.kind
    end = plain_suffix(name)
    if end in (*HTML, *ARCHIVES):
        return "web"
    return "code" if end in LANGUAGES else "text"


def _split(source: Source, files: Iterable[source_files.File], size: int) -> list[Partition]:
    partitions, together, total = [], [], 0
    for file in files:
        name = file.name or source.path
        full_file = FileRange(source.name, _kind(source, name), source.path, file.name)
        end = suffix(name)
        if file.size > size and (end in _SPLITTABLE or end == ".parquet"):
            if together:
                partitions.append(tuple(together))
                together, total = [], 0
            cuts = (
                source_files.row_groups(full_file.path, size)
                if end == ".parquet"
                else [*range(0, file.size, size), file.size]
            )
            partitions += [
                (dataclasses.replace(full_file, begin=begin, end=stop),)
                for begin, stop in itertools.pairwise(cuts)
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
