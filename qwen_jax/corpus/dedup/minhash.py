"""Computes the MinHash signatures of many texts at once. Report: 2.1.

A text is represented by the set of its shingles, which are runs of a few words. Each Chinese,
Japanese or Korean character is a word. A shingle has a 64-bit hash (low, high); its hash i is
(a_i low + high) mod 2^32 with an odd a_i. A signature holds the minimum of each hash over the
text's shingles. The fraction of equal values in two signatures estimates the Jaccard similarity of
the two shingle sets.

Everything is arithmetic on byte arrays; words never become Python objects. A word's hash is a
polynomial in its bytes mod 2^64, computed as the difference of two prefix sums.
"""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

VERSION = 1  # signatures of different versions are not comparable
_MIX = np.uint64(0x9E3779B97F4A7C15)
_WORD = bytes(chr(c).isalnum() or c >= 128 for c in range(256))  # by byte value: 1 in words
_BLANKED = bytes(c if _WORD[c] else 32 for c in range(256))
_ASCII = bytes(range(128))
_SMALL = bytes(c + 32 if 65 <= c <= 90 else c for c in range(256))
# UTF-8 sequences of general, Chinese and Japanese punctuation, and of Latin-1 symbols.
_SIGNS = re.compile(rb"\xe2[\x80\x81][\x80-\xbf]|\xe3\x80[\x80-\xbf]|\xc2[\x80-\xbf]")
_CHARACTERS = re.compile(rb"[\xe3-\xed][\x80-\xbf]{2}")  # U+3000 to U+DFFF
_BYTES, _SHINGLES = 1 << 16, 1 << 15  # block sizes that fit in a core's cache
_BASE = 0xD6E8FEB86659FD93


def words(text: str) -> bytes:
    """Returns a text's words as space-separated UTF-8: NFKC, lowercase, without punctuation."""
    folded = _folded(text.encode("utf-8", "replace"))
    raw = _CHARACTERS.sub(rb" \g<0> ", _SIGNS.sub(b" ", folded))
    return b" ".join(raw.translate(_BLANKED).translate(_SMALL).split())


def signatures(
    texts: Sequence[bytes], *, hashes: int, shingle: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the signatures of the texts that contain at least one word.

    Args:
      texts: the texts, encoded as UTF-8.
      hashes: number of values in a signature.
      shingle: number of words in a shingle; a text with fewer words is one shingle.
      seed: seed of the hash functions.

    Returns:
      (indices of these texts: int64 [n], signatures: uint32 [n, hashes]).
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    factors = rng.integers(0, 1 << 64, shingle, np.uint64) | np.uint64(1)
    multipliers = rng.integers(0, 1 << 32, hashes, np.uint32) | np.uint32(1)
    found, ends = word_hashes(texts)
    counts = np.diff(ends, prepend=0)
    rows = np.flatnonzero(counts)
    shingles = _shingles(found, ends[rows], counts[rows], factors)
    sizes = np.maximum(counts[rows] - shingle, 0) + 1
    begins = np.cumsum(sizes) - sizes
    result = np.full((len(rows), hashes), 0xFFFFFFFF, np.uint32)
    for begin in range(0, len(shingles), _SHINGLES):
        part = shingles[begin : begin + _SHINGLES]
        first, last = np.searchsorted(begins, [begin, begin + len(part)])
        starts = begins[first:last] - begin
        if first == last or starts[0]:  # a text continues from the previous block
            first, starts = first - 1, np.concatenate(([0], starts))
        low, high = part.astype(np.uint32), (part >> np.uint64(32)).astype(np.uint32)
        smallest, mixed = np.empty((hashes, len(starts)), np.uint32), np.empty_like(low)
        for number, multiplier in enumerate(multipliers):
            np.multiply(low, multiplier, out=mixed)
            np.add(mixed, high, out=mixed)
            np.minimum.reduceat(mixed, starts, out=smallest[number])
        np.minimum(result[first:last], smallest.T, out=result[first:last])
    return rows, result


def _shingles(
    found: np.ndarray, ends: np.ndarray, counts: np.ndarray, factors: np.ndarray
) -> np.ndarray:
    """Returns uint64 hashes of all texts' shingles, concatenated; every text must have words."""
    size = len(factors)
    padded = np.concatenate((found, np.zeros(size - 1, np.uint64)))
    sums = found * factors[0]
    keep = np.ones(len(found), bool)
    for i in range(1, size):
        sums += padded[i : len(found) + i] * factors[i]
        keep[(ends - i)[counts > i]] = False  # too few words left for a shingle
    for i in range(1, size):  # subtract the next texts' words from a short text's sum
        short = (ends - counts)[counts <= i]
        sums[short] -= padded[short + i] * factors[i]
    return _mixed(sums[keep])


def word_hashes(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (uint64 hashes of all words in order, int64 [texts] end of each text's words)."""
    folded = [_folded(text) for text in texts]
    ends = np.cumsum([len(raw) + 1 for raw in folded], dtype=np.int64)
    raw = b" ".join([*folded, b" "]).translate(_SMALL)
    is_word, is_boundary = _classes(raw)
    powers, inverses = _powers(_BASE), _powers(pow(_BASE, -1, 1 << 64))
    power = inverse = np.ones(1, np.uint64)  # BASE^begin and its inverse
    total = np.zeros(1, np.uint64)
    starts, start_sums, end_sums, scales = [], [], [], []
    before = np.zeros(1, bool)
    values, sums = np.empty(_BYTES, np.uint64), np.zeros(_BYTES + 1, np.uint64)
    for begin in range(0, len(raw), _BYTES):
        size = min(_BYTES, len(raw) - begin)
        inside = is_word[begin : begin + size]
        earlier = np.concatenate((before, inside[:-1]))
        new = inside != earlier
        if is_boundary is not None:
            new |= is_boundary[begin : begin + size]
        np.multiply(np.frombuffer(raw, np.uint8, size, begin), powers[:size], out=values[:size])
        np.cumsum(values[:size], out=sums[1 : size + 1])
        start, end = np.flatnonzero(new & inside), np.flatnonzero(new & earlier)
        starts.append(start + begin)
        start_sums.append(sums[start] * power + total)
        end_sums.append(sums[end] * power + total)
        scales.append(inverses[start] * inverse)
        total = total + sums[size : size + 1] * power
        power, inverse = power * powers[-1:], inverse * inverses[-1:]
        before = inside[-1:]
    hashes = np.concatenate(end_sums)
    hashes -= np.concatenate(start_sums)
    hashes *= np.concatenate(scales)
    return _mixed(hashes), np.searchsorted(np.concatenate(starts), ends)


def _classes(raw: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the mask of word bytes and that of boundaries within words or None; bool [bytes]."""
    is_word = np.frombuffer(bytearray(raw.translate(_WORD)), bool)
    values = np.frombuffer(raw, np.uint8)
    leads = np.flatnonzero(values >= 0xC2)  # first bytes of non-ASCII characters
    if not len(leads):
        return is_word, None
    first, second = values[leads], values[leads + 1]
    three = leads[(first == 0xE2) & (second <= 0x81) | (first == 0xE3) & (second == 0x80)]
    two = leads[first == 0xC2]
    for at in (three, three + 1, three + 2, two, two + 1):
        is_word[at] = False
    single = leads[(first >= 0xE3) & (first <= 0xED)]  # characters that are one word each
    single = single[is_word[single]]
    is_boundary = np.zeros(len(raw), bool)
    is_boundary[single] = is_boundary[single + 3] = True  # raw ends with a space
    return is_word, is_boundary


def _folded(raw: bytes) -> bytes:
    """Returns the text in NFKC and lowercase, as UTF-8; ASCII text is returned unchanged."""
    if raw.isascii():
        return raw
    beyond = raw.translate(None, _ASCII)
    if 3 * beyond.count(b"\xe2\x80") == len(beyond):  # only dashes and quotes
        return raw
    return unicodedata.normalize("NFKC", raw.decode()).lower().encode()


def _powers(base: int) -> np.ndarray:
    """Returns base^0 to base^_BYTES mod 2^64; uint64 [_BYTES + 1]."""
    powers = np.full(_BYTES + 1, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Mixes uint64 values in place: a bijection whose output bits depend on all input bits."""
    for _ in range(2):
        values ^= values >> np.uint64(32)
        values *= _MIX
    values ^= values >> np.uint64(32)
    return values
