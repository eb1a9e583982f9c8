"""One document, as readers give it to the shard writer."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Document:
    name: str  # where it is from: file, or file and row
    text: str
    group: str | None = None  # documents of a group are never split between training and held out
