"""Batches from token shards: every one a function of (seed, step), on any number of hosts.

Documents follow one another, each ended by <|endoftext|>, and are cut to the context length
(report 2.4: "merged and truncated"). Row r of a source is its tokens r T .. r T + T, the last one
shifted in as a target; rows are shuffled anew in every epoch, and sources mixed by their weights.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from qwen_jax.config import DataConfig
from qwen_jax.data.batches import Batches, shuffled
from qwen_jax.data.shards import Shards, open_shards
from qwen_jax.errors import DataError
from qwen_jax.types import Batch


class Loader:
    """The batches of one run.

    Example:
      >>> loader = Loader(DataConfig(sources=("data/mine/train",)), context_length=2048,
      ...                 batch_size=64, end_of_text=151643, seed=0)
      >>> with loader.iterate(start_step=1000) as batches:  # read ahead in a thread
      ...     batch = next(batches)
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        context_length: int,
        batch_size: int,
        end_of_text: int,
        seed: int,
        rows: Sequence[int] | None = None,
        vocab_size: int | None = None,
        tokenizer: str | None = None,
    ):
        """Opens and checks all sources.

        Args:
          context_length: T, tokens in a row.
          batch_size: B, rows in a batch over all hosts.
          end_of_text: id that ends a document, as in the shards' manifest.
          rows: those of each batch that this host reads (parallel/batch_rows.py); None: all.
          vocab_size: of the model; None: not checked.
          tokenizer: fingerprint that the shards must have; None: not checked.

        Raises:
          DataError: a source is missing, damaged, or of another vocabulary.
        """
        if not config.sources:
            raise DataError("there are no sources.", "data.sources", "name shard folders.")
        folders, weights = _weights(config.sources)
        self._shards = [open_shards(folder) for folder in folders]
        for shards in self._shards:
            _check_vocabulary(shards, end_of_text, vocab_size, tokenizer)
        sizes = np.array([shards.tokens for shards in self._shards], np.float64)
        weights = sizes if weights is None else np.array(weights)
        self._weights = weights / weights.sum()
        self._rows = [Rows(shards, context_length) for shards in self._shards]
        self._to_batch = functools.partial(
            to_batch, end_of_text=end_of_text, documents=config.packing == "documents"
        )
        self._batch_size = batch_size
        self._rows_here = range(batch_size) if rows is None else rows
        sources = [shuffled(rows, seed + i).repeat(None) for i, rows in enumerate(self._rows)]
        mixed = (
            sources[0]
            if len(sources) == 1
            else grain.MapDataset.mix(sources, weights=list(self._weights))
        )
        self._batches = Batches(
            mixed,
            batch_size=batch_size,
            seed=seed,
            rows=rows,
            collate=lambda rows: self._to_batch(np.stack(rows)),
        )
        self.names = tuple(_name(shards) for shards in self._shards)

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per token of the mixture."""
        return float(
            sum(
                weight * shards.bytes_per_token
                for weight, shards in zip(self._weights, self._shards, strict=True)
            )
        )

    @property
    def tokens_per_epoch(self) -> dict[str, int]:
        """Name of each source -> its tokens."""
        return {name: shards.tokens for name, shards in zip(self.names, self._shards, strict=True)}

    def epochs(self, num_steps: int) -> dict[str, float]:
        """Name of each source -> how often `num_steps` steps read it."""
        rows = num_steps * self._batch_size
        return {
            name: float(rows * weight / len(source))
            for name, weight, source in zip(self.names, self._weights, self._rows, strict=True)
        }

    def batch(self, step: int) -> Batch:
        """This host's rows of the batch of `step`: numpy arrays [rows, T]."""
        return self._batches.batch(step)

    def iterate(self, start_step: int) -> contextlib.AbstractContextManager[Iterator[Batch]]:
        """The batches from `start_step` on, without end; a thread reads a few ahead."""
        return self._batches.iterate(start_step)

    def eval_batches(self, num: int) -> Iterator[Batch]:
        """The first `num` batches of one shuffled pass, fewer if it is short: always the same.

        The last one is filled up with padding, which has no weight.
        """
        source = shuffled(self._rows[0], 0)
        for start in range(0, min(num * self._batch_size, len(source)), self._batch_size):
            mine = [start + row for row in self._rows_here]
            rows = [source[i] if i < len(source) else self._rows[0].padding for i in mine]
            yield self._to_batch(np.stack(rows))


class Rows:
    """Random access to the rows of one source, read from files mapped into memory.

    A row is int32 [T + 1]; what lies beyond the end of the source is -1.
    """

    def __init__(self, shards: Shards, context_length: int):
        self._shards, self._length = shards, context_length
        self._starts = np.concatenate([[0], np.cumsum(shards.lengths)])
        self._open()

    def _open(self) -> None:
        dtype = np.dtype(self._shards.dtype).newbyteorder("<")
        # As plain arrays: slices of np.memmap cost several times those of np.ndarray.
        self._arrays = [np.asarray(np.memmap(file, dtype, "r")) for file in self._shards.files]

    @property
    def padding(self) -> np.ndarray:
        return np.full(self._length + 1, -1, np.int32)

    def __len__(self) -> int:
        # The last token of all is only a target.
        return max(1, -(-(int(self._starts[-1]) - 1) // self._length))

    def __getitem__(self, row: int) -> np.ndarray:
        out = self.padding
        self._fill(out, int(row))
        return out

    def _getitems(self, rows: list[int]) -> list[np.ndarray]:
        """What Grain calls for a batch, where it knows how to: one array instead of one a row."""
        out = np.full((len(rows), self._length + 1), -1, np.int32)
        for row, line in zip(rows, out, strict=True):
            self._fill(line, int(row))
        return list(out)

    def _fill(self, out: np.ndarray, row: int) -> None:
        start, filled = row * self._length, 0
        if not 0 <= start < max(1, self._starts[-1] - 1):
            raise IndexError(row)
        file = int(np.searchsorted(self._starts, start, side="right")) - 1
        while filled <= self._length and file < len(self._arrays):
            offset = start + filled - int(self._starts[file])
            part = self._arrays[file][offset : offset + self._length + 1 - filled]
            out[filled : filled + len(part)] = part
            filled, file = filled + len(part), file + 1

    def __repr__(self) -> str:
        return f"Rows({self._shards.folder}, {self._length})"

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "_arrays"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._open()


def to_batch(rows: np.ndarray, *, end_of_text: int, documents: bool) -> Batch:
    """Rows -> tokens, targets, weights, segments, positions, each [B, T].

    Args:
      rows: int32 [B, T + 1]; -1 is padding.
      documents: each document is a segment of its own, with positions from 0, and nothing is
        learned of what follows <|endoftext|>; otherwise a row is one text (report 2.4).
    """
    tokens, targets = rows[:, :-1], rows[:, 1:]
    weights = np.ones(tokens.shape, np.float32)
    if documents:
        ends = np.flatnonzero(tokens == end_of_text)
        weights.ravel()[ends] = 0.0
        segments, positions = _segments(ends, *tokens.shape)
    else:
        segments = np.ones(tokens.shape, np.int32)
        positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    if rows[:, -1].min(initial=0) < 0:  # only the last row of a source
        weights[targets < 0] = 0.0
        segments[tokens < 0] = 0
        positions = np.where(tokens < 0, 0, positions)
        tokens, targets = np.maximum(tokens, 0), np.maximum(targets, 0)
    return Batch(
        tokens=tokens,
        targets=targets,
        loss_weights=weights,
        segment_ids=segments,
        positions=positions,
    )


def _segments(ends: np.ndarray, rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Segment ids from 1 and positions from 0 in each row, int32 [rows, length].

    Documents are far longer than a token, so arrays are filled document by document.

    Args:
      ends: sorted places of <|endoftext|> in the flattened tokens.
    """
    row_starts = np.arange(rows + 1) * length
    starts = np.union1d(row_starts, ends + 1)  # the last one is where the tokens end
    sizes = np.diff(starts)
    of_row = np.searchsorted(starts, row_starts[:-1])  # the first document of each row
    index = np.arange(len(sizes)) - np.repeat(of_row, np.diff(np.append(of_row, len(sizes))))
    segments = np.repeat((index + 1).astype(np.int32), sizes)
    positions = np.arange(rows * length, dtype=np.int32)
    positions -= np.repeat(starts[:-1].astype(np.int32), sizes)
    return segments.reshape(rows, length), positions.reshape(rows, length)


def _name(shards: Shards) -> str:
    folder = shards.folder.resolve()
    return folder.parent.name if folder.name in ("train", "eval") else folder.name


def _weights(sources: tuple[str, ...]) -> tuple[list[str], list[float] | None]:
    """Folders and weights; None when no source names one (then each counts by its tokens)."""
    folders, weights = [], []
    for source in sources:
        folder, equals, weight = source.rpartition("=")
        folders.append(folder if equals else source)
        if equals:
            try:
                weights.append(float(weight))
            except ValueError as error:
                raise DataError(
                    f"{weight!r} is not a weight.",
                    f"data.sources: {source}",
                    "write folder=weight, as in data/code/train=0.3.",
                ) from error
            if not 0 < weights[-1] < float("inf"):
                raise DataError(
                    f"weight {weights[-1]} is not positive.",
                    f"data.sources: {source}",
                    "leave the source out instead.",
                )
    if weights and len(weights) < len(folders):
        raise DataError(
            "some sources have a weight and some have none.",
            "data.sources",
            "give all of them one, or none (then each counts by its tokens).",
        )
    return folders, weights or None


def _check_vocabulary(
    shards: Shards, end_of_text: int, vocab_size: int | None, tokenizer: str | None
) -> None:
    if tokenizer is not None and shards.tokenizer != tokenizer:
        raise DataError(
            "these shards were written with another tokenizer.",
            str(shards.folder),
            "pass the tokenizer they were written with, or write them again.",
        )
    if shards.end_of_text != end_of_text:
        raise DataError(
            f"documents end with id {shards.end_of_text} here, not {end_of_text}.",
            str(shards.folder),
            "pass the tokenizer the shards were written with.",
        )
    if vocab_size is not None and shards.vocab_size > vocab_size:
        raise DataError(
            f"ids go up to {shards.vocab_size - 1}, and the model has {vocab_size} rows.",
            str(shards.folder),
            f"use --model.vocab_size={-(-shards.vocab_size // 128) * 128}.",
        )
