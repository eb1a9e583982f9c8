"""A stage marks rows and never drops one."""

import pytest

pa = pytest.importorskip("pyarrow")

from qwen_jax.corpus import stage


def table_of(*texts):
    rows = [
        {"id": str(i), "text": text, "kind": "text", "source": "s"} for i, text in enumerate(texts)
    ]
    return pa.Table.from_pylist(rows, schema=stage.schema())


def test_reject_keeps_every_row_and_the_first_reason():
    table = stage.reject(table_of("a", "b", "c"), [None, ("length", 0.123456789), ("name", "x")])
    assert table["rejected_by"].to_pylist() == [None, "length", "name"]
    assert table["rejected_value"].to_pylist() == [None, "0.123457", "x"]
    table = stage.reject(table, [("late", 1), ("late", 2), None])
    assert table["rejected_by"].to_pylist() == ["late", "length", "name"]
    assert table["rejected_value"].to_pylist() == ["1", "0.123457", "x"]
    assert table["text"].to_pylist() == ["a", "b", "c"]


def test_reject_rows_passes_language_and_kind():
    def rejects(text, language, kind):
        return ("short", len(text)) if (len(text), language, kind) == (1, None, "text") else None

    table = stage.reject_rows(table_of("a", "long"), rejects)
    assert table["rejected_by"].to_pylist() == ["short", None]


def test_set_column_adds_or_replaces_a_column():
    table = stage.set_column(table_of("a"), "score", [1.5], pa.float32())
    assert table.column_names[-1] == "score"
    table = stage.set_column(table, "text", ["b"], pa.large_string())
    assert table.column_names[1] == "text" and table["text"].to_pylist() == ["b"]
