"""Files are read by their content: every layout, compression and encoding gives the same rows."""

import bz2
import gzip
import json
import lzma

import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from qwen_jax.corpus import partitions, pipeline
from qwen_jax.corpus.sources.plain_text import documents as parts_of
from qwen_jax.corpus.sources.read import Read
from qwen_jax.errors import ConfigError, DataError
from tests.helpers.corpus_files import rows_of

ROWS = [{"text": f"Document {i} says \u2028 字.", "n": i} for i in range(50)]
TEXTS = [row["text"] for row in ROWS]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
LIST, INDENTED = json.dumps(ROWS), json.dumps(ROWS, indent=2)
CONCATENATED = "\n".join(json.dumps(row, indent=1) for row in ROWS)
COLUMNS = {
    "binary": pa.array([text.encode() for text in TEXTS], pa.binary()),
    "large_binary": pa.array([text.encode() for text in TEXTS], pa.large_binary()),
    "large_string": pa.array(TEXTS, pa.large_string()),
    "dictionary": pa.array(TEXTS).dictionary_encode(),
    "binary_dictionary": pa.array([text.encode() for text in TEXTS]).dictionary_encode(),
}


def zstd(content):
    return pa.compress(content, codec="zstd", asbytes=True)


def members(compress, content):
    return compress(content[:700]) + compress(content[700:])


def parquet(column):
    sink = pa.BufferOutputStream()
    ids = pa.array([b"%d" % i for i in range(len(column))])
    pq.write_table(pa.table({"text": column, "url": ids}), sink)
    return sink.getvalue().to_pybytes()


FILES = {
    # JSON lines under other names, as C4 and Spark ship them
    "lines.json": lambda: LINES.encode(),
    "lines.json.gz": lambda: gzip.compress(LINES.encode()),
    "LINES.JSON": lambda: LINES.encode(),
    "lines.txt": lambda: LINES.encode(),
    "lines.data": lambda: LINES.encode(),
    "part-00000": lambda: LINES.encode(),
    "blank_first.jsonl": lambda: b"\n \n" + LINES.encode(),
    # lists and objects over several lines
    "list.json": lambda: LIST.encode(),
    "indented.json": lambda: INDENTED.encode(),
    "list.jsonl": lambda: LIST.encode(),
    "list.jsonl.gz": lambda: gzip.compress(LIST.encode()),
    "list_of_lines.jsonl": lambda: LIST.replace("}, {", "},\n{").encode(),
    "indented.jsonl": lambda: INDENTED.encode(),
    "concatenated.jsonl": lambda: CONCATENATED.encode(),
    "concatenated.json": lambda: CONCATENATED.encode(),
    # compressions, with several members, and under the wrong name
    "lines.jsonl.zst": lambda: members(zstd, LINES.encode()),
    "lines.jsonl.gz": lambda: members(gzip.compress, LINES.encode()),
    "lines.jsonl.bz2": lambda: members(bz2.compress, LINES.encode()),
    "lines.jsonl.xz": lambda: members(lzma.compress, LINES.encode()),
    "zstd.jsonl.gz": lambda: zstd(LINES.encode()),
    "plain.jsonl.gz": lambda: LINES.encode(),
    "compressed.jsonl": lambda: gzip.compress(LINES.encode()),
    "lines.zst": lambda: zstd(LINES.encode()),
    # encodings
    "utf8_mark.jsonl": lambda: LINES.encode("utf-8-sig"),
    "utf16.jsonl": lambda: LINES.encode("utf-16"),
    "utf16_no_mark.json": lambda: LINES.encode("utf-16-le"),
    "utf16_list.json": lambda: LIST.encode("utf-16-be"),
    "utf32.jsonl.gz": lambda: gzip.compress(LINES.encode("utf-32")),
    "mark_indented.json": lambda: INDENTED.encode("utf-8-sig"),
    # Parquet
    **{f"{name}.parquet": lambda c=column: parquet(c) for name, column in COLUMNS.items()},
    "table.parquet.gz": lambda: gzip.compress(parquet(COLUMNS["binary"])),
    "part-00000-of-1": lambda: parquet(COLUMNS["binary"]),
}


def read(path, *, partition_mb=64.0, **settings):
    """Returns all rows of a source, kept and rejected."""
    made, _ = partitions.make_partitions([f"s={path}"], partition_mb=partition_mb)
    tables = (table for each in made for table in Read(**settings).batches(each))
    return [row for table in tables for row in table.to_pylist()]


def rejected(rows):
    return [(row["path"], row["rejected_by"]) for row in rows if row["rejected_by"]]


@pytest.mark.parametrize("name", FILES)
def test_read_decides_by_content(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name]())
    for megabytes in (64, 0.0008):  # one range, or several where the format allows
        rows = read(tmp_path / name, partition_mb=megabytes)
        assert not rejected(rows)
        assert [row["text"] for row in rows] == TEXTS


def test_read_keeps_text_fields_of_bytes_and_names_bytes_that_are_not_utf8(tmp_path):
    (tmp_path / "a.parquet").write_bytes(parquet(pa.array([b"good", b"caf\xe9", b"end"])))
    rows = read(tmp_path / "a.parquet")
    assert rejected(rows) == [("a.parquet#1", "not_utf8")] and "0xe9" in rows[1]["rejected_value"]
    assert [(row["text"], row["url"]) for row in rows if not row["rejected_by"]] == [
        ("good", "0"),
        ("end", "2"),
    ]


@pytest.mark.parametrize(
    "name, content",
    [
        ("settings.json", json.dumps({"name": "x", "version": 1}, indent=2)),
        ("settings.json", json.dumps({"name": "x", "version": 1})),
        ("numbers.json", "[1, 2, 3]"),
        ("brackets.txt", "[{note}] a text that begins with brackets\n"),
        ("object.txt", '{"name": "x"}\nis an example\n'),
        ("README", "# A page\n"),
        ("notes.log", "line\n"),
        ("utf16.txt", "text in UTF-16: \u5b57\n"),
    ],
)
def test_read_keeps_other_text_as_one_document(tmp_path, name, content):
    encoding = "utf-16" if name.startswith("utf16") else "utf-8"
    (tmp_path / name).write_text(content, encoding=encoding)
    (row,) = read(tmp_path / name)
    assert row["text"] == content and row["rejected_by"] is None and row["path"] == name


def test_read_takes_a_single_object_with_the_text_field_for_a_row(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"text": "one", "n": 1}, indent=2))
    (tmp_path / "b.json").write_text(json.dumps({"text": "two", "n": 1}))
    (tmp_path / "c.json").write_text(json.dumps([{"body": "x"}, {"text": "three"}, 7]))
    rows = read(tmp_path)
    assert [row["text"] for row in rows if not row["rejected_by"]] == ["one", "two", "three"]
    assert rejected(rows) == [("c.json#0", "no_text_field"), ("c.json#2", "no_text_field")]


def test_read_names_where_a_damaged_file_ends(tmp_path):
    damaged = bytearray(gzip.compress(LINES.encode() * 20))
    damaged[len(damaged) // 2] ^= 1  # one flipped bit
    for name, content, where, rule in (
        ("a.json", INDENTED.encode()[:-500], "a.json#4", "not_json"),
        ("b.jsonl.gz", bytes(damaged), "b.jsonl.gz", "damaged_file"),
        ("c.jsonl.zst", zstd(LINES.encode())[:-9], "c.jsonl.zst", "damaged_file"),
        ("d.jsonl.xz", lzma.compress(LINES.encode())[:-9], "d.jsonl.xz", "damaged_file"),
        ("e.jsonl.bz2", bz2.compress(LINES.encode())[:-9], "e.jsonl.bz2", "damaged_file"),
        ("f.txt.zst", zstd(b"text" * 99)[:-9], "f.txt.zst", "damaged_file"),
        ("g.jsonl", LINES.encode("utf-16")[:-1], "g.jsonl", "damaged_file"),
        ("h.json", b"[" + b'{"a":' * 100_000, "h.json#0", "not_json"),
        ("i.jsonl", b'{"text": "x", "n": ' + b"7" * 5000 + b"}\n", "i.jsonl@0", "not_json"),
    ):
        (tmp_path / name).write_bytes(content)
        found = rejected(read(tmp_path / name))
        assert len(found) == 1 and found[0][0].startswith(where) and found[0][1] == rule, found


def test_make_partitions_skips_and_counts_what_programs_made(tmp_path):
    for name in ("a.txt", "b/__pycache__/c.cpython-313.pyc", "d/Thumbs.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"text" if name == "a.txt" else b"\xa7\r\r\n\0\0")
    _, record = partitions.make_partitions([f"s={tmp_path}"], partition_mb=1)
    assert record["s"]["passed_over"] == {"Thumbs.db": 1, "__pycache__": 1}
    for name, content in (("b.zip", b"PK\x03\x04\xff"), ("c", b"caf\xe9"), ("d.pyc", b"\xa7\0")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="(?s)1 of 4 files.*unsupported.*" + name):
            partitions.make_partitions([f"s={tmp_path}"], partition_mb=1)
        (tmp_path / name).unlink()


def book(words=100_000):
    """Returns a text of paragraphs whose words are all different."""
    paragraphs = (
        " ".join(f"word{i}" for i in range(begin, begin + 100)) for begin in range(0, words, 100)
    )
    return "\n\n".join(paragraphs) + "\n"


def test_read_splits_a_book_at_blank_lines(tmp_path):
    (tmp_path / "book.txt").write_text(text := book())
    (tmp_path / "short.md").write_text("short")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": text}) + "\n")
    (tmp_path / "code.py").write_text(text)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "content.jsonl").write_text(json.dumps({"content": text}) + "\n")
    lines = []
    result = pipeline.run(
        [f"s={tmp_path}"], [Read()], f"{tmp_path}.out", workers=0, log=lines.append
    )
    assert lines[0].startswith("s: 1 text files over 64 KB are split into documents")
    assert "  empty_file: empty.txt" in lines
    fix = "--read.text_field names the field of the text"
    assert f"  no_text_field: content.jsonl@0 (content); {fix}" in lines
    rows = {row["path"]: row["text"] for row in rows_of(result)}
    parts = [text for path, text in rows.items() if path.startswith("book.txt@")]
    assert "".join(parts) == text and 14 < len(parts) < 20
    assert all(part.endswith("\n") and len(part) <= 64_000 for part in parts)
    assert rows["rows.jsonl@0"] == rows["code.py"] == text and rows["short.md"] == "short"
    assert len(read(tmp_path / "book.txt", max_text_kb=0)) == 1
    with pytest.raises(ConfigError, match="--read.max_text_kb"):
        Read(max_text_kb=-1)


@pytest.mark.parametrize(
    "text", ["字" * 999, "a b " * 500, "\r\n\r\n".join(["x" * 90] * 30), "é\n" * 700, "x" * 2000]
)
def test_parts_are_the_text_and_end_between_characters(tmp_path, text):
    (tmp_path / "a").write_bytes(text.encode())
    with open(tmp_path / "a", "rb") as file:
        parts = list(parts_of(file, 100))
    assert b"".join(part for _, part in parts) == text.encode()
    assert [part.decode() for _, part in parts] and max(len(part) for _, part in parts) <= 100
    assert min(len(part) for _, part in parts[:-1]) >= 50


@pytest.mark.parametrize(
    "content, found",
    [
        (json.dumps({"data": ROWS, "version": 1}), "data, version"),
        (json.dumps({"version": 1, "rows": ROWS}, indent=2), "version, rows"),
        (json.dumps(TEXTS), "str"),
        (json.dumps(TEXTS, indent=1), "str"),
    ],
)
def test_read_names_a_table_of_texts_in_a_form_that_is_not_read(tmp_path, content, found):
    (tmp_path / "a.json").write_text(content)
    rows = read(tmp_path / "a.json")
    assert {row["rejected_by"] for row in rows} == {"no_text_field"}
    assert {row["rejected_value"] for row in rows} == {found}
