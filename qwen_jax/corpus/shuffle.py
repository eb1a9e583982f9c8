"""Groups rows across partitions: keys on disk, sorted by hash, are read one bucket at a time.

Each partition writes its keys sorted by hash. A bucket is a range of hashes, read from the keys of
every partition; only one is in memory at a time. Its duplicates are written sorted by document, and
each partition then reads its own range. Memory is bounded by one bucket or one partition.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np

from qwen_jax.corpus.arrow import pa, pc, pq
from qwen_jax.corpus.stage_files import ParquetFile

BUCKET_ROWS = 1_000_000  # approximate keys per bucket; comparing them takes about 130 MB
_ROWS = 1 << 16  # rows in a row group, the smallest unit that is read


@functools.cache
def removed_schema() -> pa.Schema:
    """Returns the schema of removed rows: `order` and `part`, and the `order` of the kept one."""
    return pa.schema([("order", pa.int64()), ("part", pa.uint32()), ("kept", pa.int64())])


class Shuffle(Protocol):
    """A stage that compares documents across partitions.

    Documents are ordered by source (as listed in --sources), then by file, then by row.

    Attributes:
      linked: whether duplicates are transitive: only the first of a connected component is kept.
      index: folders with the keys of earlier runs, whose documents precede all others.
    """

    linked: ClassVar[bool]

    @property
    def name(self) -> str: ...

    @property
    def counted(self) -> tuple[str, ...]: ...

    @property
    def index(self) -> tuple[str, ...]: ...

    def keys(self, table: pa.Table, first: int) -> pa.Table:
        """Returns the columns `hash` (uint64), `row` (uint32) and those that duplicates() needs.

        Args:
          first: the `row` of the table's first row, which is its number within the partition.
        """

    def duplicates(self, keys: pa.Table) -> pa.Table:
        """Returns the duplicates among a bucket's keys, in `removed_schema`.

        Args:
          keys: the columns of keys(), with the documents' `order` instead of `row`.

        Returns:
          A table with one row per duplicate; `kept` is the first document with the same hash.
        """

    def remove(self, table: pa.Table, removed: pa.Table, names: Sequence[str]) -> pa.Table:
        """Returns the batch with its duplicates rejected.

        Args:
          removed: the duplicates, with `row` (within the batch), `part` and `kept`.
          names: the location of the kept document, for each row of `removed`.
        """


def write_keys(path: pathlib.Path, tables: Sequence[pa.Table]) -> None:
    """Writes the keys of one partition, sorted by hash."""
    table = pa.concat_tables(tables).combine_chunks()
    table = table.take(pc.sort_indices(table["hash"]))
    file = ParquetFile(path, compression="none", use_dictionary=False)
    for begin in range(0, max(len(table), 1), _ROWS):
        file.write(table.slice(begin, _ROWS))
    file.close()


def bucket_edges(files: Sequence[pathlib.Path]) -> list[int]:
    """Returns the hashes that separate the buckets, from 0 to 2^64."""
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    number = max(1, -(-rows // BUCKET_ROWS))
    return [(i << 64) // number for i in range(number + 1)]


def read_bucket(files: Sequence[pathlib.Path], begin: int, end: int) -> pa.Table:
    """Returns the keys of all partitions with a hash in [begin, end).

    The column `order` (partition << 32 | row) replaces `row`.
    """
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
    """Writes the removed rows, sorted by document."""
    removed = removed.combine_chunks().take(
        pc.sort_indices(removed, [("order", "ascending"), ("part", "ascending")])
    )
    file = ParquetFile(path)
    for begin in range(0, max(len(removed), 1), _ROWS):
        file.write(removed.slice(begin, _ROWS))
    file.close()


def read_removed(folder: pathlib.Path, partition: int) -> pa.Table:
    """Returns the removed rows of one partition, sorted: `row`, `part`, `kept`.

    Args:
      partition: the number of the partition; partitions of the index are numbered first.
    """
    begin, end = partition << 32, (partition + 1) << 32
    tables = [
        pq.read_table(path, filters=[("order", ">=", begin), ("order", "<", end)])
        # Not glob, for which a folder that cannot be read is empty.
        for path in sorted(folder / name for name in os.listdir(folder))
        if path.suffix == ".parquet"
    ]
    table = pa.concat_tables(tables).combine_chunks()
    table = table.take(pc.sort_indices(table, [("order", "ascending"), ("part", "ascending")]))
    row = table["order"].to_numpy() & 0xFFFFFFFF
    return pa.table({"row": row.astype(np.int64), "part": table["part"], "kept": table["kept"]})


def removed_from_batch(removed: pa.Table, first: int, size: int) -> pa.Table:
    """Returns `removed` restricted to rows [first, first + size), renumbered from 0."""
    rows = removed["row"].to_numpy()
    begin, end = np.searchsorted(rows, [first, first + size])
    part = removed.slice(begin, end - begin)
    return part.set_column(0, "row", pa.array(rows[begin:end] - first))


def first_of_group(*columns: np.ndarray) -> np.ndarray:
    """Returns the index of the first equal row for each row; rows are sorted by `columns`."""
    new = np.zeros(len(columns[0]), bool)
    new[:1] = True
    for column in columns:
        new[1:] |= column[1:] != column[:-1]
    return np.maximum.accumulate(np.where(new, np.arange(len(new)), 0))
