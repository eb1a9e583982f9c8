"""Chat data in Parquet and CSV files reads like the same rows in JSON."""

import pyarrow as pa
import pytest
from pyarrow import parquet

from qwen_jax.data.chat.conversations import Counts, read_conversations
from qwen_jax.data.chat.pairs import read_pairs
from qwen_jax.data.chat.tables import read_any
from qwen_jax.errors import DataError
from qwen_jax.utils.jsonl import write_rows

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
