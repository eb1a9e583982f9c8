"""The corpus from the running Python has real pages and nothing local."""

import os
import pathlib

from qwen_jax.corpus.sources import python_docs


def pages(names, monkeypatch):
    monkeypatch.setattr(python_docs, "modules", lambda: names)
    documents, failures = python_docs.documentation()
    return {document.name: document.text for document in documents}, failures


def test_documentation_has_the_pydoc_pages(monkeypatch):
    found, failures = pages(["json", "textwrap"], monkeypatch)
    assert failures == {}
    text = found["pydoc:textwrap"]
    assert "    Reformat the single paragraph in 'text'" in text
    assert text.startswith("textwrap\n")


def test_documentation_has_no_local_paths_or_secrets(monkeypatch):
    monkeypatch.setenv("A_SECRET", "hunter2")
    found, _ = pages(["os", "sys", "tempfile", "ctypes"], monkeypatch)
    text = "".join(found.values())
    assert len(text) > 50_000
    for private in (
        "hunter2",
        str(pathlib.Path.home()) + "/",
        os.getcwd(),
        str(pathlib.Path(python_docs.__file__).parent),
    ):
        if private != "//":
            assert private not in text


def test_documentation_is_deterministic(monkeypatch):
    names = ["collections", "ctypes", "os", "email.message"]
    assert pages(names, monkeypatch)[0] == pages(names, monkeypatch)[0]


def test_documentation_loses_only_modules_that_hang_or_crash(monkeypatch, tmp_path):
    script = tmp_path / "pages.py"
    script.write_text(
        "import sys, json, os, time\n"
        "for name in sys.stdin.read().split():\n"
        "    if name == 'crash': os._exit(3)\n"
        "    if name == 'hang': time.sleep(60)\n"
        "    print(json.dumps({'module': name, 'html': f'<p>{name}</p>'}), flush=True)\n"
    )
    monkeypatch.setattr(python_docs, "_PAGES", script)
    monkeypatch.setattr(python_docs, "_SECONDS", 2)
    found, failures = pages(["a", "crash", "b", "hang", "c"], monkeypatch)
    assert list(found) == ["pydoc:a", "pydoc:b", "pydoc:c"]
    assert failures == {"crash": "exit code 3", "hang": "took over 2 s"}


def test_modules_and_source_code_exclude_unwanted_modules():
    names = python_docs.modules()
    assert {"json", "json.decoder", "asyncio.tasks"} <= set(names)
    assert not {"antigravity", "this", "test", "idlelib", "turtle"} & set(names)
    code = {document.name: document.text for document in python_docs.source_code()}
    assert "def dumps(" in code["stdlib:json/__init__.py"]
    assert not any("site-packages" in name or "/test" in name for name in code)
