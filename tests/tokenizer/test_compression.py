"""Bytes per token by language, and their plot."""

import sys

import pytest

from qwen_jax.errors import TokenizerError
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.compression import Row, compression, format_table, plot

BYTES = {bytes([byte]): byte for byte in range(256)}
TOKENIZERS = {
    "bytes": Tokenizer(BYTES, ()),
    "chinese": Tokenizer(BYTES | {b"\xe4\xbd": 256, "\u4f60".encode(): 257}, ()),
}
TEXTS = {"zh": ["\u4f60\u4f60", "\u4f60 "], "en": ["abcd"]}


def test_compression_matches_counts_by_hand():
    assert compression(TOKENIZERS, TEXTS) == [
        Row("zh", "bytes", 10, 10, 1.0, 1.0),
        Row("zh", "chinese", 10, 4, 2.5, 2.5),
        Row("en", "bytes", 4, 4, 1.0, 1.0),
        Row("en", "chinese", 4, 4, 1.0, 1.0),
    ]
    by_chinese = compression(TOKENIZERS, TEXTS, baseline="chinese")
    assert [row.ratio for row in by_chinese] == [0.4, 1.0, 1.0, 1.0]


def test_format_table_has_a_line_for_each_language():
    assert format_table(compression(TOKENIZERS, TEXTS)).splitlines() == [
        "language        bytes      chinese",
        "zh        1.00 (1.00)  2.50 (2.50)",
        "en        1.00 (1.00)  1.00 (1.00)",
    ]


def test_plot_writes_a_png(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    plot(compression(TOKENIZERS, TEXTS), tmp_path / "figure3.png")
    data = (tmp_path / "figure3.png").read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) > 5000


def test_compression_rejects_bad_arguments_and_plot_names_its_extra(monkeypatch, tmp_path):
    with pytest.raises(TokenizerError, match="unknown tokenizer 'byte'"):
        compression(TOKENIZERS, TEXTS, baseline="byte")
    with pytest.raises(TokenizerError, match="'fr' has no text"):
        compression(TOKENIZERS, {"fr": [""]})
    with pytest.raises(TokenizerError, match="no tokenizers"):
        compression({}, TEXTS)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(TokenizerError, match=r"pip install \"qwen_jax\[report\]\""):
        plot(compression(TOKENIZERS, TEXTS), tmp_path / "none.png")
