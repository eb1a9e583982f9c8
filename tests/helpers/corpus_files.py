"""Corpus sources in every format, and readers of the pipeline's output."""

import gzip
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq

from qwen_jax.tokenizer.bpe import Tokenizer


def write_sources(folder):
    """Writes documents in every format, some of them more than once."""
    rng = random.Random(0)

    def text():
        return " ".join(rng.choices(["ein", "Wort", "und", "noch", "eins", "字"], k=40))

    folder.mkdir()
    texts = [text() for _ in range(300)]
    lines = [
        json.dumps({"text": one, "url": f"http://a/{i}", "n": i}) + "\n"
        for i, one in enumerate(texts)
    ]
    (folder / "a.jsonl").write_text("".join(lines[:200]), encoding="utf-8")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("".join(lines[150:]).encode(), mtime=0))
    pq.write_table(
        pa.table({"text": [text(), texts[7].upper(), text()]}),
        folder / "c.parquet",
        row_group_size=1,
    )
    (folder / "d.txt").write_text(text(), encoding="utf-8")
    return folder


def files_of(root):
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name not in ("pipeline.json", "pipeline.lock")
    }


def rows_of(result):
    return [
        row
        for number in range(result.partitions)
        for row in pq.read_table(result.folder.kept(number)).to_pylist()
    ]


def small_tokenizer(path):
    Tokenizer({bytes([i]): i for i in range(256)}).save(path)
    return str(path)
