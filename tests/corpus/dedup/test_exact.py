"""Exact duplicates up to case, width and whitespace; the first one is kept."""

import errno
import itertools
import os

import pytest

pa = pytest.importorskip("pyarrow")

from qwen_jax.corpus import shuffle, stage
from qwen_jax.corpus.dedup.exact import ExactDedup, normalize, normalize_url


def apply(step, rows, tmp_path):
    """Runs the stage over partitions of 3 rows, as the pipeline does."""
    tables = []
    for begin in range(0, len(rows), 3):
        filled = [
            {"id": str(i), "kind": "web", "source": "s"} | row
            for i, row in enumerate(rows[begin : begin + 3], begin)
        ]
        tables.append(pa.Table.from_pylist(filled, schema=stage.schema()))
    files = [tmp_path / "keys" / f"{i:05}.parquet" for i in range(len(tables))]
    for path, table in zip(files, tables, strict=True):
        shuffle.write_keys(path, [step.keys(table.slice(0, 1), 0), step.keys(table.slice(1), 1)])
    edges = shuffle.bucket_edges(files)
    for i, (begin, end) in enumerate(itertools.pairwise(edges)):
        shuffle.write_removed(
            tmp_path / "removed" / f"{i:05}.parquet",
            step.duplicates(shuffle.read_bucket(files, begin, end)),
        )
    out = []
    for number, table in enumerate(tables):
        removed = shuffle.read_removed(tmp_path / "removed", number)
        part = shuffle.removed_from_batch(removed, 0, len(table))
        names = [f"{order >> 32}#{order & 0xFFFF}" for order in part["kept"].to_pylist()]
        out += step.remove(table, part, names).to_pylist()
    return out


def test_normalize_and_normalize_url():
    assert normalize("Ｈello\u3000 WORLD\n") == normalize("hello world") == "hello world"
    assert normalize("Straße ﬁn") == "strasse fin"
    assert normalize_url("https://www.Example.org/A/b/#c") == "example.org/A/b"
    assert normalize_url("http://example.org") == "example.org"


@pytest.mark.parametrize("bucket_rows", [2, 1000])
def test_exact_dedup_keeps_the_first_document_in_any_number_of_buckets(
    tmp_path, monkeypatch, bucket_rows
):
    monkeypatch.setattr(shuffle, "BUCKET_ROWS", bucket_rows)
    texts = ["One", "two", "ONE ", "three", "two", "four", "one\n", "five"]
    out = apply(ExactDedup("document"), [{"text": text} for text in texts], tmp_path)
    assert [row["rejected_value"] for row in out] == [
        None,
        None,
        "0#0",
        None,
        "0#1",
        None,
        "0#0",
        None,
    ]
    assert {row["rejected_by"] for row in out} == {None, "exact_document"}


def test_exact_dedup_by_url(tmp_path):
    urls = ["http://a/x", None, "https://www.a/x/", "http://a/y", None]
    out = apply(ExactDedup("url"), [{"text": "t", "url": url} for url in urls], tmp_path)
    assert [row["rejected_by"] for row in out] == [None, None, "exact_url", None, None]


def test_exact_dedup_removes_paragraphs_except_in_code(tmp_path):
    notice = "This site uses cookies, as all sites do that count you."
    rows = [
        {"text": f"{notice}\nfirst"},
        {"text": f"second\n{notice.upper()}\n{notice}\nend"},
        {"text": notice},
        {"text": notice, "kind": "code"},
        {"text": "short\nshort"},
    ]
    out = apply(ExactDedup("paragraph"), rows, tmp_path)
    assert [row["text"] for row in out] == [
        f"{notice}\nfirst",
        "second\nend",
        notice,
        notice,
        "short\nshort",
    ]
    assert [row["removed_paragraphs"] for row in out] == [0, 2, 1, 0, 0]
    assert [row["rejected_by"] for row in out] == [None, None, "exact_paragraph", None, None]


def test_read_removed_does_not_take_an_unreadable_folder_as_empty(tmp_path, monkeypatch):
    def fails(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(os, "listdir", fails)
    monkeypatch.setattr(os, "scandir", fails)
    with pytest.raises(OSError) as caught:
        shuffle.read_removed(tmp_path, 0)
    assert caught.value.errno == errno.EIO
