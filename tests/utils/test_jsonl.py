"""Files of JSON rows: their names, reading and writing, and errors that name the line."""

import bz2
import gzip
import json
import lzma
import sys

import pytest

from qwen_jax.errors import DataError
from qwen_jax.utils import jsonl
from qwen_jax.utils.jsonl import as_line, read_rows, unique_names, write_rows
from tests.helpers.damage import check_reader, odd_files, seeds


def test_unique_names_adds_folders_until_names_differ():
    assert unique_names(["a/x.jsonl.gz", "b/y.json"]) == ["x", "y"]
    assert unique_names(["r/sums/pairs.jsonl", "r/docs/pairs.jsonl"]) == [
        "sums/pairs",
        "docs/pairs",
    ]
    assert unique_names([]) == []
    with pytest.raises(DataError, match="listed twice"):
        unique_names(["a/x.json", "a/x.json"])


def test_write_rows_is_atomic(tmp_path):
    path = tmp_path / "new" / "a.jsonl"
    rows = [{"text": "日"}, {"text": "\ud800"}]
    write_rows(path, rows)
    assert [row for _, row in read_rows(path)] == rows

    def torn():
        yield {"text": "c"}
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        write_rows(path, torn())
    assert [row for _, row in read_rows(path)] == rows


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.jsonl", "a.jsonl.gz"])
def test_read_rows_yields_locations(tmp_path, name):
    rows = [{"text": "日"}, {"text": "b\u2028c"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = json.dumps(rows) if ".jsonl" not in name else f"{lines[0]}\r\n\n{lines[1]}"
    raw = b"\xef\xbb\xbf" + text.encode("utf-8")
    path = tmp_path / name
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    locations = (
        [f"{path} line 1", f"{path} line 3"] if ".jsonl" in name else [f"{path}[0]", f"{path}[1]"]
    )
    assert list(read_rows(path)) == list(zip(locations, rows, strict=True))


@pytest.mark.parametrize(
    "name, raw, message",
    [
        ("a.jsonl", b'{}\n{"a": \n{}\n', "not valid JSON.*a.jsonl line 2\n"),
        ("a.jsonl", b"{}\n3\n", "'3' is not a JSON object.*a.jsonl line 2\n"),
        ("a.jsonl", b'{}\n{"a": "\xff"}\n', "not UTF-8.*a.jsonl line 2\n"),
        ("a.jsonl", b'{}\n{"a": 1', "delimiter at column 8.\n.*a.jsonl line 2\n"),
        ("a.jsonl", b'{}\n{"a": 1\n', "delimiter at column 8.\n.*a.jsonl line 2\n"),
        ("a.json", b"[{}, 3]", "'3' is not a JSON object.*a.json\\[1\\]\n"),
        ("a.json", b"{}", "not a JSON list"),
        ("a.json", b"[{}", "not valid JSON"),
        ("a.json", b"[" * 100_000, "not valid JSON"),  # nested too deeply
        ("a.json", b'[{"a": ' + b"1" * 5000 + b"}]", "not valid JSON"),  # integer too long
        ("a.json", b'["\xff"]', "not UTF-8"),
        ("a.jsonl.gz", gzip.compress(b"{}\n" * 99, mtime=0)[:-9], "cannot read the file"),
        ("a.jsonl.gz", b"\x1f\x8b{}", "cannot read the file"),
        ("a.jsonl.gz", gzip.compress(b"{}", mtime=0)[:10] + b"\xff" * 20, "cannot read the file"),
        ("a.jsonl", b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}\n", "more than 64 levels"),
        ("a.json", b"[" * 65 + b"]" * 65, "more than 64 levels"),
        ("a.jsonl", b"{}\n" + b"\0" * 99, "not valid JSON.*a.jsonl line 2\n"),
        ("a.jsonl", b"{}\n" + b" " * 5000, "more than 4,096 bytes.*a.jsonl line 2\n"),
        ("a.txt", b"", "unsupported file extension"),
        ("a.txt", b"[INST] Hi", "unsupported file extension"),
        ("a.jsonl", b'{}\n{"a": 1, "b": {"c": 1, "c": 2}}\n', "'c' is repeated.*a.jsonl line 2\n"),
        ("a.json", b'[{"a": 1, "a": 1}]', "'a' is repeated"),
    ],
)
def test_read_rows_names_the_bad_line(tmp_path, name, raw, message, monkeypatch):
    monkeypatch.setattr(jsonl, "_LINE_BYTES", 4096 if b"     " in raw else 1 << 28)
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=f"(?s){message}"):
        list(read_rows(tmp_path / name))


def test_read_rows_of_a_log_skips_and_collects_bad_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n\n3\n{"a": "\xff"}\n{"a": 2}\n{"a": 3')
    bad = []
    assert [row for _, row in read_rows(path, bad=bad)] == [{"a": 1}, {"a": 2}]
    assert [error.where for error in bad] == [f"{path} line {number}" for number in (2, 4, 5)]
    path.write_bytes(b'{"a": 1}\n{"a": 2}')  # complete except for its line end
    assert [row["a"] for _, row in read_rows(path, bad=bad)] == [1, 2] and len(bad) == 3


@seeds(10)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz"])
def test_read_rows_names_a_damaged_file(tmp_path, name, seed):
    rows = [{"text": f"row {number}", "n": [number, None, 1.5]} for number in range(20)]
    raw = b"".join(map(jsonl.as_line, rows)) if "jsonl" in name else json.dumps(rows).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    found = check_reader(path, lambda: list(read_rows(path)), seed=seed, times=80)
    assert found.keys() <= {"read", "DataError"} and found["DataError"] > 10


def test_read_rows_refuses_what_is_not_a_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("{}")
    for kind in odd_files(path):
        with pytest.raises(DataError, match="cannot read the file|does not exist"):
            list(read_rows(path))
        assert kind


ROWS = [{"messages": [{"role": "user", "content": f"字 {i}"}]} for i in range(3)]
LINES = b"".join(map(as_line, ROWS))


@pytest.mark.parametrize(
    "name, content",
    [
        ("talks.json", LINES),
        ("talks.json.gz", gzip.compress(LINES[:50], mtime=0) + gzip.compress(LINES[50:], mtime=0)),
        ("talks.jsonl", json.dumps(ROWS, indent=2).encode()),
        ("talks.jsonl", json.dumps(ROWS).encode()),
        ("talks.jsonl", b"\xef\xbb\xbf\n" + json.dumps(ROWS).encode()),
        ("talks.jsonl.xz", lzma.compress(LINES)),
        ("talks.json.bz2", bz2.compress(json.dumps(ROWS).encode())),
        ("talks.jsonl.gz", LINES),
        ("talks.jsonl", gzip.compress(LINES, mtime=0)),
        ("talks.JSON", LINES),
        ("talks.ndjson", json.dumps(ROWS, indent=2).encode()),
        ("talks.txt.gz", gzip.compress(LINES, mtime=0)),
        ("part-00000", b"\xef\xbb\xbf" + LINES),
    ],
)
def test_read_rows_decides_by_content(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert [row for _, row in read_rows(tmp_path / name)] == ROWS


def test_read_rows_reads_zstandard(tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    path = tmp_path / "talks.jsonl.zst"
    path.write_bytes(pa.compress(LINES, codec="zstd", asbytes=True))
    assert [row for _, row in read_rows(path)] == ROWS
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"(?s)needs pyarrow.*talks.jsonl.zst.*qwen_jax\[data\]"):
        list(read_rows(path))


def test_read_rows_names_the_cause_of_objects_over_several_lines(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row, indent=1) for row in ROWS))
    with pytest.raises(DataError, match="one object per line without line breaks"):
        list(read_rows(tmp_path / "a.jsonl"))
