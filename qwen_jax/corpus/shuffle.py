"""Rows that belong together wherever they are: keys on disk, sorted by hash, read bucket by bucket.

Each partition writes its keys sorted by hash; a bucket is a range of hashes, read out of every
partition's keys and held in memory alone; what it finds is written sorted by document, so that each
partition reads its own part. No step holds more than a bucket or a partition of any corpus.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np

from qwen_jax.corpus.arrow import pa, pc, pq
from qwen_jax.corpus.stage_files import ParquetFile

BUCKET_ROWS = 1_000_000  # keys of one bucket, about: some 130 MB while they are compared
_ROWS = 1 << 16  # of a row group, the least that is read


@functools.cache
def removed_schema() -> pa.Schema:
    """Of the documents that a shuffle removes: order and part, and the order of the one kept."""
    return pa.schema([("order", pa.int64()), ("part", pa.uint32()), ("kept", pa.int64())])


class Shuffle(Protocol):
    """A stage that compares documents across partitions.

    Documents have an order: that of the sources in the recipe, of files in them, of rows in these.
    `linked` says that what is alike a document's like goes with it (connected components).
    `index` names folders of keys of earlier runs; their documents come before all others.
    """

    linked: ClassVar[bool]

    @property
    def name(self) -> str: ...

    @property
    def counted(self) -> tuple[str, ...]: ...

    @property
    def index(self) -> tuple[str, ...]: ...

    def keys(self, table: pa.Table, first: int) -> pa.Table:
        """`hash` (uint64), `row` (uint32, from `first`) and what else duplicates() needs."""

    def duplicates(self, keys: pa.Table) -> pa.Table:
        """Of a bucket's keys, with the `order` of their documents: rows of `removed_schema`, where
        `kept` is the first document that has what `order` has."""

    def remove(self, table: pa.Table, removed: pa.Table, names: Sequence[str]) -> pa.Table:
        """The batch with its duplicates rejected.

        Args:
          removed: `row` (in the batch), `part`, and `kept`.
          names: of each row of `removed`, where the kept document is.
        """


def write_keys(path: pathlib.Path, tables: Sequence[pa.Table]) -> None:
    """Keys of one partition, sorted by hash."""
    table = pa.concat_tables(tables).combine_chunks()
    table = table.take(pc.sort_indices(table["hash"]))
    file = ParquetFile(path, compression="none", use_dictionary=False)
    for begin in range(0, max(len(table), 1), _ROWS):
        file.write(table.slice(begin, _ROWS))
    file.close()


def bucket_edges(files: Sequence[pathlib.Path]) -> list[int]:
    """Hashes at which to cut all keys into buckets: from 0 to 2^64."""
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    number = max(1, -(-rows // BUCKET_ROWS))
    return [(i << 64) // number for i in range(number + 1)]


def read_bucket(files: Sequence[pathlib.Path], begin: int, end: int) -> pa.Table:
    """The keys of [begin, end) of all partitions, with `order` (partition << 32 | row)."""
    tables = []
    for number, path in enumerate(files):
        file = pq.ParquetFile(path)
        groups = []
        for group in range(file.num_row_groups):
            statistics = file.metadata.row_group(group).column(0).statistics
            if (
                statistics is None
                or not statistics.has_min_max
                or (statistics.max >= begin and statistics.min < end)
            ):
                groups.append(group)
        table = file.read_row_groups(groups)
        hashes = table["hash"].to_numpy()
        table = table.slice(
            first := int(np.searchsorted(hashes, np.uint64(begin))),
            int(np.searchsorted(hashes, np.uint64(end - 1), "right")) - first,
        )
        order = table["row"].to_numpy().astype(np.int64) | np.int64(number) << 32
        tables.append(table.drop_columns("row").append_column("order", pa.array(order)))
    return pa.concat_tables(tables)


def write_removed(path: pathlib.Path, removed: pa.Table) -> None:
    """What is removed, sorted by document."""
    removed = removed.combine_chunks().take(
        pc.sort_indices(removed, [("order", "ascending"), ("part", "ascending")])
    )
    file = ParquetFile(path)
    for begin in range(0, max(len(removed), 1), _ROWS):
        file.write(removed.slice(begin, _ROWS))
    file.close()


def read_removed(folder: pathlib.Path, partition: int) -> pa.Table:
    """What is removed of one partition, sorted: `row`, `part`, `kept`.

    Args:
      partition: its number, those of the index counted.
    """
    begin, end = partition << 32, (partition + 1) << 32
    tables = [
        pq.read_table(path, filters=[("order", ">=", begin), ("order", "<", end)])
        for path in sorted(folder.glob("*.parquet"))
    ]
    table = pa.concat_tables(tables).combine_chunks()
    table = table.take(pc.sort_indices(table, [("order", "ascending"), ("part", "ascending")]))
    row = table["order"].to_numpy() & 0xFFFFFFFF
    return pa.table({"row": row.astype(np.int64), "part": table["part"], "kept": table["kept"]})


def removed_from_batch(removed: pa.Table, first: int, size: int) -> pa.Table:
    """The part of `removed` that concerns rows [first, first + size), counted from `first`."""
    rows = removed["row"].to_numpy()
    begin, end = np.searchsorted(rows, [first, first + size])
    part = removed.slice(begin, end - begin)
    return part.set_column(0, "row", pa.array(rows[begin:end] - first))


def first_of_group(*columns: np.ndarray) -> np.ndarray:
    """For rows that are sorted by `columns`: of each row, the first one that is equal in them."""
    new = np.zeros(len(columns[0]), bool)
    new[:1] = True
    for column in columns:
        new[1:] |= column[1:] != column[:-1]
    return np.maximum.accumulate(np.where(new, np.arange(len(new)), 0))
