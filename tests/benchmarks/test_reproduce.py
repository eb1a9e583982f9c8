"""The reproduction: killed claims resume with the same rows, the page builds, parts of claims."""

import dataclasses
import functools
import html
import json
import math
import os
import signal
import subprocess
import sys
import time
from types import ModuleType

import jax
import numpy as np
import pytest

from benchmarks.reproduce import __main__ as reproduce
from benchmarks.reproduce import checker, feedback, page, scoring, tables
from benchmarks.reproduce.claim import FORMS, Cell, Curve, Outcome, verdict_of
from benchmarks.reproduce.claims import CLAIMS
from benchmarks.reproduce.claims.base import data_plan, sizes
from benchmarks.reproduce.claims.chat import assistant, prompt_tags, tools
from benchmarks.reproduce.claims.specialists import code, long_code
from benchmarks.reproduce.family import world_documents
from benchmarks.reproduce.lab import Claim, Lab, _code_of
from qwen_jax.data.chat.prompts import choose_weighted
from qwen_jax.errors import ConfigError
from qwen_jax.model.spec import init_params
from qwen_jax.model.transformer import forward
from qwen_jax.synthetic.worlds import programs
from qwen_jax.synthetic.worlds.problem import final_number
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.utils.files import read_json
from tests.helpers.tiny_checkpoint import CONFIG, ROOT, TOKENIZER


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
    reproduce._record(path, lab, claim, claim.judge(lab, measured), cost, measured)
    reproduce._record(
        path, lab, claim, claim.judge(lab, measured), cost, measured
    )  # again: replaced
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


def test_an_interval_that_is_unknown_is_written_as_null(tmp_path):
    measured = {arm: {0: {"right": 0.5}} for arm in ("old", "new")}
    lab, claim, path = Lab(tmp_path, FORMS["smoke"], print), _claim([]), tmp_path / "reproduce.json"
    cost = {"seconds": 1.0, "tokens": 0, "flops": 0.0}
    reproduce._record(path, lab, claim, claim.judge(lab, measured), cost, measured)
    (entry,) = read_json(path)["claims"]  # which refuses NaN
    assert entry["interval"] == [None, None] and entry["rows"][0]["low"] is None
    assert "50.0 %" in page.page({"claims": [entry | {"curves": []}]})


def test_claims_have_all_numbers_and_distinct_names():
    assert {claim.number for claim in CLAIMS} == set(range(-1, 14))  # -1: before the claims
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


def test_choices_have_one_right_option_that_no_other_equals():
    for made in (sizes.sum_choices(80), sizes.story_choices(80)):
        for choice in made:
            assert len(set(choice.options)) == 4
        assert len({choice.context for choice in made}) > 30
    for choice in sizes.sum_choices(20):
        expression = choice.context.removesuffix(" =")
        assert choice.options[0] == f" {eval(expression)}."
    for choice in sizes.story_choices(20):
        assert choice.options[0].strip() in choice.context  # the story has named it before
        assert not any(other.strip() in choice.context for other in choice.options[1:])


def test_chosen_right_is_what_the_likelihood_of_each_text_by_itself_says():
    config = dataclasses.replace(CONFIG, num_layers=1, compute_dtype="float32")
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(3))
    rng = np.random.default_rng(0)

    def word() -> str:
        return "".join(rng.choice(list("abcdefgh"), rng.integers(2, 9)))

    asked = [scoring.Choice(f"{word()} ", tuple(word() for _ in range(3))) for _ in range(6)]
    one = jax.jit(functools.partial(forward, config=config))

    def mean_log_likelihood(context: str, option: str) -> float:
        ids = [TOKENIZER.end_of_text, *TOKENIZER.encode(context + option)]  # bytes: no merges
        padded = np.zeros((1, 32), np.int32)
        padded[0, : len(ids)] = ids
        logits = jax.nn.log_softmax(one(params, padded)[0])
        steps = range(len(ids) - len(option), len(ids))
        return float(np.mean([logits[i - 1, ids[i]] for i in steps]))

    expected = []
    for each in asked:
        scores = [mean_log_likelihood(each.context, option) for option in each.options]
        expected.append(int(scores[0] == max(scores)))
    assert scoring.chosen_right(config, params, TOKENIZER, asked) == expected
    assert 0 < sum(expected) < len(expected)


@pytest.mark.parametrize(
    ("text", "expected", "right"),
    [
        ("3 + 4 = 7.", "7", True),
        ("3 + 4 = 8.", "7", False),
        ("", "7", False),
        ("sun  moon.", "sun moon", True),
        ("moon sun", "sun moon", False),
        ("故事里没有说", "故事里没有说。", True),
    ],
)
def test_the_checker_compares_numbers_and_texts(text, expected, right):
    checker.seen.clear()
    assert checker.result([text], [expected]) == [float(right)]
    assert checker.watch([text], [expected]) == [0.0]  # the reward stays the learned one
    assert checker.seen == [float(right)] * 2


def test_every_prompt_has_a_seed_of_its_own_that_the_decoder_takes(monkeypatch):
    seen = []

    def generate(params, prompts, *, seed, **settings):
        seen.extend(seed)
        return [[] for _ in prompts]

    monkeypatch.setattr(scoring, "generate", generate)
    for seed in (0, 110_000):  # of the policy's samples in the second round
        scoring.completions(CONFIG, None, TOKENIZER, [[1], [2], [3]], max_new_tokens=2, seed=seed)
        assert all(0 <= each < 2**32 for each in seen)
        assert len(set(seen[:3])) == 3
        seen.clear()


def test_pairs_of_samples_are_different_texts_and_never_empty():
    texts = ["= 5", "= 5", "", "= 6", "= 7", "= 8", "5"]
    pairs = feedback.pairs_of("2 + 3?", texts, [1, 1, 0, 0, 0, 0, 1])
    assert {(p["chosen"], p["rejected"]) for p in pairs} == {
        (good, bad) for good in ("= 5", "5") for bad in ("= 6", "= 7")
    }
    assert feedback.pairs_of("2 + 3?", texts, [0] * 7) == []


def test_balanced_prompts_cover_more_tags_of_a_skewed_pool_than_random_ones():
    pool = prompt_tags.pool(0, 1500)
    tags = {question: tags for question, (_, tags) in pool.items()}
    covered = {}
    for arm in ("random", "diversity only", "complexity only"):
        balance, complexity = prompt_tags.ARMS[arm]
        chosen = choose_weighted(tags, 40, seed=0, balance=balance, complexity=complexity)
        covered[arm] = len({tag for question in chosen for tag in tags[question]})
        if arm == "complexity only":
            of_all = np.mean([len(found) for found in tags.values()])
            assert np.mean([len(tags[question]) for question in chosen]) > of_all
    assert covered["diversity only"] > covered["random"]


def test_no_held_out_program_is_in_any_training_data_of_the_code_claims():
    held_out = {each.key for each in code.held_out_programs(200)}
    for seed in (0, 50, 70, 71):
        trained = code.training_programs(400, seed, programs.LEVELS)
        assert not held_out & {each.key for each in trained}
    texts = "\n".join(world_documents(400, seed=7))
    for each in code.held_out_programs(60):
        assert each.prompt not in texts


def test_cells_are_of_the_code_that_makes_them_and_not_of_what_reads_them(tmp_path, monkeypatch):
    def code_of(source: str) -> str:
        path = tmp_path / "made_claim.py"
        path.write_text(source)
        module = ModuleType("made_claim")
        module.__file__ = str(path)
        exec(source, vars(module))
        monkeypatch.setitem(sys.modules, "made_claim", module)
        return _code_of(dataclasses.replace(_claim([]), judge=module.judge))

    source = """"A claim."
from benchmarks.reproduce import family
STEPS = 3
def judge(lab, measured):
    return "yes"
"""
    code = code_of(source)
    assert code == code_of(source.replace('"yes"', '"no"').replace("A claim.", "Other words."))
    assert code != code_of(source.replace("3", "4"))
    assert code != code_of(source.replace("family", "scoring"))  # other shared modules


def test_other_seeds_are_part_of_the_command_and_of_the_rows(tmp_path):
    form = dataclasses.replace(FORMS["smoke"], seeds=(0, 1))
    lab, claim, path = Lab(tmp_path, form, print), _claim([]), tmp_path / "reproduce.json"
    measured, cost = lab.run(claim)
    reproduce._record(path, lab, claim, claim.judge(lab, measured), cost, measured)
    (entry,) = json.loads(path.read_text())["claims"]
    assert entry["seeds"] == [0, 1] and entry["command"].endswith(" --seeds=0,1")


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
