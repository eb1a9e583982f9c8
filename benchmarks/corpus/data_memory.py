"""Memory and speed of the full corpus pipeline at two corpus sizes, ten times apart.

Generates documents from real sentences (English, Chinese) and functions (Python's standard
library), and a web archive; 10 % are near-duplicates. Then runs experiments.prepare_data on each
corpus with worker processes and samples the memory of all its processes.

    python -m benchmarks.corpus.data_memory --folder=FOLDER \\
        --output=benchmarks/results/data_memory.md

A second run resumes: finished sizes are not measured again.
"""

import ast
import dataclasses
import gzip
import itertools
import json
import os
import pathlib
import random
import re
import resource
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator

from benchmarks.corpus import corpus, packages
from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.errors import ConfigError
from qwen_jax.utils.files import write_json

_SHARES = {"english": 0.65, "chinese": 0.15, "code": 0.15, "web": 0.05}  # fractions of the bytes
_PAGE = (
    "<html><head><title>{0}</title></head><body><nav><a href='/'>Home</a> <a href='/all'>All"
    "</a></nav><article><h1>{0}</h1>{1}</article><footer>All rights reserved</footer></body>"
    "</html>"
)


@dataclasses.dataclass(frozen=True)
class Config:
    """The corpora and runs to measure."""

    shared: str = option(os.environ.get("QWEN_JAX_SHARED", "../shared"), "folder of public data")
    folder: str = option(
        "", "folder for corpora and outputs; needs 4 times the size of the largest corpus"
    )
    megabytes: tuple[int, ...] = option((200, 2000), "sizes of the corpora, in MB of text")
    workers: int = option(2, "number of worker processes")
    partition_mb: float = option(64.0, "MB of source files per partition")
    output: str = option("", "Markdown file for the results; the plot is written next to it")


def main(config: Config) -> None:
    """Generates the corpora, runs the pipeline and prints the results."""
    if not config.folder:
        raise ConfigError("no folder for the corpora is set.", "--folder", "pass a folder.")
    folder = pathlib.Path(config.folder)
    for size in config.megabytes:
        if not (folder / f"in{size}.json").exists():
            write_json(folder / f"in{size}.json", make(config, folder / f"in{size}", size))
        if not (folder / f"run{size}.json").exists():
            write_json(folder / f"run{size}.json", measure(config, folder, size))
    made, runs = (
        [json.loads((folder / f"{kind}{size}.json").read_text()) for size in config.megabytes]
        for kind in ("in", "run")
    )
    text = page(config, made, runs)
    print(text)
    if config.output:
        path = pathlib.Path(config.output)
        path.write_text(
            f"# Memory of the corpus pipeline\n\n{text}\n![memory]({path.stem}.png)\n", "utf-8"
        )
        plot(path.with_suffix(".png"), config, runs)


def make(config: Config, folder: pathlib.Path, megabytes: int) -> dict[str, list[float]]:
    """Writes a corpus; returns {source: [documents, MB of text]}."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "english": documents([f"{s} " for s in corpus.sentences(config.shared)], 1400, seed=0),
        "chinese": documents(chinese(config.shared), 500, seed=1),
        "code": documents(functions(), 3000, seed=2),
        "web": documents([f"{s} " for s in corpus.sentences(config.shared)], 2500, seed=3),
    }
    return {
        name: _write(folder / name, name, made, megabytes * _SHARES[name] * 1e6)
        for name, made in texts.items()
    }


def documents(parts: list[str], characters: int, *, seed: int, near: float = 0.1) -> Iterator[str]:
    """Yields an infinite stream of documents like those of corpus.documents.

    A document consists of random parts, with a line break after one in four. A fraction `near` of
    the documents repeats one of 2,000 recent documents with two words changed.
    """
    rng, recent, number = random.Random(seed), [], 0
    while True:
        number += 1
        if recent and rng.random() < near:
            words = re.split(r"(?<=\W)", rng.choice(recent))
            for index in rng.sample(range(len(words)), min(2, len(words))):
                words[index] = f"changed{rng.randrange(1000)} "
            yield "".join(words)
            continue
        chosen, size = [], 0
        while size < characters:
            part = rng.choice(parts)
            chosen.append(part if rng.random() < 0.75 else f"{part.rstrip()}\n")
            size += len(part)
        text = f"{''.join(chosen).rstrip()}\n"
        if len(recent) < 2000:
            recent.append(text)
        else:
            recent[rng.randrange(2000)] = text
        yield text


def chinese(shared: str) -> list[str]:
    """Returns sentences from the shared Chinese texts, classical and modern."""
    data = pathlib.Path(shared) / "data"
    texts = [
        row["desc"] for row in json.loads((data / "text/zh_song_authors.json").read_text("utf-8"))
    ]
    texts += [
        row["output"] for row in json.loads((data / "chat/alpaca_zh_demo.json").read_text("utf-8"))
    ]
    found = [part for text in texts for part in re.findall(r"[^。！？\n]+[。！？]", text)]
    return [part for part in found if 8 < len(part) < 200]


def functions() -> list[str]:
    """Returns the source code of functions in Python's standard library."""
    found = []
    for path in sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        source = path.read_text("utf-8", "replace")
        lines = source.splitlines(keepends=True)
        found += [
            "".join(lines[node.lineno - 1 : node.end_lineno]) + "\n\n"
            for node in ast.parse(source).body
            if isinstance(node, ast.FunctionDef)
        ]
    return found


def _write(path: pathlib.Path, name: str, texts: Iterator[str], size: float) -> list[float]:
    count, written = 0, 0.0
    suffix = ".warc.gz" if name == "web" else ".jsonl"
    with open(path.with_suffix(suffix), "wb") as file:
        while written < size:
            text = next(texts)
            if name == "web":
                file.write(_record(count, text))
            else:
                row = {"text": text, "url": f"http://{name}.example/{count}"}
                row |= {"language": "python"} if name == "code" else {}
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            written += len(text.encode())
            count += 1
    return [count, written / 1e6]


def _record(number: int, text: str) -> bytes:
    body = "".join(f"<p>{line}</p>" for line in text.split("\n"))
    response = (
        "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n"
        + _PAGE.format(text[:40], body)
    ).encode()
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://web.example/{number}\r\n"
        f"Content-Length: {len(response)}\r\n\r\n"
    ).encode()
    return gzip.compress(head + response + b"\r\n\r\n", 1, mtime=0)


def measure(config: Config, folder: pathlib.Path, size: int) -> dict:
    """Runs the pipeline; returns seconds, CPU seconds, memory (peak and curve), and output."""
    source, output = folder / f"in{size}", folder / f"out{size}"
    command = [
        sys.executable,
        "-m",
        "experiments.prepare_data",
        f"--output={output}",
        f"--sources=web={source}/web.warc.gz,english={source}/english.jsonl,"
        f"chinese={source}/chinese.jsonl,code=code:{source}/code.jsonl",
        f"--tokenizer={config.shared}/reference/qwen.tiktoken",
        f"--filters.test_sets={config.shared}/data/eval",
        f"--workers={config.workers}",
        f"--partition_mb={config.partition_mb}",
    ]
    started, before = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    lines: list[tuple[float, str]] = []
    reader = threading.Thread(
        target=lambda: [
            lines.append((time.time() - started, line.rstrip())) for line in process.stdout or ()
        ]
    )
    reader.start()
    curve = []
    while process.poll() is None:
        curve.append((round(time.time() - started, 1), *memory(process.pid)))
        time.sleep(0.3)
    reader.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise ConfigError(f"exit code {process.returncode}.", str(output), "see the error above.")
    stored = {
        path.name: sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) / 1e6
        for path in sorted(output.iterdir())
        if path.is_dir()
    }
    return {
        "seconds": time.time() - started,
        "cpu": sum(getattr(after, of) - getattr(before, of) for of in ("ru_utime", "ru_stime")),
        "peak": max(each[1] for each in curve),
        "unique": max(each[2] for each in curve),
        "curve": curve,
        "lines": lines,
        "stored_mb": stored,
    }


def memory(pid: int) -> tuple[float, float]:
    """Returns the MB of a process and its children: resident, and proportional (PSS)."""
    import psutil

    resident = proportional = 0.0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            try:
                found = process.memory_full_info()
                resident += found.rss / 1e6
                proportional += found.pss / 1e6
            except psutil.Error:  # the process has exited
                pass
    except psutil.Error:
        pass
    return round(resident, 1), round(proportional, 1)


def page(config: Config, made: list[dict], runs: list[dict]) -> str:
    """Returns the results as Markdown."""
    lines = [
        packages.head(("daft", "pyarrow", "trafilatura", "tiktoken")),
        f"The full pipeline with {config.workers} workers and partitions of "
        f"{config.partition_mb:g} MB. Memory is the sum over all processes of the run, sampled "
        "three times a second: resident (shared pages counted in each process) and proportional "
        "(counted once).",
        "",
        "| corpus | documents | seconds | CPU s | peak, resident | peak, proportional |",
        "|---|---|---|---|---|---|",
    ]
    for each, run in zip(made, runs, strict=True):
        size = sum(megabytes for _, megabytes in each.values())
        lines.append(
            f"| {size:,.0f} MB of text | {sum(n for n, _ in each.values()):,} | "
            f"{run['seconds']:.0f} | {run['cpu']:.0f} | {run['peak']:,.0f} MB | "
            f"{run['unique']:,.0f} MB |"
        )
    ratio = runs[-1]["peak"] / runs[0]["peak"]
    lines += [
        "",
        f"{config.megabytes[-1] / config.megabytes[0]:g} times the corpus: "
        f"{ratio:.2f} times the peak.",
        "",
        "Contents: "
        + ", ".join(f"{name} {megabytes:,.0f} MB" for name, (_, megabytes) in made[-1].items())
        + ".",
        "",
        "Output of the largest run:",
        "",
    ]
    lines += [
        f"    {line}"
        for _, line in runs[-1]["lines"]
        if re.match(r"\d\d-|\s+(\d\d-|tokenize)|the slowest", line)
    ]
    stored = runs[-1]["stored_mb"]
    lines += [
        "",
        "On disk, MB: " + ", ".join(f"{name} {size:,.0f}" for name, size in stored.items()),
        "",
    ]
    return "\n".join(lines)


def plot(path: pathlib.Path, config: Config, runs: list[dict]) -> None:
    """Plots memory over the elapsed fraction of each run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    colors = itertools.cycle(("#8fb3d9", "#c4572f", "#444"))
    for size, run, color in zip(config.megabytes, runs, colors, strict=False):  # colors repeat
        axes.plot(
            [100 * each[0] / run["seconds"] for each in run["curve"]],
            [each[1] for each in run["curve"]],
            color=color,
            lw=1,
            label=f"{size:,} MB, peak {run['peak']:,.0f} MB",
        )
    axes.set_ylim(0)
    axes.set_xlabel("elapsed time (%)")
    axes.set_ylabel("resident memory of all processes (MB)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
