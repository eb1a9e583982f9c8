"""Removes exact duplicates of documents, paragraphs or URLs. Report: 2.1.

Texts are compared after NFKC, case folding and whitespace normalization. The first occurrence, in
the order of the sources, is kept.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import unicodedata
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from qwen_jax.corpus.arrow import pa
from qwen_jax.corpus.shuffle import first_of_group, removed_schema
from qwen_jax.corpus.stage import reject, set_column


@functools.cache
def _keys_schema() -> pa.Schema:
    return pa.schema(
        [("hash", pa.uint64()), ("check", pa.uint64()), ("row", pa.uint32()), ("part", pa.uint32())]
    )


def normalize(text: str) -> str:
    """Returns the text in NFKC, case-folded, with whitespace runs collapsed to one space."""
    return " ".join(
        (text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold().split()
    )


def normalize_url(url: str) -> str:
    """Removes the scheme, `www.`, fragment and trailing slash; case-folds the host."""
    host, slash, path = re.sub(r"^[a-zA-Z][\w+.-]*://", "", url.strip()).partition("/")
    return (host.casefold().removeprefix("www.") + slash + path.partition("#")[0]).rstrip("/")


@dataclasses.dataclass(frozen=True)
class ExactDedup:
    """Rejects documents whose text or URL occurred earlier, or removes repeated paragraphs."""

    linked: ClassVar[bool] = False

    by: Literal["document", "paragraph", "url"] = "document"
    min_characters: int = 40  # minimum paragraph length; headings repeat legitimately
    index: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"exact_{self.by}"

    @property
    def counted(self) -> tuple[str, ...]:
        return ("removed_paragraphs",) if self.by == "paragraph" else ()

    def keys(self, table: pa.Table, first: int) -> pa.Table:
        """Implements shuffle.Shuffle."""
        digests, rows, parts = [], [], []
        columns = (table[name].to_pylist() for name in ("text", "url", "kind"))
        for row, (text, url, kind) in enumerate(zip(*columns, strict=True), first):
            for part, key in self._parts(text, url, kind):
                digests.append(
                    hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
                )
                rows.append(row)
                parts.append(part)
        both = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)
        return pa.table(
            [both[:, 0], both[:, 1], pa.array(rows, pa.uint32()), pa.array(parts, pa.uint32())],
            schema=_keys_schema(),
        )

    def _parts(self, text: str, url: str | None, kind: str):
        if self.by == "document":
            yield 0, normalize(text)
        elif self.by == "url":
            if url:
                yield 0, normalize_url(url)
        elif kind != "code":  # identical lines of code are normal
            for number, line in enumerate(text.split("\n")):
                if len(line) >= self.min_characters:
                    yield number, normalize(line)

    def duplicates(self, keys: pa.Table) -> pa.Table:
        """Implements shuffle.Shuffle."""
        hashes, checks, orders, parts = (
            keys[name].to_numpy() for name in ("hash", "check", "order", "part")
        )
        by = np.lexsort((parts, orders, checks, hashes))
        first = first_of_group(hashes[by], checks[by])
        later = first != np.arange(len(first))
        return pa.table(
            [orders[by][later], parts[by][later], orders[by][first[later]]], schema=removed_schema()
        )

    def remove(self, table: pa.Table, removed: pa.Table, names: Sequence[str]) -> pa.Table:
        """Implements shuffle.Shuffle."""
        rows, parts = removed["row"].to_pylist(), removed["part"].to_pylist()
        verdicts: list = [None] * len(table)
        if self.by != "paragraph":
            for row, name in zip(rows, names, strict=True):
                verdicts[row] = (self.name, name)
            return reject(table, verdicts)
        gone: dict[int, set[int]] = {}
        for row, part in zip(rows, parts, strict=True):
            gone.setdefault(row, set()).add(part)
        texts = table["text"].to_pylist()
        for row, numbers in gone.items():
            lines = texts[row].split("\n")
            left = "\n".join(line for i, line in enumerate(lines) if i not in numbers)
            if left.strip():
                texts[row] = left
            else:  # the rejected row keeps its original text
                verdicts[row] = (self.name, float(len(numbers)))
        table = set_column(table, "text", texts, pa.large_string())
        counts = np.zeros(len(table), np.int32)
        for row, numbers in gone.items():
            counts[row] = len(numbers)
        return reject(set_column(table, "removed_paragraphs", pa.array(counts)), verdicts)
