"""WARC archives: every record is read, except damaged ones, which are reported."""

import gzip
import io
import zlib

import pytest

from qwen_jax.corpus.sources import warc
from tests.helpers.warc_files import http_response, page, record, zipped


def read(data, compressed=True, **settings):
    return list(warc.records(io.BytesIO(data), compressed=compressed, **settings))


def seen(data, compressed=True, **settings):
    return [
        found.problem or found.headers["warc-target-uri"][-1]
        for found in read(data, compressed, **settings)
    ]


def both(pages):
    return [(b"".join(map(zipped, pages)), True), (b"".join(pages), False)]


@pytest.mark.parametrize("compressed", [True, False])
def test_records_yields_every_record_from_any_byte(compressed):
    pages = [page(i) for i in range(5)]
    data = b"".join(map(zipped, pages)) if compressed else b"".join(pages)
    assert seen(data, compressed) == list("01234")
    assert read(data, compressed)[1].content.endswith(b"</html>")
    for edge in range(0, len(data) + 1, 7):  # each record once, wherever the file is split
        assert seen(data, compressed, end=edge) + seen(data, compressed, begin=edge) == list(
            "01234"
        )


def test_records_reads_members_of_several_records():
    data = gzip.compress(page(0) + page(1)) + gzip.compress(page(2))
    assert seen(data) == list("012")
    assert [found.offset for found in read(data)][:2] == [0, 0]


def test_records_skips_only_a_corrupt_member():
    members = [zipped(page(i)) for i in range(4)]
    broken = bytearray(members[1])
    broken[len(broken) // 2] ^= 0xFF
    assert seen(members[0] + bytes(broken) + members[2] + members[3]) == ["0", "corrupt", "2", "3"]
    checksum = bytearray(members[1])
    checksum[-6] ^= 1  # the gzip member's checksum
    assert seen(members[0] + bytes(checksum) + members[2]) == ["0", "corrupt", "2"]


def test_records_reports_truncated_records():
    members = [zipped(page(i)) for i in range(3)]
    assert seen(b"".join(members)[:-40]) == ["0", "1", "truncated"]
    # Truncated in the middle of the file, as in concatenated partial downloads.
    assert seen(members[0] + members[1][:60] + members[2]) == ["0", "corrupt", "2"]
    pages = [page(i) for i in range(3)]
    assert seen(b"".join(pages)[:-60], compressed=False) == ["0", "1", "truncated"]
    assert seen(pages[0] + pages[1][:120] + b"\r\n" + pages[2], False) == ["0", "corrupt", "2"]


def test_records_skips_only_a_record_of_wrong_length():
    wrong = record("http://a/1", http_response(b"<p>one</p>"), length=12)
    assert seen(page(0) + wrong + page(2), False) == ["0", "corrupt", "2"]
    assert seen(
        page(0) + page(1).replace(b"Content-Length: ", b"Content-Length: x") + page(2), False
    ) == ["0", "corrupt", "2"]


def test_records_skips_large_records():
    large = record("http://a/1", http_response(b"x" * (3 << 20)))
    for data, compressed in both([page(0), large, page(2)]):
        assert seen(data, compressed, limit=1 << 20) == ["0", "too_large", "2"]


def test_records_skips_a_decompression_bomb(monkeypatch):
    monkeypatch.setattr(warc, "_MAX_SKIPPED", 4 << 20)
    bomb = record("http://a/1", b"\0" * (32 << 20))
    data = zipped(page(0)) + zipped(bomb) + zipped(page(2))
    assert len(data) < 1 << 17 and seen(data, limit=1 << 20) == ["0", "too_large", "2"]


def test_records_reports_files_that_are_not_archives():
    assert seen(b"<html>no archive</html>" * 100, False) == ["corrupt"]
    assert seen(b"no gzip" * 100) == ["corrupt"]
    assert seen(b"no gzip" * 100 + zipped(page(1))) == ["corrupt", "1"]
    assert seen(b"", False) == []


def test_http_body_decodes_transfer_and_content_encodings():
    def body(data, **settings):
        return warc.http_body(http_response(data, **settings), 1000)[2:]

    assert body(b"plain") == (b"plain", None)
    assert body(
        b"4\r\nabcd\r\n3;x=1\r\nefg\r\n0\r\n\r\n", headers="Transfer-Encoding: chunked\r\n"
    ) == (b"abcdefg", None)
    assert body(b"<p>undone</p>", headers="Transfer-Encoding: chunked\r\n") == (
        b"<p>undone</p>",
        None,
    )
    coded = "Content-Encoding: gzip\r\n"
    assert body(gzip.compress(b"text"), headers=coded) == (b"text", None)
    assert body(zlib.compress(b"text"), headers="Content-Encoding: deflate\r\n") == (b"text", None)
    assert body(b"<p>undone</p>", headers=coded) == (b"<p>undone</p>", None)
    two = gzip.compress(b"first ") + gzip.compress(b"second")  # several members, as RFC 1952 allows
    assert body(two, headers=coded) == (b"first second", None)
    assert body(two + b"\0\0\r\n", headers=coded) == (b"first second", None)  # padding
    assert body(two[:-9], headers=coded) == (b"", "truncated")
    assert body(two + b"junk", headers=coded)[1] == "trailing"
    assert body(gzip.compress(b"0" * 600) * 2, headers=coded) == (b"", "too_large")
    assert body(gzip.compress(b"0" * 5000), headers=coded) == (b"", "too_large")
    assert body(gzip.compress(b"text")[:-9], headers=coded) == (b"", "truncated")
    coded = "Content-Encoding: br\r\n"
    assert body(b"\x8b\x02\x80abc", headers=coded) == (b"", "coding")
    assert body(b"<p>undone</p>", headers=coded) == (b"<p>undone</p>", None)
    assert warc.http_body(b"nothing", 10)[3] == "not_http"
