"""Speed of the corpus pipeline and its peers on the same documents in the same run.

MinHash deduplication from JSONL to the kept documents: ours, datasketch, datatrove. Tokenization:
ours to shards, tiktoken with threads. Then the full pipeline on web pages and text, in MB/s per
stage.

    python -m benchmarks.corpus.data_plan --datatrove_python=PYTHON \\
        --output=benchmarks/results/data_plan.md
"""

import dataclasses
import json
import os
import pathlib
import resource
import subprocess
import tempfile
import time

from benchmarks.corpus import corpus, packages
from experiments import prepare_data
from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.corpus import pipeline
from qwen_jax.corpus.dedup.minhash import words
from qwen_jax.corpus.dedup.near import NearDedup
from qwen_jax.corpus.sources.read import Read
from qwen_jax.data import shards
from qwen_jax.data.document import Document
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.utils.jsonl import write_rows


@dataclasses.dataclass(frozen=True)
class Config:
    """The corpora and peers to measure."""

    shared: str = option(os.environ.get("QWEN_JAX_SHARED", "../shared"), "folder of public data")
    documents: tuple[int, ...] = option(
        (6000, 240000, 40000), "sizes of the corpora, in documents of 1,500 characters"
    )
    datatrove_python: str = option(
        "", "Python with datatrove, spacy, tokenizers, xxhash<3.6, for the first corpus"
    )
    rounds: int = option(2, "number of rounds; the best one counts")
    output: str = option("", "Markdown file for the results")


def main(config: Config) -> None:
    """Prints the tables and writes them to --output."""
    lines = [
        packages.head(("daft", "datasketch", "tiktoken", "trafilatura")),
        "10 % of the documents are near-duplicates. `s` is wall-clock time.",
        "",
    ]
    for number in config.documents:
        texts = corpus.documents(config.shared, number)
        with tempfile.TemporaryDirectory() as folder:
            write_rows(
                pathlib.Path(folder) / "in/a.jsonl",
                [{"text": text, "id": str(i)} for i, text in enumerate(texts)],
            )
            lines += near_dedup(config, folder, texts, first=number == config.documents[0])
            if number == config.documents[-1]:
                lines += tokenizing(config, texts[:8000], folder) + stages(config, folder)
    print("\n".join(lines))
    if config.output:
        pathlib.Path(config.output).write_text(
            "# The corpus pipeline\n\n" + "\n".join(lines) + "\n", "utf-8"
        )


def near_dedup(config: Config, folder: str, texts: list[str], *, first: bool) -> list[str]:
    """Measures JSONL to kept documents. Ours writes the data three times (read, keys, kept)."""
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    runs: dict[str, list[tuple[float, float, int]]] = {}
    stage_seconds = []  # seconds of the stage in one process, without Read
    for turn in range(config.rounds):
        for name, workers in (("ours, 1 process", 0), ("ours, 2 processes", 2)):
            cost = Cost()
            result = pipeline.run(
                [f"{folder}/in"],
                [Read(), NearDedup()],
                f"{folder}/ours{turn}{workers}",
                workers=workers,
                partition_mb=megabytes / 4,
            )
            runs.setdefault(name, []).append(
                (*cost.now(), result.counts["02-near_dedup"]["kept"]["documents"])
            )
            stage_seconds += [] if workers else [result.seconds["02-near_dedup"][0]]
        cost = Cost()
        kept = datasketch(f"{folder}/in/a.jsonl")
        runs.setdefault("datasketch, 1 process", []).append((*cost.now(), kept))
        if config.datatrove_python and first:
            peer = pathlib.Path(__file__).parents[1] / "peers/datatrove_minhash.py"
            cost = Cost()
            done = subprocess.run(
                [config.datatrove_python, str(peer), f"{folder}/in", f"{folder}/trove{turn}"],
                capture_output=True,
                text=True,
                check=True,
            )
            made = json.loads(done.stdout.splitlines()[-1])
            runs.setdefault(f"datatrove {made['version']}, 1 process", []).append(
                (cost.now()[0], made["seconds"], made["kept"])
            )
    base = min(runs["ours, 1 process"])[0]
    clock = min(
        seconds
        for name, found in runs.items()
        if name.startswith("ours")
        for _, seconds, _ in found
    )
    lines = [
        f"| {len(texts):,} documents, {megabytes:.1f} MB; MinHash, 14 bands of 8, 5 words | CPU s "
        "| s | MB/CPU s | kept | of ours, 1 process, CPU s | of ours, the faster, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in runs.items():
        (spent, _, kept), seconds = min(found), min(seconds for _, seconds, _ in found)
        lines.append(
            f"| {name} | {spent:.1f} | {seconds:.1f} | {megabytes / spent:.1f} | "
            f"{kept:,} | {spent / base:.1f}x | {seconds / clock:.1f}x |"
        )
    return [
        *lines,
        "",
        f"Ours, 1 process, only the stage (keys, buckets, components, and writing the kept "
        f"documents; without reading JSONL and writing it): {min(stage_seconds):.1f} s.",
        "",
    ]


class Cost:
    """CPU seconds (this process and finished children) and wall-clock seconds since creation."""

    def __init__(self):
        self._started = self._read()

    def _read(self) -> tuple[float, float]:
        spent = sum(
            getattr(resource.getrusage(of), kind)
            for kind in ("ru_utime", "ru_stime")
            for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        return spent, time.perf_counter()

    def now(self) -> tuple[float, float]:
        (spent, clock), (spent_before, started) = self._read(), self._started
        return spent - spent_before, clock - started


def datasketch(path: str) -> int:
    """Returns the number of documents datasketch keeps, with our shingles and LSH bands."""
    from datasketch import MinHash, MinHashLSH  # pyright: ignore[reportMissingImports]

    index, kept = MinHashLSH(num_perm=112, params=(14, 8)), []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            text = json.loads(line)["text"]
            parts = words(text).split()
            signature = MinHash(num_perm=112)
            signature.update_batch(
                [b" ".join(parts[i : i + 5]) for i in range(max(1, len(parts) - 4))]
            )
            if not index.query(signature):
                kept.append(text)
            index.insert(number, signature)
    return len(kept)


def tokenizing(config: Config, texts: list[str], folder: str) -> list[str]:
    """Compares our MB/s to shards with tiktoken's encode_ordinary_batch, which writes nothing."""
    tokenizer = Tokenizer.from_file(f"{config.shared}/reference/qwen.tiktoken")
    size = sum(len(text.encode()) for text in texts) / 1e6
    rates: dict[str, list[float]] = {}
    threads = os.cpu_count() or 1
    for turn in range(config.rounds + 1):
        cost = Cost()
        tokenizer._encoding.encode_ordinary_batch(texts, num_threads=threads)
        rates.setdefault(f"tiktoken, {threads} threads, to lists", []).append(size / cost.now()[0])
        cost = Cost()
        shards.scatter(
            (Document("", text) for text in texts),
            f"{folder}/part{turn}",
            tokenizer,
            split=shards.Split(0.01, 0, 2),
        )
        rates.setdefault(f"ours, {threads} threads, to a part of the shards on disk", []).append(
            size / cost.now()[0]
        )
    best = [max(found) for found in rates.values()]
    lines = ["| tokenizing | MB/CPU s | of tiktoken |", "|---|---|---|"]
    lines += [
        f"| {name} | {rate:.1f} | {rate / best[0]:.0%} |"
        for name, rate in zip(rates, best, strict=True)
    ]
    return [*lines, ""]


def stages(config: Config, folder: str) -> list[str]:
    """Measures each stage of the full pipeline on the shared web pages and texts."""
    data = f"{config.shared}/data"
    settings = dataclasses.replace(
        prepare_data.RECIPE,
        sources=(
            f"web:{data}/html/zyte/html",
            f"c4={data}/text/c4_demo.jsonl",
            f"made={folder}/in",
        ),
        output=f"{folder}/pipeline",
        filters=prepare_data.Filters(test_sets=f"{data}/eval"),
    )
    result = pipeline.run(
        settings.sources, prepare_data.stages(settings), settings.output, workers=1, partition_mb=16
    )
    lines = [
        "| stage | MB/s of one worker, of input text (`read`: output) | s |",
        "|---|---|---|",
    ]
    rates = {name: size / spent for name, (spent, size) in result.seconds.items()}
    lines += [
        f"| {name} | {rate:.1f} | {result.seconds[name][0]:.1f} |" for name, rate in rates.items()
    ]
    return [*lines, "", f"The slowest stage is {min(rates, key=lambda name: rates[name])}."]


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
