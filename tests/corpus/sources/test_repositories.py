"""Files of a repository are one group: held out together, and next to each other in the shards."""

import json

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from qwen_jax.corpus.sources.repositories import repository
from qwen_jax.data import shards
from qwen_jax.data.document import Document
from qwen_jax.data.split import Split
from tests.helpers.tiny_checkpoint import TOKENIZER


@pytest.mark.parametrize(
    ("path", "metadata", "group"),
    [
        ("flask/src/app.py", None, "code/flask"),
        ("setup.py", None, None),
        ("a.jsonl@17", {"stars": 3}, None),
        ("part/a.jsonl@17", {"max_stars_repo_name": "pallets/flask"}, "code/pallets/flask"),
        ("a.parquet@1", {"repo_name": "x/y", "size": 2}, "code/x/y"),
    ],
)
def test_repository_of_a_file(path, metadata, group):
    assert repository("code", path, metadata and json.dumps(metadata)) == group


def _texts(folder) -> list[str]:
    """Returns the documents of a shard folder, in order."""
    opened = shards.open_shards(folder)
    ids = np.concatenate([np.fromfile(file, opened.dtype) for file in opened.files])
    ends = np.flatnonzero(ids == TOKENIZER.end_of_text)
    return [TOKENIZER.decode(part[part != TOKENIZER.end_of_text]) for part in np.split(ids, ends)][
        : len(ends)
    ]


def _scattered(tmp_path, split: Split, copies=lambda document: 1) -> None:
    """Writes 20 repositories of 6 files, from two partitions that split one of them."""
    documents = [
        Document(f"{r}/{f}", f"repo {r:02} file {f}", f"code/{r:02}")
        for r in range(20)
        for f in range(6)
    ]
    parts = []
    for number, part in enumerate((documents[:63], documents[63:])):
        parts.append(tmp_path / f"{number}")
        shards.scatter(part, parts[-1], TOKENIZER, split=split, copies=copies)
    dtype = shards.dtype_of(TOKENIZER)
    entries = []
    for number, (side, shard) in enumerate(split.files()):
        path = tmp_path / "out" / side / shards.shard_name(shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        entries.append(shards.gather(parts, path, number, dtype))
    shards.write_manifests(tmp_path / "out", entries, TOKENIZER, split)


def test_documents_of_a_repository_follow_each_other_in_the_order_of_their_names(tmp_path):
    split = Split(eval_fraction=0.2, seed=1, num_shards=2, together=True)
    _scattered(tmp_path, split)
    seen = []
    for side in ("train", "eval"):
        texts = _texts(tmp_path / "out" / side)
        for first in range(0, len(texts), 6):
            repo = texts[first][5:7]
            assert texts[first : first + 6] == [f"repo {repo} file {f}" for f in range(6)]
            seen.append(repo)
    assert sorted(seen) == [f"{r:02}" for r in range(20)] != seen  # in a random order


def test_a_second_copy_of_a_repository_is_together_too(tmp_path):
    _scattered(tmp_path, Split(seed=1, together=True), copies=lambda document: 2)
    texts = _texts(tmp_path / "out/train")
    assert len(texts) == 240
    firsts = [text for text in texts if text.endswith("file 0")]
    assert [texts[i : i + 6] for i in range(0, 240, 6)] == [
        [f"{first[:-1]}{f}" for f in range(6)] for first in firsts
    ]


def test_other_splits_shuffle_the_files_of_a_repository(tmp_path):
    _scattered(tmp_path, Split(seed=1))
    texts = _texts(tmp_path / "out/train")
    assert any(texts[i][5:7] != texts[i + 1][5:7] for i in range(0, 120, 6))
