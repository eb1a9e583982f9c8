"""Google Cloud Storage, by Google's client. STORAGE_EMULATOR_HOST names another server."""

import contextlib
import pathlib
import threading
from collections.abc import Iterator

from qwen_jax import compat
from qwen_jax.utils.storage.client import ABSENT, Info
from qwen_jax.utils.storage.failures import Conflict, Denied, Missing, Transient, missing_library
from qwen_jax.utils.storage.path import StoragePath

_TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two responses
_PART_BYTES = 32 << 20  # of a resumable upload; a file below 8 MiB is one request
_LOGIN = (
    "log in with `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to "
    "the key of a service account."
)


class GCSClient:
    """Implements client.Client."""

    def __init__(self, root: StoragePath):
        try:
            import google.cloud.storage as storage  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise missing_library("google-cloud-storage", "gcs", str(root)) from error
        self._storage, self._root = storage, root
        self._local = threading.local()  # a session of requests per thread
        self._lock = threading.Lock()
        self._first = None  # its credentials are shared

    def get(self, key: str, start: int, stop: int | None) -> bytes:
        with self._failures():
            if stop is None and start == 0:
                return self._blob(key).download_as_bytes(retry=None, timeout=_TIMEOUT)
            try:
                return self._blob(key).download_as_bytes(
                    start=start,
                    end=None if stop is None else stop - 1,
                    retry=None,
                    timeout=_TIMEOUT,
                    checksum=None,  # a range has none
                )
            except Exception as error:
                if getattr(error, "code", None) == 416:  # beyond the end
                    return b""
                raise

    def put(self, key: str, content: bytes, expect: str | None) -> str:
        blob = self._blob(key)
        with self._failures():
            blob.upload_from_string(
                content,
                content_type="application/octet-stream",
                if_generation_match=None if expect is None else int(expect or 0),
                retry=None,
                timeout=_TIMEOUT,
            )
            if blob.generation is None:
                blob.reload(retry=None, timeout=_TIMEOUT)
        return str(blob.generation)

    def put_file(self, key: str, file: pathlib.Path) -> None:
        blob = self._blob(key, chunk_size=_PART_BYTES)
        with self._failures():
            blob.upload_from_filename(str(file), retry=None, timeout=_TIMEOUT, checksum="crc32c")

    def get_file(self, key: str, file: pathlib.Path) -> None:
        with self._failures():
            self._blob(key).download_to_filename(str(file), retry=None, timeout=_TIMEOUT)

    def head(self, key: str) -> Info:
        blob = self._blob(key)
        with self._failures():
            blob.reload(retry=None, timeout=_TIMEOUT)
        return _info(blob)

    def list(self, prefix: str) -> Iterator[Info]:
        with self._failures():
            found = self._client().list_blobs(
                self._root.bucket, prefix=prefix or None, retry=None, timeout=_TIMEOUT
            )
            yield from map(_info, found)

    def remove(self, key: str) -> None:
        with self._failures():
            self._blob(key).delete(retry=None, timeout=_TIMEOUT)

    def copy(self, key: str, to: str) -> None:
        with self._failures():
            token, target = None, self._blob(to)
            while True:  # a large object takes several calls
                token, _, _ = target.rewrite(
                    self._blob(key), token=token, retry=None, timeout=_TIMEOUT
                )
                if token is None:
                    return

    def _blob(self, key: str, chunk_size: int | None = None):
        return self._client().bucket(self._root.bucket).blob(key, chunk_size=chunk_size)

    def _client(self):
        found = getattr(self._local, "client", None)
        if found is None:
            with self._lock, self._failures():
                first = self._first
                if first is None:
                    found = self._first = self._storage.Client()
                else:
                    found = self._storage.Client(
                        project=first.project or "none", credentials=compat.credentials_of(first)
                    )
            self._local.client = found
        return found

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Translates the errors of Google's libraries and of requests."""
        import requests
        from google.api_core import exceptions as api  # pyright: ignore[reportMissingImports]
        from google.auth import exceptions as auth  # pyright: ignore[reportMissingImports]

        try:
            yield
        except api.PreconditionFailed as error:
            raise Conflict(str(error)) from error
        except api.NotFound as error:
            if "bucket" in error.message.lower() and "object" not in error.message.lower():
                raise self._no_bucket() from error
            raise Missing(2, "no such object", str(self._root)) from error
        except (api.Forbidden, api.Unauthorized) as error:
            raise Denied(
                _reason(error),
                f"give this account the role Storage Object User on gs://{self._root.bucket}, or "
                "use another bucket.",
            ) from error
        except auth.DefaultCredentialsError as error:
            raise Denied("there are no credentials for Google Cloud.", _LOGIN) from error
        except auth.RefreshError as error:
            raise Denied(f"the credentials are not accepted: {_reason(error)}", _LOGIN) from error
        except api.GoogleAPICallError as error:
            code = error.code or 0
            if code in (408, 429) or code >= 500:
                raise Transient(_reason(error)) from error
            raise Denied(_reason(error), "check the address.") from error
        except (requests.RequestException, auth.TransportError, ConnectionError) as error:
            raise Transient(_reason(error)) from error
        except Exception as error:
            if type(error).__module__.startswith(("google.", "urllib3.")):  # such as DataCorruption
                raise Transient(_reason(error)) from error
            raise

    def _no_bucket(self) -> Denied:
        return Denied(
            f"the bucket gs://{self._root.bucket} does not exist.",
            f"check its name, or create it: gcloud storage buckets create gs://{self._root.bucket}",
        )


def _info(blob) -> Info:
    modified = blob.updated
    return Info(
        blob.name,
        blob.size or 0,
        str(blob.generation),
        0.0 if modified is None else modified.timestamp(),
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


assert ABSENT == "", "int('' or 0) is the generation of an object that does not exist"
