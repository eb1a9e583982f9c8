"""Near duplicates against the exact Jaccard; components; an index of earlier runs."""

import random
import shutil

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
from qwen_jax.corpus import pipeline, shuffle, stage
from qwen_jax.corpus.dedup import components
from qwen_jax.corpus.dedup.minhash import words
from qwen_jax.corpus.dedup.near import NearDedup, band_hashes, probability
from qwen_jax.corpus.sources.read import Read
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.utils.jsonl import write_rows

VOCABULARY = [f"word{i}" for i in range(3000)]


def shingles(text, size=5):
    found = words(text).split()
    return {tuple(found[i : i + size]) for i in range(max(1, len(found) - size + 1))}


def jaccard(a, b):
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


def changed(rng, text, words_to_change):
    parts = text.split(" ")
    for i in rng.sample(range(len(parts)), words_to_change):
        parts[i] = rng.choice(VOCABULARY)
    return " ".join(parts)


def new(rng, length=150):
    return " ".join(rng.choices(VOCABULARY, k=length))


def test_near_dedup_keys_of_empty_tables():
    empty = pa.Table.from_pylist([], schema=stage.schema())
    blank = pa.Table.from_pylist([{"text": "..."}], schema=stage.schema())
    for table in (empty, blank):
        keys = NearDedup().keys(table, 0)
        assert len(keys) == 0 and keys.schema.names == ["hash", "row"]


def test_probability_matches_band_hashes():
    rng = np.random.default_rng(0)
    for similarity in (0.5, 0.7, 0.8, 0.9):
        a = rng.integers(0, 2**32, (4000, 112), dtype=np.uint32)
        b = np.where(rng.random(a.shape) < similarity, a, a ^ np.uint32(1))
        found = (band_hashes(a, 14) == band_hashes(b, 14)).any(1).mean()
        assert found == pytest.approx(probability(similarity, bands=14, rows=8), abs=0.025)


def test_components_of_fixed_and_random_pairs(tmp_path):
    def removed(pairs, first=0, files=3):
        paths = []
        for i in range(files):
            paths.append(tmp_path / f"{i}.parquet")
            part = np.array(pairs[i::files], np.int64).reshape(-1, 2)
            shuffle.write_removed(
                paths[-1],
                pa.table(
                    [part[:, 0], np.zeros(len(part), np.uint32), part[:, 1]],
                    schema=shuffle.removed_schema(),
                ),
            )
        table = components.removed(paths, first)
        return dict(zip(table["order"].to_pylist(), table["kept"].to_pylist(), strict=True))

    assert removed([(5, 3), (9, 5), (8, 7)]) == {5: 3, 9: 3, 8: 7}
    assert removed([(9, 5), (8, 5), (8, 3)], first=6) == {9: 3, 8: 3}  # 5 belongs to an earlier run
    assert removed([]) == {}
    rng = random.Random(0)
    pairs = [tuple(sorted(rng.sample(range(500), 2), reverse=True)) for _ in range(300)]
    root = list(range(500))
    for a, b in pairs * 500:
        root[a] = root[b] = min(root[a], root[b])
    assert removed(pairs) == {i: r for i, r in enumerate(root) if i != r}


def run(tmp_path, name, texts, step=None, **settings):
    write_rows(tmp_path / f"{name}.jsonl", [{"text": text} for text in texts])
    result = pipeline.run(
        [f"{tmp_path}/{name}.jsonl"],
        [Read(), step or NearDedup()],
        f"{tmp_path}/{name}",
        workers=0,
        partition_mb=0.01,
        **settings,
    )
    return [
        row["text"]
        for number in range(result.partitions)
        for row in pq.read_table(result.folder.kept(number)).to_pylist()
    ], result


def test_near_dedup_removes_only_planted_duplicates(tmp_path, monkeypatch):
    monkeypatch.setattr(shuffle, "BUCKET_ROWS", 500)  # several buckets
    rng = random.Random(1)
    originals = [new(rng) for _ in range(100)]
    near = [changed(rng, text, 1) for text in originals[:40]]
    far = [changed(rng, text, 60) for text in originals[40:]]
    assert min(map(jaccard, originals, near)) > 0.9 and max(map(jaccard, originals[40:], far)) < 0.2
    kept, result = run(tmp_path, "a", originals + near + far + ["", "short", "Short!"])
    assert result.partitions > 5
    assert kept == originals + far + ["short"]


def test_near_dedup_of_chinese_text(tmp_path):
    rng = random.Random(2)
    text = "".join(rng.choices("的一是在不了有和人这中大为上个国我以要他", k=300))
    kept, _ = run(tmp_path, "zh", [text, text[:150] + "甲" + text[151:], text[::-1]])
    assert kept == [text, text[::-1]]


def test_near_dedup_index_of_earlier_runs(tmp_path):
    rng = random.Random(3)
    old = [new(rng) for _ in range(20)]
    _, first = run(tmp_path, "first", old)
    step = NearDedup(index=(str(first.folder.path),))
    kept, second = run(tmp_path, "second", [changed(rng, old[3], 1), *(fresh := [new(rng)])], step)
    assert kept == fresh
    rejected = pq.read_table(second.folder.rejected(0)).to_pylist()[0]["rejected_value"]
    assert "first/02-near_dedup/keys/" in rejected
    with pytest.raises(DataError, match="no keys of an earlier run"):
        run(tmp_path, "third", old, NearDedup(index=(str(tmp_path),)))
    with pytest.raises(ConfigError, match="made with different settings.*seed"):
        run(tmp_path, "third", old, NearDedup(seed=1, index=step.index))
    shutil.move(first.folder.path, first.folder.path.with_name("renamed"))
    with pytest.raises(DataError, match="no keys of an earlier run"):
        run(tmp_path, "third", old, NearDedup(index=(str(tmp_path / "first/renamed"),)))
    shutil.move(first.folder.path.with_name("renamed"), first.folder.path)
    shutil.rmtree(first.folder.path / "removed")  # as in an unfinished run
    with pytest.raises(DataError, match="not written all of its keys"):
        run(tmp_path, "third", old, step)
