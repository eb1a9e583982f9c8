"""What HumanEvalPack's programs import that is not part of their languages.

`packages/LANGUAGE` has files of ours that stand in for these libraries, with as much of them as the
problems use: crates for Rust, testify for Go, js-md5 for JavaScript, Boost.Any for C++.
"""

import functools
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable

_ROOT = resources.files("qwen_jax.evaluate.tasks.code").joinpath("packages")


@functools.cache
def files(language: str) -> dict[str, str]:
    """Returns relative path -> text of the files that a language's programs need next to them."""
    folder = _ROOT.joinpath(language)
    return dict(_below(folder, "")) if folder.is_dir() else {}


def _below(folder: Traversable, prefix: str) -> Iterator[tuple[str, str]]:
    for entry in sorted(folder.iterdir(), key=lambda one: one.name):
        if entry.is_dir():
            yield from _below(entry, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, entry.read_text(encoding="utf-8")
