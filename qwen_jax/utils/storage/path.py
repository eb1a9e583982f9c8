"""Addresses of objects: gs://BUCKET/KEY, s3://BUCKET/KEY and flat://FOLDER/KEY."""

import dataclasses
import os
import pathlib
import re

from qwen_jax.errors import ConfigError

SCHEMES = {"gs": "Google Cloud Storage", "s3": "Amazon S3", "flat": "a folder without renames"}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")  # GCS allows dots and underscores


@dataclasses.dataclass(frozen=True)
class StoragePath:
    """An address in an object store. `/` joins, as for pathlib.Path.

    A flat:// address is an absolute folder of this computer: it has no bucket.
    """

    scheme: str
    bucket: str  # "" for flat://
    key: str  # without a leading or trailing slash; "": the whole bucket

    @classmethod
    def parse(cls, url: str, where: str = "the path") -> "StoragePath":
        """Parses a URL.

        Args:
          where: the flag, for errors.

        Raises:
          ConfigError: the scheme is unknown, or the bucket's name is not possible.
        """
        match = _URL.fullmatch(url)
        if match is None or match[1].lower() not in SCHEMES:
            raise ConfigError(
                f"{url[:80]!r} has an unknown scheme.",
                where,
                "use gs://BUCKET/FOLDER, s3://BUCKET/FOLDER, or a path of a local folder.",
            )
        scheme, rest = match[1].lower(), match[2]
        if scheme == "flat":
            return cls(scheme, "", _normal(os.path.abspath(rest)))
        bucket, _, key = rest.partition("/")
        if not _BUCKET.fullmatch(bucket):
            raise ConfigError(
                f"{bucket[:80]!r} is not the name of a bucket.",
                f"{where}={url[:200]}",
                f"use {scheme}://BUCKET/FOLDER, with a bucket of lowercase letters, digits and -.",
            )
        return cls(scheme, bucket, _normal(key))

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2] or self.bucket

    @property
    def parent(self) -> "StoragePath":
        return dataclasses.replace(self, key=self.key.rpartition("/")[0])

    def __truediv__(self, key: str | os.PathLike) -> "StoragePath":
        return dataclasses.replace(self, key=_normal(f"{self.key}/{os.fspath(key)}"))

    def __str__(self) -> str:
        slash = "/" if self.key else ""
        return f"{self.scheme}://{self.bucket}{slash}{self.key}"


AnyPath = str | os.PathLike | StoragePath


def is_remote(path: AnyPath) -> bool:
    """Returns whether a path is an address in an object store, of a known scheme."""
    if isinstance(path, StoragePath):
        return True
    match = _URL.match(path) if isinstance(path, str) else None
    return match is not None and match[1].lower() in SCHEMES


def parse(path: AnyPath, where: str = "the path") -> pathlib.Path | StoragePath:
    """Returns a StoragePath for an address in a store, and a pathlib.Path for a local path.

    Raises:
      ConfigError: as StoragePath.parse, for everything of the form SCHEME://...
    """
    if isinstance(path, StoragePath):
        return path
    if isinstance(path, str) and _URL.match(path):
        return StoragePath.parse(path, where)
    return pathlib.Path(path)


def _normal(key: str) -> str:
    return "/".join(part for part in key.split("/") if part not in ("", "."))
