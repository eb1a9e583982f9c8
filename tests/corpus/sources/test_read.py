"""documents() reads every format; damaged files raise with their location."""

import gzip

import pytest

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

from qwen_jax.corpus.partitions import make_partitions
from qwen_jax.corpus.sources.read import documents
from qwen_jax.errors import DataError


def texts(path):
    return [document.text for document in documents(str(path))]


def test_documents_reads_every_format_in_name_order(tmp_path):
    (tmp_path / "a.txt").write_text("ä text", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "one", "group": "g"}\n\n{"text": "two"}\n')
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "three"}\n'))
    parquet.write_table(
        pyarrow.table({"text": ["four", "five"], "n": [1, 2]}), tmp_path / "d.parquet"
    )
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "f.py").write_text("pass\n")
    (tmp_path / "g.txt").write_text("")
    (tmp_path / "h.jsonl").write_text('{"text": " "}\n')
    (tmp_path / ".hidden").write_text("not read")
    assert texts(tmp_path) == ["ä text", "one", "two", "three", "four", "five", "pass\n"]
    assert texts(tmp_path / "a.txt") == ["ä text"]
    found = list(documents(str(tmp_path)))
    assert [document.group for document in found[:3]] == [None, "g", None]
    assert len({document.name for document in found}) == len(found)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.txt", b"caf\xe9", "not_utf8: 0xe9 at 3"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "(?s)not_json.*@14"),
        ("a.jsonl", b'{"body": "x"}\n', "no_text_field: body"),
        ("a.jsonl", b'{"text": null}\n', "no_text_field"),
        ("a.jsonl", b'{"text": "\xff"}\n', "(?s)not_json.*@0"),
        # mtime=0: pytest workers must collect identical parameters.
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 1000, mtime=0)[:40], "damaged_file"),
        ("a.parquet", b"PAR1 but not really", "damaged_file"),
        ("a.pdf", b"%PDF-1.7\n\xff", "unsupported type"),
        ("tutor.de", "f\u00fcr".encode("latin-1"), "(?s)not UTF-8: .de.*iconv"),
    ],
)
def test_documents_raises_on_damaged_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        texts(tmp_path)
    assert name in str(caught.value)


def test_documents_passes_over_images_of_saved_pages_and_counts_them(tmp_path):
    (tmp_path / "a.html").write_text("<p>one two three four five</p>" * 9)
    (tmp_path / "b.png").write_bytes(b"\x89PNG\xff")
    _, record = make_partitions((f"saved=web:{tmp_path}",), partition_mb=1)
    assert record["saved"]["passed_over"] == {".png": 1} and record["saved"]["files"] == 1


def test_documents_raises_on_missing_and_empty_sources(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        texts(tmp_path / "nothing")
    with pytest.raises(DataError, match="empty folder"):
        texts(tmp_path)
