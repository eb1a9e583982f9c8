"""Merges of byte-level BPE, as the files of `tokenizers` list them.

tiktoken merges adjacent parts whose concatenation is a token, lowest rank first. `tokenizers`
merges the pairs of a list. Both give the same ids if the list has, in the order of the ids, the
pair to which the merges of lower ranks bring each token.
"""

from collections.abc import Iterable, Iterator, Mapping

from qwen_jax.errors import TokenizerError

Pair = tuple[bytes, bytes]


def recover_merges(ranks: Mapping[bytes, int]) -> Iterator[Pair]:
    """Yields the pair of lower-ranked tokens that merges into each token, in rank order.

    Raises:
      TokenizerError: lower ranks do not merge a token's bytes into exactly two parts.
    """
    orphans, parts = [], {}
    for token in sorted(ranks, key=ranks.__getitem__):
        if len(token) == 1:
            continue
        splits = ((token[:size], token[size:]) for size in range(1, len(token)))
        pair = _reachable(ranks[token], splits, ranks, parts)
        if pair is None:
            orphans.append(token)
        else:
            parts[token] = pair
            yield pair
    if orphans:
        raise TokenizerError(
            f"tokens that merges of lower ranks cannot produce: {len(orphans)}; the first is "
            f"{orphans[0]!r}.",
            "tokenizer.mergeable_ranks",
            "export a vocabulary that was trained or extended with BPE.",
        )


def check_merges(ranks: Mapping[bytes, int], merges: Iterable[Pair], where: str) -> None:
    """Checks that tiktoken, which only knows ranks, gives the ids of a list of merges.

    Raises:
      TokenizerError: the merges are not in the order of their ids, or are not of tokens, or none
        produces a token.
    """
    fix = "use a byte-level BPE whose ids follow its merges, as those of GPT-2, cl100k and Qwen."
    listed: dict[bytes, list[Pair]] = {}
    last = -1
    for left, right in merges:
        rank = ranks.get(left + right, -1)
        if rank < last or left not in ranks or right not in ranks:
            what = "comes after one of a higher id" if rank >= 0 else "is not of known tokens"
            raise TokenizerError(f"the merge of {left!r} and {right!r} {what}.", where, fix)
        listed.setdefault(left + right, []).append((left, right))
        last = rank
    parts: dict[bytes, Pair] = {}
    for token in sorted(ranks, key=ranks.__getitem__):
        if len(token) == 1:
            continue
        pair = _reachable(ranks[token], listed.get(token, ()), ranks, parts)
        if pair is None:
            raise TokenizerError(
                f"no merge that text can reach produces the token {token!r} of id {ranks[token]}.",
                where,
                "list it in added_tokens if it is one, or remove it.",
            )
        parts[token] = pair


def _reachable(
    rank: int, pairs: Iterable[Pair], ranks: Mapping[bytes, int], parts: Mapping[bytes, Pair]
) -> Pair | None:
    """Returns the pair to which merges below `rank` bring its bytes; None: it is not of `pairs`.

    Args:
      parts: the pairs of all tokens of lower rank.
    """
    for left, right in pairs:
        known = (len(left) == 1 or left in parts) and (len(right) == 1 or right in parts)
        if known and _stay_apart(left, right, rank, ranks, parts):
            return left, right
    return None


def _stay_apart(
    left: bytes,
    right: bytes,
    limit: int,
    ranks: Mapping[bytes, int],
    parts: Mapping[bytes, Pair],
) -> bool:
    """Returns whether no merge below `limit` crosses the boundary while both tokens are made.

    Takes back the merges at the boundary, the last one first. Of two with one rank, the left one
    goes first.
    """
    while ranks.get(left + right, limit) >= limit:
        last_left = ranks[left] if len(left) > 1 else -1
        last_right = ranks[right] if len(right) > 1 else -1
        if last_left > last_right:
            limit, left = last_left, parts[left][1]
        elif last_right >= 0:
            limit, right = last_right + 1, parts[right][0]
        else:
            return True
    return False


def _byte_chars() -> dict[int, str]:
    """Returns byte -> the character that represents it in byte-level BPE files.

    Printable Latin-1 bytes represent themselves; the others map to U+0100 and up, in order.
    """
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printing)]
    return {byte: chr(byte) for byte in printing} | {
        byte: chr(0x100 + index) for index, byte in enumerate(others)
    }


BYTE_CHARS = _byte_chars()


def printable(token: bytes) -> str:
    return "".join(BYTE_CHARS[byte] for byte in token)
