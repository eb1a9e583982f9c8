"""Clients of servers do not wait between their attempts."""

import pytest

from qwen_jax.evaluate.server import client


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(client, "LONGEST_PAUSE", 0.002)
