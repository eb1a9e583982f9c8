"""Append-only files: an incomplete last line is truncated."""

import pytest

from qwen_jax.errors import ConfigError, DataError
from qwen_jax.utils.append_only import PATHS, AppendOnly, read_complete_lines


def test_complete_lines_truncates_an_incomplete_one(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"a": "日"}\n{"a": 2}\n{"a": 3'.encode())
    with open(path, "a+b") as file:
        assert list(read_complete_lines(file, path)) == [(0, 13, {"a": "日"}), (13, 9, {"a": 2})]
    assert path.read_bytes() == '{"a": "日"}\n{"a": 2}\n'.encode()


def test_append_only_names_a_damaged_line(tmp_path):
    path = tmp_path / "a.jsonl"
    with AppendOnly(path, {"seed": 1}) as file:
        file.add({"a": 1})
    path.write_bytes(path.read_bytes() + b"{\n")
    with pytest.raises(DataError, match="(?s)not valid JSON.*a.jsonl line 2"):
        AppendOnly(path, {"seed": 1})


def test_append_only_names_each_setting_that_differs(tmp_path):
    path = tmp_path / "a.jsonl"
    AppendOnly(path, {"stage": {"rules": True, "workers": {"count": 2}}, "seed": 1}).close()
    with pytest.raises(ConfigError) as error:
        AppendOnly(path, {"stage": {"rules": True, "workers": {"count": 3}}, "seed": 1})
    assert "settings: stage.workers.count: was 2, now 3." in error.value.what


HASHES = "0123456789abcdef", "f" * 16


@pytest.mark.parametrize(
    "was, now, shown",
    [
        ("runs/a", "runs/b", "model: was runs/a, now runs/b."),
        ("runs/a", "runs/a", "model: runs/a has other contents than recorded."),
        (None, "runs/b", "model: runs/b has other contents than recorded."),  # earlier versions
        (None, None, "model: other contents (hash was 01234567, now ffffffff)."),
    ],
)
def test_append_only_shows_a_path_instead_of_a_hash(tmp_path, was, now, shown):
    def record(digest, name):
        return {"model": digest, "seed": 1} | ({PATHS: {"model": name}} if name else {})

    AppendOnly(tmp_path / "a.jsonl", record(HASHES[0], was)).close()
    with pytest.raises(ConfigError) as error:
        AppendOnly(tmp_path / "a.jsonl", record(HASHES[1], now))
    assert f"different settings: {shown}" in error.value.what


def test_append_only_does_not_compare_paths(tmp_path):
    for name in ("runs/a", "moved/a"):
        AppendOnly(tmp_path / "a.jsonl", {"model": HASHES[0], PATHS: {"model": name}}).close()
