"""Documents from real formats; bad files stop the reading with their place."""

import gzip
import json

import pytest

from qwen_jax.corpus.sources import documents, extract
from qwen_jax.errors import DataError


def texts(path, **settings):
    return [document.text for document in documents.documents(str(path), **settings)]


def test_reads_every_format_in_the_order_of_names(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "a.txt").write_text("ä text", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "three"}\n'))
    parquet.write_table(
        pyarrow.table({"text": ["four", "five"], "n": [1, 2]}), tmp_path / "d.parquet"
    )
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "f.py").write_text("pass\n")
    (tmp_path / ".hidden").write_text("not read")
    assert texts(tmp_path) == ["ä text", "one", "two", "three", "four", "five", "pass\n"]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.txt", b"caf\xe9", "not UTF-8: byte 0xe9 at 3"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "line 2"),
        ("a.jsonl", b'{"body": "x"}\n', "it has body"),
        ("a.jsonl", b'{"text": null}\n', "no text"),
        ("a.jsonl", b'{"text": "\xff"}\n', "line 1"),
        # Without a time of its own in the header: workers must collect the same tests.
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 1000, mtime=0)[:40], "line"),
        ("a.parquet", b"PAR1 but not really", "not a Parquet file"),
        ("a.png", b"\x89PNG", "kinds that are not read"),
    ],
)
def test_bad_files_stop_the_reading(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        texts(tmp_path)
    assert name in str(caught.value)


def test_missing_and_empty_sources(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        texts(tmp_path / "nothing")
    with pytest.raises(DataError, match="empty folder"):
        texts(tmp_path)


def test_page_keeps_lines_and_indentation():
    html = """<html><head><title>no</title></head><body><table><tr><td>&nbsp;</td>
      <td><dl><dt>wrap(text)</dt><dd><span>Wraps.<br>
      &nbsp;<br>
      &nbsp;&nbsp;&nbsp;&nbsp;&gt;&gt;&gt;&nbsp;wrap('a')</span></dd></dl></td></tr></table>
      <pre>a
  b</pre><script>no</script></body></html>"""
    assert extract.page(html) == "wrap(text)\n    Wraps.\n\n        >>> wrap('a')\n\na\n  b\n"


def test_page_survives_what_web_pages_do():
    assert extract.page("") == ""
    assert "deep" in extract.page("<div>" * 2000 + "deep")  # beyond Python's recursion limit
    with pytest.raises(DataError, match="nested deeper"):
        extract.page("<div>" * 5000 + "lost")
    assert extract.page("<p>unclosed <b>bold<p>next").splitlines() == ["unclosed bold", "", "next"]


def test_article_leaves_menus_out(shared):
    truth = json.loads((shared / "data/html/zyte/ground-truth.json").read_text())
    name, record = sorted(truth.items())[0]
    html = gzip.open(shared / f"data/html/zyte/html/{name}.html.gz", "rt", encoding="utf-8").read()
    found = set(extract.article(html).split())
    wanted = set(record["articleBody"].split())
    assert len(found & wanted) / len(wanted) > 0.8
    assert len(found & wanted) / len(found) > 0.6
