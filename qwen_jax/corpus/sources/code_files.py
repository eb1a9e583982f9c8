"""Source code: the language of a file by its name, the license of a repository by its text."""

import functools
import pathlib
import re

LANGUAGES = {
    ".py": "python",
    ".pyi": "python",
    ".ipynb": "jupyter",
    ".c": "c",
    ".h": "c",
    ".cc": "cpp",
    ".cpp": "cpp",
    ".hpp": "cpp",
    ".cu": "cuda",
    ".java": "java",
    ".js": "javascript",
    ".ts": "typescript",
    ".go": "go",
    ".rs": "rust",
    ".rb": "ruby",
    ".sh": "shell",
    ".sql": "sql",
    ".php": "php",
    ".cs": "csharp",
    ".scala": "scala",
    ".kt": "kotlin",
    ".swift": "swift",
    ".lua": "lua",
    ".r": "r",
    ".jl": "julia",
    ".pl": "perl",
    ".hs": "haskell",
    ".css": "css",
    ".proto": "protobuf",
}
_FILES = re.compile(r"(licen[cs]e|copying|unlicense)([.\-_].*)?", re.IGNORECASE)
_PHRASES = {
    "AGPL-3.0": "gnu affero general public license",
    "LGPL": "gnu lesser general public license",
    "GPL": "gnu general public license",
    "MPL-2.0": "mozilla public license",
    "Apache-2.0": "apache license",
    "EPL": "eclipse public license",
    "CC0-1.0": "cc0 1.0 universal",
    "CC-BY-SA": "attribution-sharealike",
    "CC-BY": "attribution 4.0 international",
    "Unlicense": "released into the public domain",
    "BSD-2-Clause": "redistributions of source code must retain",
    "ISC": "permission to use, copy, modify, and/or distribute",
    "MIT": "permission is hereby granted, free of charge",
    "Python-2.0": "psf license",
    "Zlib": "origin of this software must not be misrepresented",
}


def license_of(root: str, name: str) -> str | None:
    """The license of a file: of the nearest license text in its folder or above, up to the source.

    Args:
      root: the source's folder.
      name: the file's path in it.
    """
    folder = pathlib.Path(root, name).parent
    top = pathlib.Path(root)
    while True:
        found = _license_in(str(folder))
        if found or folder == top or top not in folder.parents:
            return found
        folder = folder.parent


@functools.lru_cache(maxsize=1 << 14)
def _license_in(folder: str) -> str | None:
    try:
        files = sorted(
            path
            for path in pathlib.Path(folder).iterdir()
            if _FILES.fullmatch(path.name) and path.is_file()
        )
    except OSError:
        return None
    return license_name(files[0].read_text("utf-8", "replace")) if files else None


def license_name(text: str) -> str:
    """The short name (SPDX where it is sure) of a license's text; "other" where it is not known."""
    words = " ".join(text.lower().split())
    # The first to be named: long licenses speak of others further down.
    positions = {words.find(phrase): name for name, phrase in _PHRASES.items() if phrase in words}
    name = positions[min(positions)] if positions else "other"
    return "BSD-3-Clause" if name == "BSD-2-Clause" and "neither the name" in words else name
