"""Real clients against our server; `make test-clients` installs them."""

import pytest

pytest.importorskip("llguidance", reason="llguidance is not installed: qwen_jax[grammar]")


@pytest.fixture(scope="session")
def server():
    from tests.helpers.random_server import random_server

    with random_server() as found:
        yield found


@pytest.fixture(scope="session")
def url(server) -> str:
    return f"http://127.0.0.1:{server.port}/v1"
