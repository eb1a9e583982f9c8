"""MinHash signatures of many texts at once. Report: 2.1.

A text is the set of its shingles, runs of a few words, a Chinese, Japanese or Korean character
being a word. Of each shingle's 64-bit hash (low, high), hash i is (a_i low + high) mod 2^32 with an
odd a_i; a text's signature has the least of each. Two texts agree in a share of their signatures
that estimates the Jaccard similarity of their shingles.

All of it is arithmetic on arrays of bytes: no word is ever an object. The hash of a word is that of
its bytes as a polynomial mod 2^64, so it is the difference of two running sums.
"""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

VERSION = 1  # signatures of different ones do not agree
_MIX = np.uint64(0x9E3779B97F4A7C15)
_WORD = bytes(chr(c).isalnum() or c >= 128 for c in range(256))  # as a table of bytes: 0 or 1
_BLANKED = bytes(c if _WORD[c] else 32 for c in range(256))
_ASCII = bytes(range(128))
_SMALL = bytes(c + 32 if 65 <= c <= 90 else c for c in range(256))
# In UTF-8: general punctuation, that of Chinese and Japanese, and the signs of Latin-1.
_SIGNS = re.compile(rb"\xe2[\x80\x81][\x80-\xbf]|\xe3\x80[\x80-\xbf]|\xc2[\x80-\xbf]")
_CHARACTERS = re.compile(rb"[\xe3-\xed][\x80-\xbf]{2}")  # U+3000 to U+DFFF
_BYTES, _SHINGLES = 1 << 16, 1 << 15  # at once: what fits into a core's cache
_BASE = 0xD6E8FEB86659FD93


def words(text: str) -> bytes:
    """The words of a text in UTF-8, a space between them: NFKC, small letters, no punctuation."""
    folded = _folded(text.encode("utf-8", "replace"))
    raw = _CHARACTERS.sub(rb" \g<0> ", _SIGNS.sub(b" ", folded))
    return b" ".join(raw.translate(_BLANKED).translate(_SMALL).split())


def signatures(
    texts: Sequence[bytes], *, hashes: int, shingle: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Signatures of the texts that have words.

    Args:
      texts: in UTF-8.
      shingle: words in one; a text of fewer is one shingle.

    Returns:
      (which of the texts: int64 [n], signatures: uint32 [n, hashes]).
    """
    draw = np.random.Generator(np.random.PCG64(seed))
    of_place = draw.integers(0, 1 << 64, shingle, np.uint64) | np.uint64(1)
    multipliers = draw.integers(0, 1 << 32, hashes, np.uint32) | np.uint32(1)
    found, ends = word_hashes(texts)
    counts = np.diff(ends, prepend=0)
    rows = np.flatnonzero(counts)
    shingles = _shingles(found, ends[rows], counts[rows], of_place)
    sizes = np.maximum(counts[rows] - shingle, 0) + 1
    begins = np.cumsum(sizes) - sizes
    made = np.full((len(rows), hashes), 0xFFFFFFFF, np.uint32)
    for begin in range(0, len(shingles), _SHINGLES):
        part = shingles[begin : begin + _SHINGLES]
        first, last = np.searchsorted(begins, [begin, begin + len(part)])
        cuts = begins[first:last] - begin
        if first == last or cuts[0]:  # a text goes on from the block before
            first, cuts = first - 1, np.concatenate(([0], cuts))
        low, high = part.astype(np.uint32), (part >> np.uint64(32)).astype(np.uint32)
        least, mixed = np.empty((hashes, len(cuts)), np.uint32), np.empty_like(low)
        for number, multiplier in enumerate(multipliers):
            np.multiply(low, multiplier, out=mixed)
            np.add(mixed, high, out=mixed)
            np.minimum.reduceat(mixed, cuts, out=least[number])
        np.minimum(made[first:last], least.T, out=made[first:last])
    return rows, made


def _shingles(
    found: np.ndarray, ends: np.ndarray, counts: np.ndarray, of_place: np.ndarray
) -> np.ndarray:
    """uint64 hashes of the shingles of texts that have words, one after the other."""
    size = len(of_place)
    padded = np.concatenate((found, np.zeros(size - 1, np.uint64)))
    sums = found * of_place[0]
    keep = np.ones(len(found), bool)
    for i in range(1, size):
        sums += padded[i : len(found) + i] * of_place[i]
        keep[(ends - i)[counts > i]] = False  # too few words are left for another shingle
    for i in range(1, size):  # what a text of fewer words took from its neighbors
        short = (ends - counts)[counts <= i]
        sums[short] -= padded[short + i] * of_place[i]
    return _mixed(sums[keep])


def word_hashes(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """(uint64 hashes of all words in order, int64 [texts] where those of each text end)."""
    folded = [_folded(text) for text in texts]
    ends = np.cumsum([len(raw) + 1 for raw in folded], dtype=np.int64)
    raw = b" ".join([*folded, b" "]).translate(_SMALL)
    is_word, is_alone = _classes(raw)
    powers, inverses = _powers(_BASE), _powers(pow(_BASE, -1, 1 << 64))
    power = inverse = np.ones(1, np.uint64)  # BASE^begin and its inverse
    total = np.zeros(1, np.uint64)
    starts, begun, ended, scales = [], [], [], []
    before = np.zeros(1, bool)
    values, sums = np.empty(_BYTES, np.uint64), np.zeros(_BYTES + 1, np.uint64)
    for begin in range(0, len(raw), _BYTES):
        size = min(_BYTES, len(raw) - begin)
        inside = is_word[begin : begin + size]
        earlier = np.concatenate((before, inside[:-1]))
        new = inside != earlier
        if is_alone is not None:
            new |= is_alone[begin : begin + size]
        np.multiply(np.frombuffer(raw, np.uint8, size, begin), powers[:size], out=values[:size])
        np.cumsum(values[:size], out=sums[1 : size + 1])
        start, end = np.flatnonzero(new & inside), np.flatnonzero(new & earlier)
        starts.append(start + begin)
        begun.append(sums[start] * power + total)
        ended.append(sums[end] * power + total)
        scales.append(inverses[start] * inverse)
        total = total + sums[size : size + 1] * power
        power, inverse = power * powers[-1:], inverse * inverses[-1:]
        before = inside[-1:]
    hashes = np.concatenate(ended)
    hashes -= np.concatenate(begun)
    hashes *= np.concatenate(scales)
    return _mixed(hashes), np.searchsorted(np.concatenate(starts), ends)


def _classes(raw: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """(bool [bytes]: part of a word; bool [bytes]: where a new word begins even so, or None)."""
    is_word = np.frombuffer(bytearray(raw.translate(_WORD)), bool)
    values = np.frombuffer(raw, np.uint8)
    places = np.flatnonzero(values >= 0xC2)  # first bytes of characters beyond ASCII
    if not len(places):
        return is_word, None
    first, second = values[places], values[places + 1]
    three = places[(first == 0xE2) & (second <= 0x81) | (first == 0xE3) & (second == 0x80)]
    two = places[first == 0xC2]
    for at in (three, three + 1, three + 2, two, two + 1):
        is_word[at] = False
    alone = places[(first >= 0xE3) & (first <= 0xED)]
    alone = alone[is_word[alone]]
    is_alone = np.zeros(len(raw), bool)
    is_alone[alone] = is_alone[alone + 3] = True  # raw ends with a space
    return is_word, is_alone


def _folded(raw: bytes) -> bytes:
    """NFKC in small letters, those of ASCII excepted; of and in UTF-8."""
    if raw.isascii():
        return raw
    beyond = raw.translate(None, _ASCII)
    if 3 * beyond.count(b"\xe2\x80") == len(beyond):  # nothing but dashes and quotation marks
        return raw
    return unicodedata.normalize("NFKC", raw.decode()).lower().encode()


def _powers(base: int) -> np.ndarray:
    """base^0 to base^_BYTES mod 2^64."""
    powers = np.full(_BYTES + 1, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Of uint64, in their place: a bijection after which every bit depends on every bit."""
    for _ in range(2):
        values ^= values >> np.uint64(32)
        values *= _MIX
    values ^= values >> np.uint64(32)
    return values
