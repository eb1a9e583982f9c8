"""Files of JSON rows: what to call them."""

import pytest

from qwen_jax.data.json_rows import names_of
from qwen_jax.errors import DataError


def test_files_have_names_that_tell_them_apart():
    assert names_of(["a/x.jsonl.gz", "b/y.json"]) == ["x", "y"]
    assert names_of(["r/sums/pairs.jsonl", "r/docs/pairs.jsonl"]) == ["sums/pairs", "docs/pairs"]
    assert names_of([]) == []
    with pytest.raises(DataError, match="named twice"):
        names_of(["a/x.json", "a/x.json"])
