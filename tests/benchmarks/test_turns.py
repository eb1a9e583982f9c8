"""Ours and peers in turn: who is asked, with what, and what a failure says."""

import json
import sys

import pytest

from benchmarks.common import turns
from qwen_jax.parallel.cpu import huge_pages

SHOW = (
    "import json, os; print('noise'); "
    f"print(json.dumps({{'huge': os.environ.get({huge_pages.VARIABLE!r})}}))"
)


def test_ours_comes_first_in_every_round_and_peers_are_told_what_it_measured(monkeypatch):
    monkeypatch.setenv(huge_pages.VARIABLE, "inherited")
    told = []

    def peers(measured):
        told.append(measured)
        echo = [sys.executable, "-c", "import sys; print(sys.argv[1])", json.dumps(measured)]
        return {"echo": (echo, {}), "plain": ([sys.executable, "-c", SHOW], {})}

    ours = {"huge": huge_pages.SETTING}
    assert list(turns.take(2, [sys.executable, "-c", SHOW], peers)) == [
        (turn, *row)
        for turn in (1, 2)
        for row in (("ours", ours), ("echo", ours), ("plain", {"huge": None}))
    ]
    assert told == [ours, ours]


def test_a_process_that_fails_is_named_with_what_it_said():
    with pytest.raises(SystemExit, match="(?s)-c .*failed:.*no such peer"):
        turns.run([sys.executable, "-c", "raise SystemExit('no such peer')"], {})
