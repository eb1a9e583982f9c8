"""Which documents are held out, and in which order the others are: a function of text and seed."""

import dataclasses
import hashlib
from collections.abc import Iterable

from qwen_jax.data.document import Document


@dataclasses.dataclass(frozen=True)
class Split:
    """Assigns documents to shards by the hash of their text or group.

    Attributes:
      moved: hashes of the groups that are on the other side than the fraction says; see `balanced`.
      together: whether the documents of a group follow each other, in the order in which they are
        read. Otherwise they are shuffled as all others.
    """

    eval_fraction: float = 0.0
    seed: int = 0
    num_shards: int = 1  # train shards
    moved: frozenset[bytes] = frozenset()
    together: bool = False

    def files(self) -> list[tuple[str, int]]:
        """Returns (side, shard number) of every file; the eval file, if any, is last."""
        train = [("train", number) for number in range(self.num_shards)]
        return train + [("eval", 0)] * (self.eval_fraction > 0)

    def assign(self, document: Document, copy: int = 0) -> tuple[int, bytes]:
        """Returns the index into `files` and the sort key of a document.

        Documents with equal keys keep the order in which they are read.
        """
        key = _hash(document.text, self.seed)
        group = key if document.group is None else _hash(document.group, self.seed)
        if self.together:
            key = group
        if copy:
            key = _hash(f"{copy} {key.hex()}", self.seed)
        if self._is_held_out(group):
            return self.num_shards, key[16:] + key[:16]
        return int.from_bytes(key[8:16], "little") % self.num_shards, key[16:] + key[:16]

    def _is_held_out(self, group: bytes) -> bool:
        return (_fraction(group) < self.eval_fraction) != (group in self.moved)

    def balanced(self, documents: Iterable[Document]) -> "Split":
        """Returns the split with a group moved, if these documents would all be on one side.

        Of several groups, one is then held out, or trained on. A single group is trained on.
        `documents` is read until both sides have a document.
        """
        if not self.eval_fraction:
            return self
        groups: set[bytes] = set()
        sides: set[bool] = set()
        for document in documents:
            text = document.text if document.group is None else document.group
            groups.add(group := _hash(text, self.seed))
            sides.add(self._is_held_out(group))
            if len(sides) == 2:
                return self
        if not sides or (sides == {False} and len(groups) == 1):
            return self
        choose = max if sides == {True} else min  # the group closest to the fraction
        return dataclasses.replace(self, moved=self.moved ^ {choose(groups, key=_fraction)})


def _fraction(group: bytes) -> float:
    return int.from_bytes(group[:8], "little") / 2**64


def _hash(text: str, seed: int) -> bytes:
    return hashlib.blake2b(
        text.encode("utf-8", "replace"), digest_size=24, key=seed.to_bytes(8, "little")
    ).digest()
