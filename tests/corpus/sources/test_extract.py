"""Charsets, extraction of pages that hang or crash the extractor, and licenses."""

import gzip
import json
import os
import signal

import pytest

from qwen_jax.corpus.sources import charset, code_files, extract
from qwen_jax.corpus.sources.page_worker import PageWorker
from qwen_jax.errors import DataError

CHINESE = "这是一个关于水稻种植历史的页面，写于二〇二三年。" * 5
JAPANESE = "これは日本語で書かれた米の栽培の歴史についてのページです。" * 5
WESTERN = "Überraschend große Äpfel, déjà vu à la carte, señor."


@pytest.mark.parametrize(
    "text, codec, declared, header",
    [
        (CHINESE, "utf-8", "gbk", None),
        (CHINESE, "gbk", "gbk", None),
        (CHINESE, "gbk", None, None),
        (CHINESE, "gbk", "utf-8", None),
        (CHINESE, "gbk", "iso-8859-1", None),
        (CHINESE, "gbk", None, "gb2312"),
        (CHINESE, "utf-16", None, None),
        (JAPANESE, "shift_jis", None, None),
        (JAPANESE, "shift_jis", "utf-8", None),
        (JAPANESE, "euc-jp", None, "no-such-charset"),
        (WESTERN, "cp1252", "iso-8859-1", None),
        (WESTERN, "cp1252", None, "utf-8"),
        (WESTERN, "utf-8-sig", None, None),
    ],
)
def test_decode_finds_the_charset(text, codec, declared, header):
    pytest.importorskip("resiliparse")
    meta = f'<meta charset="{declared}">' if declared else ""
    page = f"<html><head>{meta}</head><body><p>{text}</p></body></html>"
    found, _ = charset.decode(page.encode(codec), header)
    assert found == page


def test_decode_replaces_only_damaged_bytes():
    found, name = charset.decode(("<meta charset=utf-8>" + CHINESE).encode()[:-1])
    assert found.startswith("<meta charset=utf-8>这是") and "\ufffd" in found


@pytest.mark.parametrize("name", ["undefined", "idna", "punycode", "a\0b", "rot13", "hex"])
def test_decode_ignores_names_that_are_not_web_charsets(name):
    assert charset.decode(b"caf\xe9 in a street", name)[0] == "café in a street"
    page = f'<meta charset="{name}">caf'.encode() + b"\xe9"
    assert charset.decode(page)[0].endswith("café")


def test_is_binary():
    assert charset.is_binary(b"%PDF-1.7") and charset.is_binary(b"<html>" + bytes(500))
    assert not charset.is_binary("text".encode("utf-16")) and not charset.is_binary(b"<p>text")
    assert not charset.is_binary(b"")


def test_page_worker_loses_only_a_page_that_hangs_or_crashes():
    pytest.importorskip("lxml")
    with PageWorker("page", 30.0) as worker:
        assert worker.extract("<p>first</p>") == ("first\n\n".strip("\n") + "\n", None)
        os.kill(worker._process.pid, signal.SIGKILL)
        assert worker.extract("<p>second</p>") == ("", "crash: signal 9")
        assert worker.extract("<p>third</p>")[0].strip() == "third"
        assert worker.extract("<div>" * 5000)[1] == "error: DataError"
        worker._seconds = 0.2
        os.kill(worker._process.pid, signal.SIGSTOP)  # as an extractor that hangs
        assert worker.extract("<p>slow</p>") == ("", "timeout")
        worker._seconds = 30.0
        assert worker.extract("<p>after</p>")[0].strip() == "after"


def test_page_worker_raises_if_the_extractor_does_not_start():
    with (
        PageWorker("no_such_function", 5.0) as worker,
        pytest.raises(DataError, match="failed to start"),
    ):
        worker.extract("<p>page</p>")


def test_license_of_finds_the_nearest_license(tmp_path):
    texts = {
        "MIT": "Permission is hereby granted, free of charge, to any person",
        "GPL": "GNU General Public License\n version 3\n ... GNU Affero General Public License",
        "BSD-3-Clause": "Redistributions of source code must retain\n Neither the name of",
        "other": "All rights reserved.",
    }
    for name, text in texts.items():
        assert code_files.license_name(text) == name
    (tmp_path / "a/src").mkdir(parents=True)
    (tmp_path / "a/LICENSE.txt").write_text(texts["MIT"])
    (tmp_path / "b").mkdir()
    assert code_files.license_of(str(tmp_path), "a/src/x.py") == "MIT"
    assert code_files.license_of(str(tmp_path), "b/y.py") is None


def test_page_keeps_lines_and_indentation():
    html = """<html><head><title>no</title></head><body><table><tr><td>&nbsp;</td>
      <td><dl><dt>wrap(text)</dt><dd><span>Wraps.<br>
      &nbsp;<br>
      &nbsp;&nbsp;&nbsp;&nbsp;&gt;&gt;&gt;&nbsp;wrap('a')</span></dd></dl></td></tr></table>
      <pre>a
  b</pre><script>no</script></body></html>"""
    assert extract.page(html) == "wrap(text)\n    Wraps.\n\n        >>> wrap('a')\n\na\n  b\n"


def test_page_accepts_empty_deep_and_unclosed_html():
    assert extract.page("") == ""
    assert "deep" in extract.page("<div>" * 2000 + "deep")  # beyond Python's recursion limit
    with pytest.raises(DataError, match="nested deeper"):
        extract.page("<div>" * 5000 + "lost")
    assert extract.page("<p>unclosed <b>bold<p>next").splitlines() == ["unclosed bold", "", "next"]


def test_article_drops_menus(shared):
    truth = json.loads((shared / "data/html/zyte/ground-truth.json").read_text())
    name, record = sorted(truth.items())[0]
    html = gzip.open(shared / f"data/html/zyte/html/{name}.html.gz", "rt", encoding="utf-8").read()
    found = set(extract.article(html).split())
    wanted = set(record["articleBody"].split())
    assert len(found & wanted) / len(wanted) > 0.8
    assert len(found & wanted) / len(found) > 0.6
