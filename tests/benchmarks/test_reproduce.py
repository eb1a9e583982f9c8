"""The reproduction: killed claims resume with the same rows, the page builds, parts of claims."""

import dataclasses
import html
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks.reproduce import __main__ as reproduce
from benchmarks.reproduce import page, tables
from benchmarks.reproduce.claim import FORMS, Cell, Curve, Outcome, verdict_of
from benchmarks.reproduce.claims import CLAIMS, assistant, data_plan, long_code, tools
from benchmarks.reproduce.lab import Claim, Lab
from qwen_jax.errors import ConfigError
from qwen_jax.synthetic.worlds.problem import final_number
from qwen_jax.tokenizer.bpe import Tokenizer
from tests.helpers.tiny_checkpoint import ROOT


def _claim(ran: list, *, stop_at: str = "") -> Claim:
    """Returns a claim of two arms that records its cells, and is killed in one of them."""

    def run(arm: str, seed: int) -> dict:
        if arm == stop_at and seed == 1:
            raise KeyboardInterrupt
        ran.append((arm, seed))
        rng = np.random.default_rng([len(arm), seed])
        return {"right": (rng.random(40) < (0.7 if arm == "new" else 0.2)).astype(int).tolist()}

    def judge(lab: Lab, measured) -> Outcome:
        found = tables.gap(measured, "new", "old", "right")
        rows = [tables.row(measured, arm, "right", f"{arm} <b>") for arm in measured]
        curve = Curve("Reward", "step", "reward", {"new": [(0.0, 0.1), (1.0, 0.4)]})
        interval = (found.low, found.high)
        return Outcome(rows, verdict_of(*interval), interval, "a difference", (curve,))

    return Claim(
        number=6,
        name=CLAIMS[0].name,  # a known name: the order of the page
        report="3.1",
        title="New beats old",
        statement="New is better.",
        rule="above zero",
        cells=lambda lab: [
            Cell(arm, seed, lambda arm=arm, seed=seed: run(arm, seed), tokens=10, flops=5.0)
            for arm in ("old", "new")
            for seed in (0, 1)
        ],
        judge=judge,
    )


def test_a_killed_claim_resumes_by_cells_with_the_same_rows(tmp_path):
    ran: list = []
    lab = Lab(tmp_path / "killed", FORMS["smoke"], lambda line: None)
    with pytest.raises(KeyboardInterrupt):
        lab.run(_claim(ran, stop_at="new"))
    assert ran == [("old", 0), ("old", 1), ("new", 0)]
    claim = _claim(ran)
    measured, cost = lab.run(claim)
    assert ran[3:] == [("new", 1)]
    assert (cost["tokens"], cost["flops"]) == (40, 20.0)
    other = Lab(tmp_path / "whole", FORMS["smoke"], lambda line: None)
    whole = _claim([])
    assert claim.judge(lab, measured) == whole.judge(other, other.run(whole)[0])


def test_cells_of_another_version_of_the_claim_are_refused(tmp_path):
    lab, claim = Lab(tmp_path, FORMS["smoke"], lambda line: None), _claim([])
    lab.run(claim)
    path = tmp_path / "cells" / claim.name / "new-1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"code": "0" * 16}))
    with pytest.raises(ConfigError, match="(?s)another version.*new-1.json.*--output"):
        lab.run(claim)


def test_the_page_shows_every_row_of_the_results_and_nothing_unescaped(tmp_path):
    pytest.importorskip("matplotlib")
    lab = Lab(tmp_path, FORMS["smoke"], lambda line: None)
    claim = _claim([])
    measured, cost = lab.run(claim)
    path = tmp_path / "reproduce.json"
    reproduce._record(path, lab, claim, claim.judge(lab, measured), cost)
    reproduce._record(path, lab, claim, claim.judge(lab, measured), cost)  # again: replaced
    results = json.loads(path.read_text())
    (entry,) = results["claims"]
    assert entry["verdict"] == "holds" and len(entry["rows"]) == 2
    text = page.page(results)
    assert "new &lt;b&gt;" in text and "new <b>" not in text
    for row in entry["rows"]:
        assert f"{100 * row['ours']:.1f} %" in text
    assert "data:image/png;base64," in text and html.escape(entry["command"]) in text


def test_a_row_without_an_interval_is_shown_as_a_dash():
    measured = {"new": {0: {"loss": 1.5}}, "old": {0: {"loss": 2.0}}}
    row = tables.row(measured, "new", "loss", "loss", percent=False)
    assert row.ours == 1.5 and math.isnan(row.low)
    assert page._number(row.low, dataclasses.asdict(row)) == "-"
    assert verdict_of(*tables.gap(measured, "new", "old", "loss")[1:]) == "does not show"


def test_claims_have_all_numbers_and_distinct_names():
    assert {claim.number for claim in CLAIMS} == set(range(14))
    names = [claim.name for claim in CLAIMS]
    assert len(set(names)) == len(names)
    assert [claim.number for claim in CLAIMS] == sorted(claim.number for claim in CLAIMS)
    with pytest.raises(ConfigError, match="vocabulary"):
        reproduce._chosen(("vocabulry",))


def test_costs_of_every_claim_are_known_before_it_starts(tmp_path):
    lab = Lab(tmp_path, FORMS["full"], lambda line: None)
    for claim in CLAIMS:
        cells = claim.cells(lab)
        assert cells and len({cell.name for cell in cells}) == len(cells), claim.name
        assert claim.name == "vocabulary" or all(cell.flops > 0 for cell in cells), claim.name
    assert not list(tmp_path.iterdir())


# The parts of claims


def test_word_problems_with_a_tool_are_right_and_held_out_ones_stay_out():
    trained = tools.problems(300, 0, held_out=False)
    held_out = tools.problems(100, 0, held_out=True)
    assert not {each.key for each in trained} & {each.key for each in held_out}
    for each in trained:
        turns = tools.with_tool(each)
        assert turns[2] == ("user", tools.observation(turns[1][1]))
        assert final_number(turns[3][1]) == int(each.result) != final_number(each.wrong)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Action: calculator\nAction Input: 345 + 287", "Observation: 632"),
        ("Action: calculator\nAction Input: two", "Observation: error"),
        ("345 + 287 = 632", None),
        ("Action: weather\nAction Input: 1", None),
    ],
)
def test_observation_of_a_call(text, found):
    assert tools.observation(text) == found


def test_stories_do_not_answer_the_questions_that_ask_for_other_things():
    known, unknown = assistant.story_questions(60, 3, held_out=False)
    assert all(answer in question for question, answer in known)
    for (question, answer), (other, refusal) in zip(known, unknown, strict=True):
        text, asked = other.split("\n")
        assert text == question.split("\n")[0] and asked != question.split("\n")[1]
        assert refusal != answer
        thing = asked.split("是")[0] if "是" in asked else asked.rstrip("?").split()[-1]
        assert thing not in text


def test_files_with_a_constant_far_back_have_one_answer():
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)})
    rng = np.random.default_rng(0)
    for _ in range(20):
        text, value = long_code.file_of(rng, tokenizer, ["def f():\n    return 1\n"], 300)
        lines = text.split("\n")
        name = lines[-2].removeprefix("# ")
        assert [line for line in lines if line.startswith(f"{name} = ")] == [f"{name} = {value}"]
        assert len(text) - text.index(f"{name} = ") > 300


def test_a_dirty_corpus_keeps_every_document_and_adds_what_the_stages_remove():
    documents = [f"document {i} has words {i} and more words of its own {i}" for i in range(200)]
    found = data_plan.dirty(documents, np.random.default_rng(0))
    assert set(documents) <= set(found) and len(found) > 300
    assert any("newsletter" in text for text in found)
    salad = data_plan.nonsense("one two three four five six", np.random.default_rng(1))
    assert sorted(salad.split()) == sorted("one two three four five six".split())


@pytest.mark.slow
def test_a_claim_that_is_killed_and_resumed_has_the_rows_of_one_that_is_not(tmp_path):
    pytest.importorskip("pyarrow")
    pytest.importorskip("tokenizers")

    def start(folder):
        return subprocess.Popen(
            [
                sys.executable, "-m", "benchmarks.reproduce", "--form=smoke",
                "--claims=vocabulary", f"--output={folder}",
            ],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )  # fmt: skip

    killed, cells = start(tmp_path / "a"), tmp_path / "a/cells/vocabulary"
    while killed.poll() is None and not list(cells.glob("*.json")):
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(list(cells.glob("*.json"))) < 2, "it was over before it was killed"
    entries = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        assert start(folder).wait() == 0
        (entry,) = json.loads((folder / "reproduce.json").read_text())["claims"]
        entry["cost"].pop("seconds")
        entries.append(entry)
        assert "vocabulary" in (folder / "index.html").read_text()
    assert entries[0] == entries[1]
