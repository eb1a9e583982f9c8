"""Similarity of a response to a choice's text: thefuzz's weighted ratio, as protocol qwen has it.

Ratios count the insertions and deletions that turn one text into the other (100: equal).
"""

import re

MAX_CHARACTERS = 2000  # of either text


def similarity(first: str, second: str) -> float:
    """Returns 0 to 100: the best of the ratios of whole texts, sorted words and shared words.

    Case and punctuation do not count. If one text is much longer, the ratio of its best part is
    taken, with a discount.
    """
    first, second = _processed(first), _processed(second)
    if not first or not second:
        return 0.0
    longer, shorter = max(len(first), len(second)), min(len(first), len(second))
    whole = ratio(first, second)
    if longer < 1.5 * shorter:
        return max(whole, max(_sorted_words(first, second), _shared_words(first, second)) * 0.95)
    scale = 0.9 if longer <= 8 * shorter else 0.6
    words = _partial_words(first, second)
    # In this order, since a tie may be decided by the last bit.
    return max(whole, _partial(first, second) * scale, words * 0.95 * scale)


def _processed(text: str) -> str:
    return re.sub(r"(?ui)\W", " ", text[:MAX_CHARACTERS]).lower().strip()


def ratio(first: str, second: str) -> float:
    """Returns 100 times twice the longest common subsequence over the total length."""
    total = len(first) + len(second)
    if not total:
        return 100.0
    return (1.0 - (total - 2 * _common(first, second)) / total) * 100


def _common(first: str, second: str) -> int:
    """The length of the longest common subsequence, a row of the table in one integer."""
    places: dict[str, int] = {}
    for place, c in enumerate(first):
        places[c] = places.get(c, 0) | 1 << place
    row = mask = (1 << len(first)) - 1
    for c in second:
        matches = row & places.get(c, 0)
        row = (row + matches | row - matches) & mask
    return len(first) - row.bit_count()


def _partial(first: str, second: str) -> float:
    """The best ratio of the shorter text with a part of the longer one."""
    if len(first) == len(second):
        return max(_best_part(first, second), _best_part(second, first))
    return _best_part(*sorted((first, second), key=len))


def _best_part(short: str, long: str) -> float:
    length, letters = len(short), set(short)
    best = 0.0
    # Only parts that begin or end with a letter of the short text can be the best.
    for end in range(1, len(long) + length):
        begin = max(0, end - length)
        stop = min(end, len(long))
        edge = long[stop - 1] if end <= len(long) else long[begin]
        if edge in letters:
            best = max(best, ratio(short, long[begin:stop]))
            if best == 100.0:
                break
    return best


def _sorted_words(first: str, second: str) -> float:
    return ratio(" ".join(sorted(first.split())), " ".join(sorted(second.split())))


def _shared_words(first: str, second: str) -> float:
    """The best ratio among the shared words alone and with each text's other words."""
    words = set(first.split()), set(second.split())
    shared = " ".join(sorted(words[0] & words[1]))
    only = [" ".join(sorted(words[0] - words[1])), " ".join(sorted(words[1] - words[0]))]
    if shared and not (only[0] and only[1]):
        return 100.0
    texts = [f"{shared} {rest}".strip() for rest in only]
    ratios = [ratio(*texts)]
    if shared:
        ratios += [ratio(shared, text) for text in texts]
    return max(ratios)


def _partial_words(first: str, second: str) -> float:
    words = set(first.split()), set(second.split())
    if words[0] & words[1]:
        return 100.0
    by_order = _partial(" ".join(sorted(first.split())), " ".join(sorted(second.split())))
    only = [" ".join(sorted(side)) for side in words]
    return max(by_order, _partial(only[0], only[1]))
