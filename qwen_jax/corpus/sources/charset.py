"""Decodes the bytes of a web page, whose declared charset may be missing or wrong."""

import codecs
import re

_DECLARED = re.compile(
    rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{2,40})""", re.IGNORECASE
)
_XML = re.compile(rb"""^\s*<\?xml[^>]{0,200}?encoding\s*=\s*["']([\w.:-]{2,40})""", re.IGNORECASE)
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SUPERSETS = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "iso-8859-1": "cp1252",
    "latin-1": "cp1252",
    "us-ascii": "cp1252",
    "ascii": "cp1252",
    "shift_jis": "cp932",
    "shift-jis": "cp932",
    "x-sjis": "cp932",
    "euc-kr": "cp949",
    "ks_c_5601-1987": "cp949",
    "big5": "big5hkscs",
}
# Python-only codecs that no page uses. One always raises, one takes quadratic time.
_PYTHON_ONLY = {"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape"}
_BINARY = (
    b"%PDF",
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"GIF8",
    b"PK\x03\x04",
    b"\x1f\x8b",
    b"\x7fELF",
    b"RIFF",
    b"OggS",
    b"ID3",
    b"wOF",
    b"MZ",
    b"\x00\x00\x00",
)


def is_binary(content: bytes) -> bool:
    """Returns whether the content is binary, judged by its first bytes and its NUL bytes."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return False
    head = content[:4096]
    return content.startswith(_BINARY) or head.count(0) * 50 > len(head)


def decode(content: bytes, header_charset: str | None = None) -> tuple[str, str]:
    """Decodes a page and returns (text, charset).

    Valid UTF-8 is decoded as such. Otherwise the charset declared by the server or the page is
    used, or the detected one if the bytes contradict the declaration. Undecodable bytes become
    U+FFFD.

    Args:
      header_charset: the charset in the HTTP response header.
    """
    for mark, name in _BYTE_ORDER_MARKS:
        if content.startswith(mark):
            return content.decode(name, "replace"), name.removesuffix("-sig")
    if (text := _strict(content, "utf-8")) is not None:
        return text, "utf-8"
    declared = _DECLARED.search(content[:4096]) or _XML.search(content[:1024])
    names = [
        name
        for name in (header_charset, declared and declared[1].decode("ascii", "replace"))
        if name
    ]
    names = [_SUPERSETS.get(name.lower(), name.lower()) for name in names if _is_charset(name)]
    detected = _SUPERSETS.get(guess := _guess(content), guess)
    # Any bytes are valid in a single-byte charset, so decoding without errors proves nothing.
    proven = [name for name in names if not _is_single_byte(name)]
    for name in [*proven, *([detected] if not _is_single_byte(detected) else []), *names, detected]:
        if (text := _strict(content, name)) is not None:
            return text, name
    best = min([*proven, detected], key=lambda name: _replaced(content, name).count("\ufffd"))
    text = _replaced(content, best)
    # A truncated page has one undecodable character; with the wrong charset, most are.
    if text.count("\ufffd") * 10 > sum(character > "\x7f" for character in text):
        return _replaced(content, "cp1252"), "cp1252"
    return text, best


def _guess(content: bytes) -> str:
    try:
        from resiliparse.parse.encoding import detect_encoding
    except ImportError:
        return "cp1252"
    return (detect_encoding(content[: 1 << 18]) or "cp1252").lower()


def _is_charset(name: str) -> bool:
    try:
        return codecs.lookup(name).name not in _PYTHON_ONLY
    except (LookupError, ValueError):  # a name may contain anything, including NUL
        return False


def _is_single_byte(name: str) -> bool:
    return name.startswith(("cp125", "iso-8859", "windows-125", "koi8", "mac", "latin"))


def _strict(content: bytes, name: str) -> str | None:
    try:
        return content.decode(name)
    except (UnicodeDecodeError, LookupError):
        return None


def _replaced(content: bytes, name: str) -> str:
    try:
        return content.decode(name, "replace")
    except LookupError:  # unknown charset
        return content.decode("utf-8", "replace")
