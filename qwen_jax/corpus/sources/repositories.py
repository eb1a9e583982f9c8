"""Groups the files of a repository, so that they are packed in their order. Report: 4.1.

A group is on one side of the held-out split, and with Split.together its documents follow each
other in the shards in the order in which they were read: by file name.
"""

from __future__ import annotations

import dataclasses
import json
from typing import ClassVar

from qwen_jax.corpus.arrow import pa

# Names of the repository in The Stack, The Stack v2, StarCoder's data and GitHub Code.
_FIELDS = ("repo_name", "repository_name", "max_stars_repo_name", "repo")


@dataclasses.dataclass(frozen=True)
class RepositoryStage:
    """Sets the group of each source file to its repository, unless the data have a group.

    The repository is named by a row (repo_name, repository_name, max_stars_repo_name or repo), or
    else is the first folder under the source.
    """

    name: ClassVar[str] = "repositories"
    counted: ClassVar[tuple[str, ...]] = ()

    def __call__(self, table: pa.Table) -> pa.Table:
        columns = [
            table[name].to_pylist() for name in ("kind", "source", "path", "metadata", "group")
        ]
        groups = [
            repository(source, path, metadata) if kind == "code" and group is None else group
            for kind, source, path, metadata, group in zip(*columns, strict=True)
        ]
        index = table.schema.get_field_index("group")
        return table.set_column(index, "group", pa.array(groups, pa.string()))


def repository(source: str, path: str, metadata: str | None) -> str | None:
    """Returns SOURCE/REPOSITORY of a file; None if it is in no folder and its row names none.

    Args:
      path: path of the file within the source, and position in it: `a/b.py` or `a/b.jsonl@17`.
      metadata: other fields of its row, a JSON object.
    """
    fields = json.loads(metadata) if metadata else {}
    for field in _FIELDS:
        if isinstance(name := fields.get(field), str) and name:
            return f"{source}/{name}"
    folder, slash, _ = path.partition("/")
    return f"{source}/{folder}" if slash else None
