"""The page of runs: a run in progress, hostile files, and a chat with a checkpoint."""

import json

import pytest

from qwen_jax.report.live import Runs
from tests.helpers.page import page_server

EVIL = "<img src=x onerror=window.hacked=1>"


def add(path, **row):
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")


@pytest.fixture
def runs(tmp_path):
    """Returns a folder with a run that trains and can chat, and one with hostile files."""
    live, evil = tmp_path / "sft", tmp_path / "a<b>"
    for folder in (live, evil):
        (folder / "checkpoints" / "4").mkdir(parents=True)
        (folder / "config.json").write_text(
            json.dumps(
                {"training_stage": "sft", "model": {"num_layers": 2}, "train": {"num_steps": 9}}
            )
        )
        for step in range(1, 5):
            add(folder / "metrics.jsonl", step=step, time=1e9 + step, **{"train/loss": 5.0 - step})
    (live / "lock.json").write_text("{}")
    (live / "evaluation.json").write_text('{"model": {"perplexity": 9.5}, "tokens": 10}')
    (live / "samples.json").write_text('[{"prompt": "def ", "text": "def main():"}]')
    add(live / "events.jsonl", time=1e9, event="start", step=0)
    add(evil / "metrics.jsonl", step=5, **{f"train/{EVIL}": 1.0})
    add(evil / "events.jsonl", time=1e9, event=EVIL, note=EVIL)
    (evil / "samples.json").write_text(json.dumps([{"prompt": EVIL, "text": EVIL}]))
    (evil / "answers.json").write_text(json.dumps([{EVIL: EVIL}]))
    return tmp_path


def test_runs_update_while_they_train_and_lead_to_a_chat(chrome, folder, runs):
    with page_server(folder / "runs", more=Runs(runs).handlers()) as server:
        chrome.open(server, "runs")
        chrome.until(lambda: chrome.all("figure.curve"), "the curves")
        first = chrome.text("#run-list button")
        assert "training · sft · step 4 of 9" in first.splitlines()[1]
        assert "train/loss\n1" in chrome.text("figure.curve figcaption")
        assert "9.5" in chrome.text("#run .data") and "Events: 1" in chrome.text("#run")
        chrome.click("Sample: def")
        assert "def main():" in chrome.text("#run pre")
        add(runs / "sft" / "metrics.jsonl", step=5, time=1e9 + 5, **{"train/loss": 0.25})
        chrome.until(lambda: "train/loss\n0.25" in chrome.text("figure.curve"), "the new step")
        assert "step 5 of 9" in chrome.text("#run-list")
        assert "def main():" in chrome.text("#run pre")  # still open
        chrome.click("Chat with step 4")
        assert "sft answers 'Hi'" in chrome.ask("Hi")
        chrome.js("location.hash = '#runs'")
        assert chrome.serious_findings() == []
        chrome.until(lambda: chrome.all("[data-run='a<b>']"), "the other run")
        chrome.one("[data-run='a<b>']").click()
        chrome.until(lambda: chrome.text("#run h2") == "a<b>", "the other run")
        chrome.js("document.querySelectorAll('#run details').forEach((d) => { d.open = true; })")
        assert chrome.text("#run").count(EVIL) >= 5
        assert chrome.js("return window.hacked") is None and not chrome.all("#run img")
    assert not chrome.errors()
