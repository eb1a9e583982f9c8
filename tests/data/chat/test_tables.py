"""Chat data in Parquet and CSV files reads like the same rows in JSON."""

import gzip
import io

import pyarrow as pa
import pytest
from pyarrow import parquet

from qwen_jax.data.chat.conversations import Counts, read_conversations
from qwen_jax.data.chat.pairs import read_pairs
from qwen_jax.data.chat.tables import read_any
from qwen_jax.errors import DataError
from qwen_jax.utils.jsonl import as_line, write_rows

ROWS = [
    {"instruction": 'Say "a, b"\nand c.', "input": None, "output": "a, b"},
    {"instruction": "Add.", "input": "7 and 2", "output": "9"},
]


def conversations(path):
    return [row.turns for row in read_conversations([path], Counts())]


def test_parquet_and_csv_read_like_jsonl(tmp_path):
    write_rows(tmp_path / "a.jsonl", ROWS)
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    text = 'instruction,input,output\r\n"Say ""a, b""\nand c.",,"a, b"\r\nAdd.,7 and 2,9\r\n'
    # As Excel saves it: a byte order mark, and Windows' line ends.
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    wanted = conversations(tmp_path / "a.jsonl")
    assert len(wanted) == 2 and "7 and 2" in str(wanted)
    assert conversations(tmp_path / "a.parquet") == wanted
    assert conversations(tmp_path / "a.csv") == wanted


@pytest.mark.parametrize("delimiter, name", [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_csv_with_another_delimiter_is_named(tmp_path, delimiter, name):
    (tmp_path / "a.csv").write_text(f"question{delimiter}answer\n1+1{delimiter}2\n")
    with pytest.raises(DataError, match=f"separated by {name}"):
        conversations(tmp_path / "a.csv")


def test_files_that_are_folders_or_empty_are_named(tmp_path):
    with pytest.raises(DataError, match="a folder, not a file"):
        conversations(tmp_path)
    for name in ("a.jsonl", "a.csv"):
        (tmp_path / name).write_text("")
        with pytest.raises(DataError, match="it is empty"):
            conversations(tmp_path / name)


def test_nested_parquet_holds_messages_and_pairs(tmp_path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    parquet.write_table(pa.Table.from_pylist([{"messages": turns}] * 3), tmp_path / "a.parquet")
    assert len(conversations(tmp_path / "a.parquet")) == 3
    row = {"prompt": "Hi", "chosen": "Hello.", "rejected": "No."}
    parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "b.parquet")
    assert len(list(read_pairs([tmp_path / "b.parquet"], Counts()))) == 1


def test_labels_of_a_csv_are_not_texts(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,completion,label\nHi,Hello.,True\nHi,Go.,False\n")
    counts = Counts()
    assert len(list(read_conversations([tmp_path / "a.csv"], counts))) == 1
    assert counts.skipped.total() == 1


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", b"prompt,completion\nHi, you,Hello.\n", "more cells"),
        ("a.csv", b"prompt,completion\nHi\n", "fewer cells"),
        ("a.csv", b"prompt,prompt,completion\nHi,Ho,x\n", "two columns have the name 'prompt'"),
        ("a.csv.gz", gzip.compress(b"prompt\n" * 99, mtime=0)[:-9], "cannot read the file"),
        ("a.csv", b"prompt,completion\nHi,caf\xe9\n", "not UTF-8"),
        ("a.csv", b'prompt,completion\nHi,"a\n', "cannot read the file"),
        ("a.parquet", b"PAR1 and no more", "not valid Parquet"),
    ],
)
def test_broken_tables_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_any(tmp_path / name))
    with pytest.raises(DataError, match="does not exist"):
        list(read_any(tmp_path / f"missing-{name}"))


def in_parquet(rows):
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


FLAT = [{"prompt": f"q{number}", "completion": "é"} for number in range(3)]
LINES = b"".join(map(as_line, FLAT))
CSV = "prompt,completion\n" + "".join(f"{row['prompt']},é\n" for row in FLAT)


@pytest.mark.parametrize(
    "name", ["a.txt", "a", "a.JSONL", "a.ndjson", "a.parquet", "a.csv", "a.jsonl.GZ", "a.data"]
)
def test_read_any_reads_json_lines_of_any_name(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(LINES) if name.endswith("GZ") else LINES)
    assert [row for _, row in read_any(tmp_path / name)] == FLAT


@pytest.mark.parametrize("name", ["a.parquet", "a.pq", "a.jsonl", "a.PARQUET", "a.parquet.gz"])
@pytest.mark.parametrize("binary", [False, True])  # Spark writes texts as BINARY
def test_read_any_reads_parquet_of_any_name(tmp_path, name, binary):
    rows = [{key: text.encode() for key, text in row.items()} for row in FLAT] if binary else FLAT
    raw = in_parquet(rows)
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    assert [row for _, row in read_any(tmp_path / name)] == FLAT


@pytest.mark.parametrize("name", ["a.csv", "a.CSV", "a.csv.gz"])
def test_read_any_reads_csv_compressed_or_in_capitals(tmp_path, name):
    raw = CSV.encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    assert [row for _, row in read_any(tmp_path / name)] == FLAT


def test_a_row_of_bytes_that_are_no_text_is_skipped(tmp_path):
    (tmp_path / "a.parquet").write_bytes(
        in_parquet([{"prompt": b"q", "completion": text} for text in (b"a", b"\xff")])
    )
    counts = Counts()
    assert len(list(read_conversations([tmp_path / "a.parquet"], counts))) == 1
    assert counts.skipped.total() == 1
