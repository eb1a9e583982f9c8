"""Batches from token shards: each is a function of (seed, step) for any number of hosts.

Documents are concatenated, each followed by <|endoftext|>, and split at the context length T
(report 2.4: "merged and truncated"). Sequence r of a source is its tokens r T .. r T + T; the last
one is only a target. Sequences are reshuffled every epoch, and sources are mixed by weight.
"""

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from qwen_jax.config import DataConfig
from qwen_jax.data.batches import Batches, shuffled
from qwen_jax.data.shards import Shards, open_shards
from qwen_jax.data.stored_shards import StoredTokens
from qwen_jax.errors import DataError
from qwen_jax.types import Batch


class Loader:
    """The pretraining batches of one run.

    Example:
      >>> loader = Loader(DataConfig(sources=("data/mine/train",)), context_length=2048,
      ...                 batch_size=64, end_of_text=151643, seed=0)
      >>> with loader.iterate(start_step=1000) as batches:  # prefetches in a thread
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
          context_length: T, tokens in a sequence.
          batch_size: B, sequences in a batch over all hosts.
          end_of_text: id that ends a document, as in the shards' manifest.
          seed: random seed of the shuffling.
          rows: rows of each batch that this host reads (parallel/batch_rows.py); None: all.
          vocab_size: the model's vocab_size; None: not checked.
          tokenizer: tokenizer fingerprint that the shards must have; None: not checked.

        Raises:
          DataError: a source is missing or corrupted, or was written with a different vocabulary.
        """
        if not config.sources:
            raise DataError(
                "no data sources are set.", "data.sources", "set --data.sources to shard folders."
            )
        folders, weights = _weights(config.sources)
        self._shards = [open_shards(folder) for folder in folders]
        for shards in self._shards:
            _check_vocabulary(shards, end_of_text, vocab_size, tokenizer)
        sizes = np.array([shards.tokens for shards in self._shards], np.float64)
        weights = sizes if weights is None else np.array(weights)
        self._weights = weights / weights.sum()
        self._sequences = [TokenSequences(shards, context_length) for shards in self._shards]
        self._to_batch = functools.partial(
            to_batch, end_of_text=end_of_text, documents=config.packing == "documents"
        )
        self._batch_size = batch_size
        self._host_rows = range(batch_size) if rows is None else rows
        sources = [
            shuffled(sequences, seed + i).repeat(None)
            for i, sequences in enumerate(self._sequences)
        ]
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
            collate=lambda sequences: self._to_batch(np.stack(sequences)),
        )
        self.names = tuple(_name(shards) for shards in self._shards)

    @property
    def bytes_per_token(self) -> float:
        """Mean UTF-8 bytes of text per token of the mixture."""
        return float(
            sum(
                weight * shards.bytes_per_token
                for weight, shards in zip(self._weights, self._shards, strict=True)
            )
        )

    @property
    def tokens_per_epoch(self) -> dict[str, int]:
        """Tokens of each source, by name."""
        return {name: shards.tokens for name, shards in zip(self.names, self._shards, strict=True)}

    def epochs(self, num_steps: int) -> dict[str, float]:
        """Returns the number of epochs over each source in `num_steps` steps, by name."""
        count = num_steps * self._batch_size
        return {
            name: float(count * weight / len(source))
            for name, weight, source in zip(self.names, self._weights, self._sequences, strict=True)
        }

    def batch(self, step: int) -> Batch:
        """Returns this host's rows of the batch of `step`, numpy arrays [rows, T]."""
        return self._batches.batch(step)

    def iterate(self, start_step: int) -> contextlib.AbstractContextManager[Iterator[Batch]]:
        """Yields an infinite iterator that starts at `start_step`; a thread prefetches batches."""
        return self._batches.iterate(start_step)

    def eval_batches(self, num: int) -> Iterator[Batch]:
        """Yields the first `num` batches of one shuffled epoch, or fewer if the source is small.

        The batches are the same in every call. The last one is padded with weight 0.
        """
        source = shuffled(self._sequences[0], 0)
        for start in range(0, min(num * self._batch_size, len(source)), self._batch_size):
            indices = [start + row for row in self._host_rows]
            padding = self._sequences[0].padding
            chosen = [source[i] if i < len(source) else padding for i in indices]
            yield self._to_batch(np.stack(chosen))


class TokenSequences:
    """Random access to the sequences of one source: memory-mapped files, or a store.

    A sequence is int32 [T + 1]; positions past the end of the source are -1.
    """

    def __init__(self, shards: Shards, context_length: int):
        self._shards, self._length = shards, context_length
        self._starts = np.concatenate([[0], np.cumsum(shards.lengths)])
        self._open()

    def _open(self) -> None:
        shards = self._shards
        dtype = np.dtype(shards.dtype).newbyteorder("<")
        self._stored: StoredTokens | None = None
        self._arrays: list[np.ndarray] = []
        if shards.url is not None:
            named = [file.name for file in shards.files]
            self._stored = StoredTokens(
                shards.url, list(zip(named, shards.lengths, strict=True)), dtype
            )
            return
        # Plain arrays, because slicing np.memmap costs several times as much as np.ndarray.
        self._arrays = [np.asarray(np.memmap(file, dtype, "r")) for file in shards.files]

    @property
    def padding(self) -> np.ndarray:
        return np.full(self._length + 1, -1, np.int32)

    def __len__(self) -> int:
        # The last token of the source is only a target.
        return max(1, -(-(int(self._starts[-1]) - 1) // self._length))

    def __getitem__(self, index: int) -> np.ndarray:
        out = self.padding
        self._fill(out, int(index))
        return out

    def _getitems(self, indices: list[int]) -> list[np.ndarray]:
        """Reads several sequences into one array; Grain's hook for batched reads."""
        out = np.full((len(indices), self._length + 1), -1, np.int32)
        if self._stored is not None:
            self._stored.fetch(part for index in indices for part in self._parts(int(index)))
        for index, sequence in zip(indices, out, strict=True):
            self._fill(sequence, int(index))
        return list(out)

    def _fill(self, out: np.ndarray, index: int) -> None:
        filled = 0
        for file, start, stop in self._parts(index):
            if self._stored is None:
                part = self._arrays[file][start:stop]
            else:
                part = self._stored.read(file, start, stop)
            out[filled : filled + len(part)] = part
            filled += len(part)

    def _parts(self, index: int) -> Iterator[tuple[int, int, int]]:
        """Yields (file, start, stop) of the tokens of a sequence, which may cross files."""
        start, count = index * self._length, 0
        if not 0 <= start < max(1, self._starts[-1] - 1):
            raise IndexError(index)
        file = int(np.searchsorted(self._starts, start, side="right")) - 1
        while count <= self._length and file < len(self._shards.lengths):
            offset = start + count - int(self._starts[file])
            stop = min(offset + self._length + 1 - count, self._shards.lengths[file])
            yield file, offset, stop
            count, file = count + stop - offset, file + 1

    def __repr__(self) -> str:
        return f"TokenSequences({self._shards.folder}, {self._length})"

    def __getstate__(self) -> dict:
        return {
            name: value for name, value in vars(self).items() if name not in ("_arrays", "_stored")
        }

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._open()


def to_batch(sequences: np.ndarray, *, end_of_text: int, documents: bool) -> Batch:
    """Returns tokens, targets, weights, segment ids and positions, each [B, T].

    Args:
      sequences: int32 [B, T + 1]; -1 is padding.
      documents: whether each document is its own segment with positions from 0, and the token after
        <|endoftext|> is not in the loss. Otherwise a sequence is one segment (report 2.4).
    """
    tokens, targets = sequences[:, :-1], sequences[:, 1:]
    weights = np.ones(tokens.shape, np.float32)
    if documents:
        ends = np.flatnonzero(tokens == end_of_text)
        weights.ravel()[ends] = 0.0
        segments, positions = _segments(ends, *tokens.shape)
    else:
        segments = np.ones(tokens.shape, np.int32)
        positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    if sequences[:, -1].min(initial=0) < 0:  # only the last sequence of a source
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
    """Returns segment ids from 1 and positions from 0 in each row, int32 [rows, length].

    Arrays are filled per document, not per token, because documents are long.

    Args:
      ends: sorted indices of <|endoftext|> in the flattened tokens.
    """
    row_starts = np.arange(rows + 1) * length
    starts = np.union1d(row_starts, ends + 1)  # the last one is the end of the tokens
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


def folder_and_weight(source: str) -> tuple[str, float | None]:
    """Splits folder=weight at the last `=`, if a number follows it; else there is no weight.

    A folder named lr=0.5 is written as lr=0.5/ or lr=0.5=weight.

    Raises:
      DataError: the weight is not positive; or the folder does not exist, but another reading does.
    """
    where, form = f"data.sources: {source}", "write folder=weight, as in data/code/train=0.3."
    folder, equals, text = source.rpartition("=")
    try:
        weight = float(text) if equals else None
    except ValueError:
        if "/" not in text and not os.path.isdir(source):
            raise DataError(
                f"{text!r} is not a weight, and there is no folder {source!r}.", where, form
            ) from None
        weight = None
    if weight is None:
        return source, None
    if not 0 < weight < float("inf"):
        raise DataError(
            f"weight {weight} is not positive.",
            where,
            "use a positive weight, or remove the source from --data.sources.",
        )
    if os.path.isdir(source) and not os.path.isdir(folder):
        raise DataError(
            f"there is no folder {folder!r} for the weight {weight}, but a folder {source!r}.",
            where,
            f"write {source}/ for this folder without a weight.",
        )
    return folder, weight


def _weights(sources: tuple[str, ...]) -> tuple[list[str], list[float] | None]:
    """Returns folders and weights; None if no source has one, so they are weighted by tokens."""
    split = [folder_and_weight(source) for source in sources]
    folders = [folder for folder, _ in split]
    weights = [weight for _, weight in split if weight is not None]
    if weights and len(weights) < len(folders):
        raise DataError(
            "some sources have a weight and some have none.",
            "data.sources",
            "give every source a weight, or none (sources are then weighted by their tokens).",
        )
    return folders, weights or None


def _check_vocabulary(
    shards: Shards, end_of_text: int, vocab_size: int | None, tokenizer: str | None
) -> None:
    if tokenizer is not None and shards.tokenizer != tokenizer:
        raise DataError(
            "these shards were written with a different tokenizer.",
            str(shards.folder),
            "pass the tokenizer that the shards were written with, or write the shards again.",
        )
    if shards.end_of_text != end_of_text:
        raise DataError(
            f"documents end with id {shards.end_of_text}, not {end_of_text}.",
            str(shards.folder),
            "pass the tokenizer that the shards were written with.",
        )
    if vocab_size is not None and shards.vocab_size > vocab_size:
        raise DataError(
            f"token ids go up to {shards.vocab_size - 1}, but the model has "
            f"vocab_size={vocab_size}.",
            str(shards.folder),
            f"set --model.vocab_size={-(-shards.vocab_size // 128) * 128}.",
        )
