"""The document type that readers pass to the shard writer."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Document:
    name: str  # origin: a file, or a file and a row in it
    text: str
    group: str | None = None  # a group is never split between train and eval
