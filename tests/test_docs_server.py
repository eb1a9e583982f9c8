"""The examples of curl and of the openai package in README.md and docs/, against a server."""

import importlib.util
import json
import shutil
import subprocess

import pytest

from tests.helpers import doc_commands
from tests.helpers.doc_commands import PAGES, ROOT
from tests.helpers.fake_engine import FakeEngine
from tests.helpers.server import MODEL, byte_tokenizer, running

CURL = [
    command for page in PAGES for command in doc_commands.commands(page)
    if command.text.startswith("curl ")
]  # fmt: skip
PYTHON = [
    (page, text) for page in PAGES for language, text in doc_commands.blocks(page)
    if language == "python" and "openai" in text
]  # fmt: skip


@pytest.fixture(scope="module")
def server():
    engine = FakeEngine(byte_tokenizer(), max_model_len=4096)
    with running(engine, byte_tokenizer(), context=4096) as server:
        yield server


def here(text: str, server) -> str:
    """Returns an example for the test's server instead of the one of the page."""
    for old, new in (("localhost:8000", f"127.0.0.1:{server.port}"), ('"chat"', f'"{MODEL}"')):
        assert old in text or "/v1/models" in text, f"{old} is not in the example:\n{text}"
        text = text.replace(old, new)
    return text


def test_inference_guide_has_examples_of_both_clients():
    guide = ROOT / "docs/guides/inference.md"
    assert {command.page for command in CURL} >= {guide} <= {page for page, _ in PYTHON}


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("command", CURL, ids=[command.text[:60] for command in CURL])
def test_curl_example_runs(command, server):
    text = here(command.text, server).replace(
        "curl ", "curl --silent --show-error --fail-with-body "
    )
    done = subprocess.run(
        ["bash", "-ec", text], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if '"stream": true' in text:
        assert done.stdout.startswith("data: {") and done.stdout.endswith("data: [DONE]\n\n")
        return
    answer = json.loads(done.stdout)
    assert answer["object"] == "list" or answer["choices"][0]["message"]["content"]


@pytest.mark.skipif(importlib.util.find_spec("openai") is None, reason="openai is not installed")
@pytest.mark.parametrize("page, text", PYTHON, ids=[page.name for page, _ in PYTHON])
def test_openai_example_runs(page, text, server, capsys):
    before = server.worker.counters.finished
    exec(compile(here(text, server), str(page), "exec"), {})
    shown = capsys.readouterr().out
    calls = text.count(".create(")
    assert server.worker.counters.finished == before + calls and calls > 0
    assert len(shown.encode()) > 20 * (calls - 1)
