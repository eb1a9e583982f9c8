"""The corpus pipeline keeps or rejects every row, and writes the same bytes in any setup."""

import dataclasses
import gzip
import itertools
import json
import shutil
import tracemalloc

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from qwen_jax.corpus import pipeline
from qwen_jax.corpus.dedup.exact import ExactDedup
from qwen_jax.corpus.output.mixture import Mixture
from qwen_jax.corpus.output.tokenize import tokenize
from qwen_jax.corpus.sources import read
from qwen_jax.corpus.sources.read import Read
from qwen_jax.data import shards
from qwen_jax.data.document import Document
from qwen_jax.data.shards import Split
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.utils.append_only import open_exclusive
from tests.helpers.corpus_files import files_of, rows_of, small_tokenizer, write_sources
from tests.helpers.warc_files import http_response, page, record, zipped

STEPS = [Read(), ExactDedup("url"), ExactDedup("document")]


def run(source, root, workers=0, steps=STEPS, partition_mb=0.01, **settings):
    return pipeline.run(
        [str(source)], steps, str(root), workers=workers, partition_mb=partition_mb, **settings
    )


def test_run_keeps_or_rejects_every_row_with_a_reason(tmp_path):
    source = write_sources(tmp_path / "source")
    result = run(source, tmp_path / "out")
    assert result.partitions > 5
    rows = rows_of(result)
    assert len(rows) == 300 + 3 and len({row["id"] for row in rows}) == 303
    assert json.loads(rows[0]["metadata"]) == {"n": 0} and rows[0]["url"] == "http://a/0"
    assert rows[0]["path"] == "a.jsonl@0" and rows[0]["kind"] == "text"
    counts = result.counts
    assert counts["01-read"]["kept"]["documents"] == 354
    assert counts["02-exact_url"]["rejected"]["exact_url"]["documents"] == 50
    assert counts["03-exact_document"]["rejected"]["exact_document"]["documents"] == 1
    rejected = [
        row
        for path in sorted((tmp_path / "out/03-exact_document/rejected").iterdir())
        for row in pq.read_table(path).to_pylist()
    ]
    assert [row["path"] for row in rejected] == ["c.parquet#1"]
    assert rejected[0]["rejected_value"] == "00000#7"


def test_run_gives_the_same_rows_for_any_partition_mb(tmp_path):
    source = write_sources(tmp_path / "source")
    one, many = (run(source, tmp_path / str(mb), partition_mb=mb) for mb in (64, 0.003))
    assert many.partitions > one.partitions == 1
    assert rows_of(one) == rows_of(many)


def test_run_gives_the_same_rows_for_any_batch_size(tmp_path, monkeypatch):
    source = write_sources(tmp_path / "source")
    one = run(source, tmp_path / "one", partition_mb=64)
    monkeypatch.setattr(read, "BATCH_BYTES", 2000)
    many = run(source, tmp_path / "many", partition_mb=64)
    batches = pq.ParquetFile(many.folders[0].kept(0)).num_row_groups
    assert batches > 20 and pq.ParquetFile(one.folders[0].kept(0)).num_row_groups == 1
    assert rows_of(one) == rows_of(many) and one.counts == many.counts


def test_run_resumes_without_redoing_finished_partitions(tmp_path):
    source = write_sources(tmp_path / "source")
    run(source, tmp_path / "a")
    run(source, tmp_path / "b")
    before = files_of(tmp_path / "b")
    assert before == files_of(tmp_path / "a")
    for name in ("00002.json", "kept/00002.parquet"):  # as if killed during the last stage
        (tmp_path / "b/03-exact_document" / name).unlink()
    (tmp_path / "b/03-exact_document/kept/00002.parquet.77.writing").write_text("half")
    untouched = tmp_path / "b/03-exact_document/kept/00001.parquet"
    when = untouched.stat().st_mtime_ns
    run(source, tmp_path / "b")
    assert files_of(tmp_path / "b") == before and untouched.stat().st_mtime_ns == when


def test_run_resumes_a_folder_whose_record_is_plan_json(tmp_path):
    source = write_sources(tmp_path / "source")
    run(source, tmp_path / "out")
    (tmp_path / "out/pipeline.json").rename(tmp_path / "out/plan.json")  # of earlier versions
    run(source, tmp_path / "out")
    assert not (tmp_path / "out/pipeline.json").exists()
    with pytest.raises(ConfigError, match="page_mb"):
        run(source, tmp_path / "out", steps=[Read(page_mb=3), *STEPS[1:]])


def test_run_refuses_a_folder_of_an_earlier_version_that_is_in_use(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/plan.json").write_text("{}")
    source = write_sources(tmp_path / "source")
    with open_exclusive(tmp_path / "out/plan.lock"):  # as that version does
        with pytest.raises(ConfigError, match="another process"):
            run(source, tmp_path / "out")


def test_run_refuses_a_folder_of_other_settings(tmp_path):
    source = write_sources(tmp_path / "source")
    run(source, tmp_path / "out")
    with pytest.raises(ConfigError, match="the folder was made with different settings.*page_mb"):
        run(source, tmp_path / "out", steps=[Read(page_mb=3), *STEPS[1:]])
    (source / "e.txt").write_text("new")
    with pytest.raises(ConfigError, match="made with different settings.*source"):
        run(source, tmp_path / "out")


def test_run_checks_all_sources_before_any_work(tmp_path):
    write_sources(tmp_path / "source")
    with pytest.raises(DataError, match="does not exist"):
        pipeline.run(
            [str(tmp_path / "source"), str(tmp_path / "gone")],
            STEPS,
            str(tmp_path / "out"),
            workers=0,
        )
    assert not list((tmp_path / "out").glob("0*"))
    (tmp_path / "source/paper.pdf").write_bytes(b"%PDF-1.7\n\xff")
    with pytest.raises(DataError, match=r"1 of 5 files .*\.pdf"):
        run(tmp_path / "source", tmp_path / "out")


def test_run_fails_only_the_partition_of_a_missing_file(tmp_path, monkeypatch):
    source = write_sources(tmp_path / "source")
    original = pipeline.make_partitions

    def remove_after(*args, **named):
        made = original(*args, **named)
        (source / "d.txt").rename(tmp_path / "d.txt")
        return made

    monkeypatch.setattr(pipeline, "make_partitions", remove_after)
    with pytest.raises(DataError, match="No such file.*d.txt"):
        run(source, tmp_path / "out")
    assert len(list((tmp_path / "out/01-read").glob("*.json"))) >= 5
    monkeypatch.setattr(pipeline, "make_partitions", original)
    (tmp_path / "d.txt").rename(source / "d.txt")
    assert len(rows_of(run(source, tmp_path / "out"))) == 303


def test_read_rejects_only_damaged_input(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.jsonl").write_bytes(
        b'{"text": "good"}\n{"text": \n{"body": 1}\n"x"\n'
        b'{"text": "\xff"}\n{"text": "half \\ud83d pair"}\n'
    )
    (source / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 9000, mtime=0)[:60])
    (source / "c.parquet").write_bytes(b"PAR1 but not really")
    (source / "d.txt").write_bytes(b"caf\xe9")
    (source / "e.txt").write_bytes(b"")
    (source / "f.txt.gz").write_bytes(b"\x1f\x8bnothing")
    result = run(source, tmp_path / "out", steps=[Read()])
    counts = {
        rule: count["documents"] for rule, count in result.counts["01-read"]["rejected"].items()
    }
    assert counts == {
        "not_json": 2,
        "no_text_field": 2,
        "damaged_file": 3,
        "not_utf8": 1,
        "empty_file": 1,
    }
    assert [row["text"] for row in rows_of(result)][:2] == ["good", "half \ufffd pair"]


def rejected_by(result):
    return {
        rule: count["documents"] for rule, count in result.counts["01-read"]["rejected"].items()
    }


def test_read_rejects_deeply_nested_long_and_blank_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "_MAX_BYTES", 1 << 19)
    source = tmp_path / "source"
    source.mkdir()
    (source / "deep.jsonl").write_bytes(b"[" * 200_000 + b'\n{"text": "good"}\n')
    (source / "long.jsonl").write_bytes(
        b'{"text": "' + b"x" * (3 << 20) + b'"}\n{"text": "good"}\n'
    )
    (source / "blank.jsonl").write_bytes(b"\n  \r\n\n")
    (source / "nothing.jsonl.gz").write_bytes(gzip.compress(b""))
    for mb in (64, 0.3):  # split into ranges, the long line spans several
        result = run(source, tmp_path / str(mb), steps=[Read()], partition_mb=mb)
        assert rejected_by(result) == {"not_json": 1, "too_large": 1, "empty_file": 2}
        assert [row["text"] for row in rows_of(result)] == ["good", "good"]


def test_read_rejects_only_damaged_row_groups_of_parquet(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    texts = [f"{number} " * 400 for number in range(40)]
    pq.write_table(pa.table({"text": texts}), source / "a.parquet", row_group_size=10)
    data = bytearray((source / "a.parquet").read_bytes())
    begin = pq.ParquetFile(source / "a.parquet").metadata.row_group(1).column(0)
    for offset in range(begin.data_page_offset, begin.data_page_offset + 200):
        data[offset] ^= 0x5A
    (source / "a.parquet").write_bytes(data)
    data[-100:] = bytes(100)
    (source / "b.parquet").write_bytes(data)
    words = pa.Array.from_buffers(
        pa.string(),
        2,
        [None, pa.py_buffer(np.array([0, 2, 4], np.int32)), pa.py_buffer(b"ok\xff\xfe")],
    )
    pq.write_table(pa.table({"text": words}), source / "c.parquet")
    pq.write_table(
        pa.table({"text": ["timed"], "t": pa.array([1], pa.timestamp("ns"))}), source / "d.parquet"
    )
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), source / "e.parquet")
    for mb in (64, 0.0001):  # one range, or several
        result = run(source, tmp_path / str(mb), steps=[Read()], partition_mb=mb)
        assert rejected_by(result) == {
            "damaged_rows": 1,
            "damaged_file": 1,
            "not_utf8": 1,
            "empty_file": 1,
        }
        assert [row["text"] for row in rows_of(result)] == [*texts[:10], *texts[20:], "ok", "timed"]
        (rejected,) = (
            row
            for number in range(result.partitions)
            for row in pq.read_table(result.folder.rejected(number)).to_pylist()
            if row["rejected_by"] == "damaged_rows"
        )
        assert rejected["path"] == "a.parquet#10" and "10 rows" in rejected["rejected_value"]


def test_read_limits_the_rows_of_a_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "BATCH_BYTES", 50_000)
    (tmp_path / "a.jsonl").write_text("0\n" * 1000)
    result = run(tmp_path / "a.jsonl", tmp_path / "out", steps=[Read()])
    assert rejected_by(result) == {"no_text_field": 1000}
    assert pq.ParquetFile(result.folder.rejected(0)).num_row_groups > 5


def test_read_bounds_memory_for_dictionary_encoded_parquet(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "BATCH_BYTES", 1 << 20)
    words = pa.DictionaryArray.from_arrays(pa.array([0] * 64, pa.int32()), ["x" * (1 << 20)])
    pq.write_table(pa.table({"text": words}), tmp_path / "a.parquet", compression="zstd")
    partitions, _ = pipeline.make_partitions([f"{tmp_path}/a.parquet"], partition_mb=1)
    tracemalloc.start()
    assert sum(map(len, Read().batches(partitions[0]))) == 64
    assert tracemalloc.get_traced_memory()[1] < 40 << 20  # all rows at once would take over 64 MiB
    tracemalloc.stop()


def test_run_accepts_a_source_named_sum(tmp_path):
    for name in ("sum", "other"):
        (tmp_path / f"{name}.txt").write_text(name)
    result = pipeline.run(
        [f"{tmp_path}/sum.txt", f"{tmp_path}/other.txt"], [Read()], str(tmp_path / "out"), workers=0
    )
    assert result.counts["01-read"]["counted"]["source"] == {"other": 1, "sum": 1}


def test_read_extracts_pages_of_warc_and_wet_archives(tmp_path):
    pytest.importorskip("trafilatura")
    body = (
        "<html><body><article><p>"
        + "这是一个关于水稻种植历史的句子。" * 20
        + "</p></article></body></html>"
    )
    pages = [
        page(0),
        record("http://a/gbk", http_response(body.encode("gbk"))),
        record(
            "http://a/sjis",
            http_response(
                body.replace("这", "これ")
                .replace("种植历史", "歴史")
                .replace("个关于", "の")
                .encode("shift_jis", "ignore"),
                "text/html; charset=utf-8",
            ),
        ),
        record("http://a/pdf", http_response(b"%PDF-1.4 " + bytes(200))),
        record("http://a/404", http_response(b"<p>gone</p>", status=404)),
        record("http://a/css", http_response(b"a {}", "text/css")),
        record("http://a/deep", http_response(b"<div>" * 5000 + b"deep")),
        record("http://a/r", b"GET / HTTP/1.1\r\n\r\n", kind="request"),
        record("http://a/empty", http_response(b"<html></html>")),
        record("http://a/blank", http_response(b" \n ", "text/plain")),
        record(
            "http://a/br", http_response(b"\x8b\x02\x80abc", headers="Content-Encoding: br\r\n")
        ),
        record(
            "http://a/said",
            http_response(
                "日本語の文章です。".encode("shift_jis"),
                "text/plain; Charset=Shift_JIS; format=flowed",
            ),
        ),
        page(1),
    ]
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a.warc.gz").write_bytes(b"".join(map(zipped, pages))[:-5])
    (tmp_path / "source/b.warc.wet.gz").write_bytes(
        zipped(record("http://b/0", b"text of a page", kind="conversion"))
    )
    result = run(tmp_path / "source", tmp_path / "out", steps=[Read()])
    rejected = {
        rule: count["documents"] for rule, count in result.counts["01-read"]["rejected"].items()
    }
    assert rejected == {
        "binary": 1,
        "http_status": 1,
        "content_type": 1,
        "not_a_page": 1,
        "no_text": 3,
        "http_coding": 1,
        "warc_truncated": 1,
    }
    rows = {row["url"]: row for row in rows_of(result)}
    assert "水稻种植历史" in rows["http://a/gbk"]["text"]
    assert "水稻" in rows["http://a/sjis"]["text"] and "\ufffd" not in rows["http://a/sjis"]["text"]
    assert rows["http://a/said"]["text"] == "日本語の文章です。"
    assert rows["http://a/0"]["kind"] == rows["http://b/0"]["kind"] == "web"


def test_tokenize_writes_the_shards_of_one_process(tmp_path):
    result = run(write_sources(tmp_path / "source"), tmp_path / "out")
    path = small_tokenizer(tmp_path / "bytes.tiktoken")
    tokenize(
        result,
        str(tmp_path / "shards"),
        path,
        split=Split(0.1, 3),
        shard_tokens=3e3,
        workers=0,
        log=print,
    )
    opened = shards.open_shards(tmp_path / "shards/source/train")
    assert len(opened.files) > 1
    documents = [Document(row["id"], row["text"]) for row in reversed(rows_of(result))]
    shards.write(
        documents,
        tmp_path / "direct",
        Tokenizer.from_file(path),
        eval_fraction=0.1,
        seed=3,
        num_shards=len(opened.files),
    )
    assert files_of(tmp_path / "direct") == files_of(tmp_path / "shards/source")


def test_tokenize_repeats_only_train_documents_and_spreads_them(tmp_path):
    result = run(write_sources(tmp_path / "source"), tmp_path / "out")
    path = small_tokenizer(tmp_path / "bytes.tiktoken")
    made = {}
    for name, weights in (("once", {}), ("often", {"source": 2.5})):
        tokenize(
            result,
            str(tmp_path / name),
            path,
            split=Split(0.2),
            shard_tokens=1e9,
            workers=0,
            mixture=Mixture(weights),
            log=print,
        )
        made[name] = [
            shards.open_shards(tmp_path / name / "source" / side) for side in ("train", "eval")
        ]
    assert made["often"][1] == dataclasses.replace(
        made["once"][1], folder=made["often"][1].folder, files=made["often"][1].files
    )
    once, often = made["once"][0].documents, made["often"][0].documents
    assert often == pytest.approx(2.5 * once, rel=0.05)
    tokens = np.fromfile(made["often"][0].files[0], "<u2")
    documents = [
        bytes(part.astype(np.uint8)) for part in np.split(tokens, np.flatnonzero(tokens == 256))
    ]
    assert sum(a == b for a, b in itertools.pairwise(documents)) < 8  # copies are not adjacent


def test_tokenize_refuses_a_folder_of_other_settings(tmp_path):
    result = run(write_sources(tmp_path / "source"), tmp_path / "out")
    path = small_tokenizer(tmp_path / "bytes.tiktoken")

    default_split, default_mixture = Split(0.2), Mixture()

    def write(split=default_split, mixture=default_mixture):
        tokenize(
            result,
            str(tmp_path / "shards"),
            path,
            split=split,
            shard_tokens=1e9,
            workers=0,
            mixture=mixture,
            log=print,
        )

    write()
    before = files_of(tmp_path / "shards")
    write()
    for other in ({"split": Split(0.3)}, {"mixture": Mixture({"source": 2.0})}):
        with pytest.raises(ConfigError, match="(?s)made with different settings.*shards"):
            write(**other)
    assert files_of(tmp_path / "shards") == before


def test_tokenize_ignores_parts_of_deleted_shards(tmp_path):
    result = run(write_sources(tmp_path / "source"), tmp_path / "out")
    path = small_tokenizer(tmp_path / "bytes.tiktoken")
    settings = {"shard_tokens": 1e9, "workers": 0, "log": print}
    with pytest.raises(DataError, match="documents is in train"):  # leaves its parts behind
        tokenize(result, str(tmp_path / "shards"), path, split=Split(1.0), **settings)
    shutil.rmtree(tmp_path / "shards")
    tokenize(result, str(tmp_path / "shards"), path, split=Split(0.0), **settings)
    assert shards.open_shards(tmp_path / "shards/source/train").documents == 303


def test_run_and_tokenize_write_the_same_with_workers(tmp_path):
    pytest.importorskip("daft")
    source = write_sources(tmp_path / "source")
    path = small_tokenizer(tmp_path / "bytes.tiktoken")
    for workers in (0, 2):
        result = run(source, tmp_path / str(workers), workers=workers)
        tokenize(
            result,
            str(tmp_path / str(workers) / "shards"),
            path,
            split=Split(0.1),
            shard_tokens=3e3,
            workers=workers,
            log=print,
        )
    assert files_of(tmp_path / "0") == files_of(tmp_path / "2")
    assert np.sum([len(x) for x in files_of(tmp_path / "0").values()]) > 1e5
