"""Files of JSON rows: what to call them."""

import pytest

from qwen_jax.errors import DataError
from qwen_jax.utils.jsonl import names_of, read_rows, write_rows


def test_files_have_names_that_tell_them_apart():
    assert names_of(["a/x.jsonl.gz", "b/y.json"]) == ["x", "y"]
    assert names_of(["r/sums/pairs.jsonl", "r/docs/pairs.jsonl"]) == ["sums/pairs", "docs/pairs"]
    assert names_of([]) == []
    with pytest.raises(DataError, match="named twice"):
        names_of(["a/x.json", "a/x.json"])


def test_rows_are_written_whole_or_not_at_all(tmp_path):
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
