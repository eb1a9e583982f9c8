"""WARC files for tests."""

import gzip


def http_response(body, content_type="text/html", status=200, headers=""):
    head = f"HTTP/1.1 {status} OK\r\nContent-Type: {content_type}\r\n{headers}\r\n"
    return head.encode() + body


def record(url, content, kind="response", length=None):
    size = len(content) if length is None else length
    return (
        (
            f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\n"
            f"Content-Length: {size}\r\n\r\n"
        ).encode()
        + content
        + b"\r\n\r\n"
    )


def page(number, body=None):
    return record(
        f"http://a/{number}",
        http_response(
            body or f"<html><body><p>page {number} {'x' * 50}</p></body></html>".encode()
        ),
    )


def zipped(record):
    return gzip.compress(record, mtime=0)
