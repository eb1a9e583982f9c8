"""Alternating measurements of ours and peers: order, inputs, errors."""

import json
import sys

import pytest

from benchmarks.common import turns
from qwen_jax.parallel.cpu import huge_pages

SHOW = (
    "import json, os; print('noise'); "
    f"print(json.dumps({{'huge': os.environ.get({huge_pages.VARIABLE!r})}}))"
)


def test_take_runs_ours_first_and_passes_its_result_to_peers(monkeypatch):
    monkeypatch.setenv(huge_pages.VARIABLE, "inherited")
    received = []

    def peers(measured):
        received.append(measured)
        echo = [sys.executable, "-c", "import sys; print(sys.argv[1])", json.dumps(measured)]
        return {"echo": (echo, {}), "plain": ([sys.executable, "-c", SHOW], {})}

    ours = {"huge": huge_pages.SETTING}
    assert list(turns.take(2, [sys.executable, "-c", SHOW], peers)) == [
        (turn, *row)
        for turn in (1, 2)
        for row in (("ours", ours), ("echo", ours), ("plain", {"huge": None}))
    ]
    assert received == [ours, ours]


def test_run_raises_with_the_output_of_a_failed_process():
    with pytest.raises(SystemExit, match="(?s)-c .*failed:.*no such peer"):
        turns.run([sys.executable, "-c", "raise SystemExit('no such peer')"], {})
