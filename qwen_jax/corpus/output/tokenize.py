"""Tokenizes the pipeline's output into shards for the loader, one folder per source.

Report: 2.4. Partitions are encoded in parallel into parts; then each shard is gathered from all
parts of its source. The result is byte-identical to that of `shards.write` on the same documents.
"""

import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Callable, Iterator

from tqdm import tqdm

from qwen_jax.corpus import engine
from qwen_jax.corpus.output.mixture import Mixture
from qwen_jax.corpus.pipeline import Result
from qwen_jax.corpus.stage_files import StageFolder, read_batches
from qwen_jax.data import shards
from qwen_jax.data.document import Document
from qwen_jax.data.shards import Split
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.load import load_tokenizer
from qwen_jax.utils.append_only import record_provenance
from qwen_jax.utils.files import write_json

_EQUAL_WEIGHTS = Mixture()
_FINISHED = "sources.json"  # written last


def documents(folder: StageFolder, number: int) -> Iterator[Document]:
    """Yields the kept documents of a partition."""
    names = ["id", "text", "group"]
    for table in read_batches(folder.kept(number), names):
        for row in zip(*(table[name].to_pylist() for name in names), strict=True):
            yield Document(*row)


def source_documents(result: Result, name: str) -> Iterator[Document]:
    """Yields the kept documents of one source."""
    for number, source in enumerate(result.sources):
        if source == name:
            yield from documents(result.folder, number)


def balanced(result: Result, split: Split) -> Split:
    """Returns the split with at least one document of each source on both sides, if it has two."""
    for name in dict.fromkeys(result.sources):
        split = split.balanced(source_documents(result, name))
    return split


def sizes(
    result: Result, tokenizer_path: str, sample: int = 1 << 20
) -> dict[tuple[str, str | None], tuple[int, int]]:
    """Estimates the number of kept tokens of each source and language, for mixture.entries.

    Args:
      sample: bytes of text to encode per source and language, to measure bytes per token.

    Returns:
      {(source, language): (documents, tokens)}.
    """
    tokenizer = _tokenizer(tokenizer_path)
    found: dict[tuple[str, str | None], list[int]] = {}
    for number in range(result.partitions):
        for table in read_batches(result.folder.kept(number), ["source", "language", "text"]):
            rows = zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
            for source, language, text in rows:
                part = found.setdefault((source, language), [0, 0, 0, 0])
                size = len(text.encode("utf-8", "replace"))
                part[0] += 1
                part[1] += size
                if part[2] < sample:
                    part[2] += size
                    part[3] += len(tokenizer.encode_batch([text])[0]) + 1
    return {
        part: (documents, round(size * tokens / max(1, sampled)))
        for part, (documents, size, sampled, tokens) in sorted(
            found.items(), key=lambda item: (item[0][0], item[0][1] or "")
        )
    }


@functools.lru_cache(maxsize=1)
def _tokenizer(path: str) -> Tokenizer:
    return load_tokenizer(path)


@dataclasses.dataclass(frozen=True)
class _Encode:
    folder: StageFolder
    tokenizer: str
    parts: str
    splits: dict[str, Split]
    threads: int | None  # encoding threads per worker
    mixture: Mixture

    def __call__(self, task: tuple[int, str]) -> int:
        number, source = task
        languages: dict[str, str | None] = {}
        if self.mixture.weights:
            for table in read_batches(self.folder.kept(number), ["id", "language"]):
                languages |= zip(
                    table["id"].to_pylist(), table["language"].to_pylist(), strict=True
                )
        seed = self.splits[source].seed
        return shards.scatter(
            documents(self.folder, number),
            _part(self.parts, number),
            _tokenizer(self.tokenizer),
            split=self.splits[source],
            threads=self.threads,
            copies=lambda document: self.mixture.copies(
                document.name, source, languages.get(document.name), seed=seed
            ),
        )


@dataclasses.dataclass(frozen=True)
class _Gather:
    tokenizer: str
    parts: str
    output: str
    splits: dict[str, Split]
    partitions: dict[str, list[int]]

    def __call__(self, task: tuple[str, int]) -> dict:
        source, number = task
        side, shard = self.splits[source].files()[number]
        folder = pathlib.Path(self.output) / source / side
        folder.mkdir(parents=True, exist_ok=True)
        return shards.gather(
            [_part(self.parts, each) for each in self.partitions[source]],
            folder / shards.shard_name(shard),
            number,
            shards.dtype_of(_tokenizer(self.tokenizer)),
        )


def _part(parts: str, number: int) -> pathlib.Path:
    return pathlib.Path(parts) / f"{number:05}"


def tokenize(
    result: Result,
    output: str,
    tokenizer_path: str,
    *,
    split: Split,
    shard_tokens: float,
    workers: int,
    mixture: Mixture = _EQUAL_WEIGHTS,
    log: Callable[[str], None],
) -> dict[str, list]:
    """Writes OUTPUT/SOURCE/train and, if documents are held out, OUTPUT/SOURCE/eval.

    Args:
      split: the training and held-out split; its num_shards is replaced for each source.
      shard_tokens: approximate number of tokens per shard.
      mixture: how many times each document is read.
      log: receives one line per source without shards or without held-out documents.

    Returns:
      {source: the entries of its manifest}.

    Raises:
      ConfigError: OUTPUT was written with different settings.
    """
    folder, parts = pathlib.Path(output), f"{output}.parts"
    of = _partitions(result, log)
    tokenizer = _tokenizer(tokenizer_path)
    if not folder.exists():
        shutil.rmtree(parts, ignore_errors=True)  # left over from deleted shards
    record_provenance(
        folder / "made_from.json",
        {
            "tokenizer": tokenizer.fingerprint,
            "eval_fraction": split.eval_fraction,
            "seed": split.seed,
            "shard_tokens": shard_tokens,
            "weights": dict(mixture.weights),
            **({"together": True} if split.together else {}),  # not recorded by earlier versions
        },
        folder,
        fix="use another --output, or delete this folder.",
    )
    if (folder / _FINISHED).exists():  # the parts are left over from a killed clean-up
        if pathlib.Path(parts).exists():
            shutil.rmtree(parts)
        return {}
    pathlib.Path(parts).mkdir(parents=True, exist_ok=True)
    splits = {}
    for name, numbers in of.items():
        size = sum(result.folder.counts(i)["kept"]["text_bytes"] for i in numbers)
        splits[name] = dataclasses.replace(
            split, num_shards=max(1, round(size / 4 / shard_tokens))
        )  # about 4 bytes per token
    tasks = [
        (i, name)
        for i, name in enumerate(result.sources)
        if name in of and not _part(parts, i).with_suffix(".npy").exists()
    ]
    with tqdm(total=len(tasks), desc="tokenize", unit=" partitions", disable=not tasks) as bar:
        encode = _Encode(
            result.folder, tokenizer_path, parts, splits, 1 if workers > 1 else None, mixture
        )
        for _ in engine.run_tasks(encode, tasks, workers=workers):
            bar.update()
    tasks = [(name, i) for name in of for i in range(len(splits[name].files()))]
    entries = dict(
        engine.run_tasks(_Gather(tokenizer_path, parts, output, splits, of), tasks, workers=workers)
    )
    made = _write_manifests(folder, entries, splits, tokenizer, log)
    shutil.rmtree(parts)
    return made


def _partitions(result: Result, log: Callable[[str], None]) -> dict[str, list[int]]:
    """Returns {source: its partitions}; omits sources without kept documents."""
    of = {
        name: [i for i, each in enumerate(result.sources) if each == name]
        for name in dict.fromkeys(result.sources)
    }
    for name, numbers in list(of.items()):
        if not any(result.folder.counts(i)["kept"]["documents"] for i in numbers):
            log(f"{name}: no shards, because no documents were kept; see counts.json")
            del of[name]
    return of


def _write_manifests(
    folder: pathlib.Path,
    entries: dict[tuple[str, int], dict],
    splits: dict[str, Split],
    tokenizer: Tokenizer,
    log: Callable[[str], None],
) -> dict[str, list[dict]]:
    """Writes the manifests and sources.json; returns the entries of each source."""
    made = {}
    for name, of_source in splits.items():
        made[name] = [entries[name, i] for i in range(len(of_source.files()))]
        if of_source.eval_fraction and not made[name][-1]["documents"]:
            log(f"{name}: no held-out documents, because it has only one document or group")
            shutil.rmtree(folder / name / "eval")
            of_source, made[name] = dataclasses.replace(of_source, eval_fraction=0), made[name][:-1]
        shards.write_manifests(folder / name, made[name], tokenizer, of_source)
    write_json(
        folder / _FINISHED,
        {
            name: {
                key: sum(entry[key] for entry in each)
                for key in ("documents", "tokens", "text_bytes")
            }
            for name, each in made.items()
        },
    )
    return made
