"""Detects the language of a source file from its name, and its license from license files."""

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
    """Returns the license of a file, or None.

    Uses the nearest license file, searching from the file's folder up to the source's folder.

    Args:
      root: the source's folder.
      name: the file's path within it.
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
    """Returns the short name of a license: its SPDX ID if unambiguous, "other" if unknown."""
    words = " ".join(text.lower().split())
    # The first phrase decides: long licenses mention other licenses further down.
    positions = {words.find(phrase): name for name, phrase in _PHRASES.items() if phrase in words}
    name = positions[min(positions)] if positions else "other"
    return "BSD-3-Clause" if name == "BSD-2-Clause" and "neither the name" in words else name
