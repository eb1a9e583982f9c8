"""The files of a stage: kept rows, rejected rows and counts of each partition.

OUTPUT/03-language/ has kept/00000.parquet, rejected/00000.parquet and 00000.json. Each is written
under a temporary name and renamed, the counts last: a partition with counts is finished.
"""

from __future__ import annotations

import collections
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from qwen_jax.corpus.arrow import pa, pc, pq
from qwen_jax.corpus.stage import rejected_schema
from qwen_jax.utils.files import WRITING, put_in_place, read_json, temporary_path, write_json

BATCH_BYTES = 8 << 20  # bytes of text in one batch and row group


class StageFolder:
    """The output folder of a stage.

    Args:
      root: the run's folder.
      number: the stage's position in the pipeline, from 1.
      name: the stage's name.
    """

    def __init__(self, root: str | os.PathLike, number: int, name: str):
        self.path = pathlib.Path(root) / f"{number:02}-{name}"
        self.name = name

    def kept(self, partition: int) -> pathlib.Path:
        return self.path / "kept" / f"{partition:05}.parquet"

    def rejected(self, partition: int) -> pathlib.Path:
        return self.path / "rejected" / f"{partition:05}.parquet"

    def counts_file(self, partition: int) -> pathlib.Path:
        return self.path / f"{partition:05}.json"

    def finished(self, partition: int) -> bool:
        return self.counts_file(partition).exists()

    def counts(self, partition: int) -> dict:
        return read_json(self.counts_file(partition))

    def total(self, partitions: int) -> dict:
        """Returns the counts summed over all partitions."""
        return add(self.counts(number) for number in range(partitions))


class PartitionWriter:
    """Writes the output of a stage for one partition, batch by batch.

    Args:
      counted: columns to summarize, see stage.Stage.
    """

    def __init__(self, folder: StageFolder, partition: int, counted: tuple[str, ...] = ()):
        self._folder, self._partition, self._counted = folder, partition, counted
        self._kept = ParquetFile(folder.kept(partition))
        self._rejected = ParquetFile(folder.rejected(partition))
        self._counts = collections.Counter(), collections.Counter()
        self._details: dict[str, Any] = {}  # a Counter for strings, a sum for numbers

    def add(self, table: pa.Table) -> pa.Table:
        """Writes a batch and returns its kept rows, without the rejection columns."""
        kept, rejected = split(table)
        self._kept.write(kept)
        self._rejected.write(rejected)
        documents, size = self._counts
        documents["kept"] += len(kept)
        size["kept"] += text_bytes(kept)
        rules = rejected["rejected_by"]
        for rule in rules.unique().to_pylist():
            rows = rejected.filter(pc.equal(rules, rule))
            documents[rule] += len(rows)
            size[rule] += text_bytes(rows)
        for name in self._counted:
            column = kept[name]
            if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                tally = self._details.setdefault(name, collections.Counter())
                for item in pc.value_counts(column).to_pylist():
                    tally[item["values"] or "none"] += item["counts"]
            else:
                self._details[name] = self._details.get(name, 0) + (pc.sum(column).as_py() or 0)
        return kept

    def close(self) -> None:
        """Closes the files and writes the counts, which marks the partition as finished."""
        self._kept.close()
        self._rejected.close()
        documents, size = (dict(counter) for counter in self._counts)
        write_json(
            self._folder.counts_file(self._partition),
            {
                "kept": {"documents": documents.pop("kept", 0), "text_bytes": size.pop("kept", 0)},
                "rejected": {
                    rule: {"documents": documents[rule], "text_bytes": size[rule]}
                    for rule in sorted(documents)
                },
                "counted": {
                    name: tally if isinstance(tally, int | float) else dict(sorted(tally.items()))
                    for name, tally in self._details.items()
                },
            },
        )


class ParquetFile:
    """Writes a Parquet file row group by row group; the file appears on close()."""

    def __init__(self, path: pathlib.Path, **settings):
        self._path = path
        self._writer: pq.ParquetWriter | None = None
        self._settings: dict[str, Any] = {"compression": "zstd"} | settings
        path.parent.mkdir(parents=True, exist_ok=True)
        # A unique name: a worker that outlived its killed run may still be writing the same file.
        self._writing = temporary_path(path)

    def write(self, table: pa.Table) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._writing, table.schema, **self._settings)
        if len(table):
            self._writer.write_table(table.cast(self._writer.schema))

    def close(self) -> None:
        assert self._writer is not None, "nothing was written"
        self._writer.close()
        put_in_place(self._writing, self._path)


def remove_unfinished(root: pathlib.Path) -> None:
    """Deletes temporary files left by killed processes."""
    for path in root.rglob(f"*{WRITING}"):
        path.unlink(missing_ok=True)


def split(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Returns (kept rows without the rejection columns, rejected rows with them)."""
    if "rejected_by" not in table.column_names:
        none = table.slice(0, 0)
        for field in rejected_schema():
            none = none.append_column(field, pa.array([], field.type))
        return table, none
    kept = table.drop_columns(rejected_schema().names)
    if table["rejected_by"].null_count == len(table):  # copies nothing
        return kept, table.slice(0, 0)
    keep = pc.is_null(table["rejected_by"])
    return kept.filter(keep), table.filter(pc.invert(keep))


def text_bytes(table: pa.Table) -> int:
    """Returns the number of bytes of text in a table."""
    return pc.sum(pc.binary_length(table["text"])).as_py() or 0


def read_batches(path: pathlib.Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yields the row groups of a Parquet file; for an empty file, yields one empty table."""
    file = pq.ParquetFile(path)
    for number in range(file.num_row_groups):
        yield file.read_row_group(number, columns)
    if not file.num_row_groups:
        yield file.schema_arrow.empty_table().select(columns or file.schema_arrow.names)


def add(counts) -> dict:
    """Returns the sum of nested dicts of numbers, sorted by name."""
    total: dict = {}
    for one in counts:
        for name, value in one.items():
            if isinstance(value, dict):
                total[name] = add([total.get(name, {}), value])
            else:
                total[name] = total.get(name, 0) + value
    return dict(sorted(total.items()))
