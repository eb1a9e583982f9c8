"""The files of the web page, and the headers that keep a browser from doing anything else.

Everything comes from this package: no other origin is contacted, no script or style is inline, and
strings become HTML only through DOMPurify (Trusted Types).
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from importlib import resources

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cache-control": "no-cache",
}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Path of a URL -> file. Nothing else is served, so no path can lead out of the folder.
FILES = {
    "/": "index.html",
    "/page/app.js": "app.js",
    "/page/style.css": "style.css",
    "/page/icon.svg": "icon.svg",
    **{
        f"/page/vendor/{name}": f"vendor/{name}"
        for name in ("markdown-it.min.js", "purify.min.js", "highlight.min.js", "katex.min.js")
    },
}


@dataclasses.dataclass(frozen=True)
class Asset:
    """A file of the page."""

    content: bytes
    media_type: str
    etag: str


@functools.cache
def assets() -> Mapping[str, Asset]:
    """Returns the path of a URL -> its file."""
    folder, found = resources.files("qwen_jax.serve.page").joinpath("web"), {}
    for path, name in FILES.items():
        content = folder.joinpath(name).read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        found[path] = Asset(content, _TYPES[name[name.rindex(".") :]], etag)
    return found
