"""Folders of every Qwen, in and out, against transformers 4 and 5 (benchmarks/released)."""

import importlib.util
import os
import sys

import pytest

from benchmarks.released import inputs
from benchmarks.released.cells import CELLS, COLUMNS, Cell, missing
from benchmarks.released.families import FAMILIES

PEERS = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None,
    reason="PyTorch or transformers is not installed",
)
FOUR = "QWEN_JAX_TRANSFORMERS4"  # a Python with transformers 4


@pytest.fixture(scope="module")
def work(request, shared, tmp_path_factory):
    """The folders of the selected cells: importing transformers takes as long as ten of them."""
    from benchmarks.released.make import make

    pytest.importorskip("jinja2", reason="jinja2 is not installed")
    tests = [each for each in request.session.items if hasattr(each, "callspec")]
    cells = [cell for each in tests if (cell := each.callspec.params.get("cell")) is not None]
    folder = tmp_path_factory.mktemp("released")
    peers = {5: sys.executable} | ({4: os.environ[FOUR]} if FOUR in os.environ else {})
    make(cells, folder, shared, peers)
    return folder


@PEERS
@pytest.mark.slow  # a folder takes 20 s
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_a_folder_comes_out_as_it_went_in(cell, work, shared):
    from benchmarks.released.checks import Place
    from benchmarks.released.matrix import CHECKS

    if cell.writer == 4 and FOUR not in os.environ:
        pytest.skip(f"transformers 4 is not installed; set {FOUR} to a Python that has it")
    for check in CHECKS.values():
        check(Place(cell, work, shared))


def test_cells_are_all_combinations_but_those_with_a_reason():
    for family in FAMILIES:
        for column in COLUMNS:
            assert (Cell(family, column) in CELLS) == (missing(family, column) is None)
    assert len(CELLS) == len(set(CELLS)) >= 60


def test_inputs_are_many_and_the_same_in_every_run(shared):
    texts, conversations = inputs.texts(shared), inputs.conversations()
    assert len(texts) == 3000 and len(set(texts)) > 2500 and texts == inputs.texts(shared)
    assert len(conversations) == 200 and conversations == inputs.conversations()
    messages = [message for case in conversations for message in case["messages"]]
    for part in ("tool_calls", "reasoning_content"):
        assert sum(part in message for message in messages) > 20, part
    assert sum(case["messages"][0]["role"] != "system" for case in conversations) > 40
    assert sum("<|im_end|>" in str(message["content"]) for message in messages) > 10
