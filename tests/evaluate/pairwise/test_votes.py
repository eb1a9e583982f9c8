"""Votes are read back, bad ones are named; win rates and agreement have known values."""

import json

import pytest

from qwen_jax.errors import ConfigError, DataError
from qwen_jax.evaluate.pairwise import agreement, figure, results, win_rates
from qwen_jax.evaluate.pairwise.sheet import read_sheet, write_sheet
from qwen_jax.evaluate.pairwise.votes import Vote, read_votes, vote_row, with_names
from tests.helpers.judged import sheet_of, vote_by

# Figure 4 of the report against GPT-3.5: wins, ties and losses of 870 votes on 290 prompts.
FIGURE_4 = {
    "Qwen-7B-Chat (SFT)": (247, 246, 377),
    "Qwen-14B-Chat (SFT)": (267, 281, 322),
    "Qwen-14B-Chat (RLHF)": (337, 251, 282),
    "GPT-4": (381, 280, 209),
}


@pytest.fixture
def sheet():
    return sheet_of(("one", "two", "three"), 8)


def write(path, sheet, votes):
    rows = [vote_row(vote, sheet.page) for vote in votes]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def test_read_votes_returns_what_was_written(sheet, tmp_path):
    write_sheet(sheet, tmp_path / "answers.jsonl")
    assert read_sheet(tmp_path / "answers.jsonl") == sheet
    text = (tmp_path / "answers.jsonl").read_text()
    (tmp_path / "edited.jsonl").write_text(text.replace("1 of 3", "9 of 3"))
    with pytest.raises(DataError, match="changed after it was written"):
        read_sheet(tmp_path / "edited.jsonl")
    votes = vote_by(sheet, "ann", lambda entry, answer: len(answer.model))
    write(tmp_path / "ann.jsonl", sheet, votes)
    found = read_votes([tmp_path / "ann.jsonl"], sheet)
    assert [(v.question, v.ranking, v.shown) for v in found] == [
        (v.question, v.ranking, v.shown) for v in votes
    ]
    named = with_names(found, sheet)
    assert {vote.ranking[0] for vote in named} == {("three",)}
    assert all(set(vote.ranking[1]) == {"one", "two"} for vote in named)


BAD = {
    "question": ({"question": "q99"}, "the question 'q99' is unknown"),
    "page": ({"page": "other"}, "belongs to the page 'other'"),
    "rater": ({"rater": " "}, "no rater"),
    "model": ({"ranking": [["gpt"]]}, "'gpt' is no answer"),
    "groups": ({"ranking": "12"}, "not a list of groups"),
    "empty": ({"ranking": [[]]}, "not a list of groups"),
    "number": ({"ranking": [[3]]}, "'3' is no answer"),
}


@pytest.mark.parametrize("name", BAD)
def test_read_votes_names_file_and_line_of_a_bad_vote(name, sheet, tmp_path):
    changes, problem = BAD[name]
    rows = write(tmp_path / "v.jsonl", sheet, vote_by(sheet, "ann", lambda entry, answer: 0))
    rows[2] |= changes
    (tmp_path / "v.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as error:
        read_votes([tmp_path / "v.jsonl"], sheet)
    assert "1 of 8 votes are invalid" in error.value.what
    assert "v.jsonl line 3: " in error.value.what and problem in error.value.what


def test_read_votes_refuses_a_group_that_is_no_list(sheet, tmp_path):
    rows = write(tmp_path / "v.jsonl", sheet, vote_by(sheet, "ann", lambda entry, answer: 0))
    rows[2] |= {"ranking": ["zz", rows[2]["shown"]], "shown": []}
    (tmp_path / "v.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="not a list of groups"):
        read_votes([tmp_path / "v.jsonl"], sheet)


def test_read_votes_refuses_a_second_vote_and_half_a_ranking(sheet, tmp_path):
    votes = vote_by(sheet, "ann", lambda entry, answer: 0)
    rows = write(tmp_path / "a.jsonl", sheet, votes)
    write(tmp_path / "b.jsonl", sheet, votes[:1])
    with pytest.raises(DataError, match=r"b.jsonl line 1: 'ann' voted on question 'q0' before, in"):
        read_votes([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], sheet)
    rows[0]["ranking"] = [rows[0]["shown"][:2]]
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(DataError, match="every answer that was shown"):
        read_votes([tmp_path / "a.jsonl"], sheet)
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(DataError, match="the file has no votes"):
        read_votes([tmp_path / "a.jsonl"], sheet)


@pytest.mark.parametrize("model", FIGURE_4)
def test_win_rates_are_those_of_the_report(model):
    labels = [kind for kind, n in zip("wtl", FIGURE_4[model], strict=True) for _ in range(n)]
    rankings = {"w": ((model,), ("base",)), "t": ((model, "base"),), "l": (("base",), (model,))}
    votes = [
        Vote(f"q{i % 290}", "x", f"r{i // 290}", rankings[label]) for i, label in enumerate(labels)
    ]
    one, overall = win_rates.win_rates(votes, "base")
    assert overall.counts == FIGURE_4[model] == one.counts and overall.questions == 290
    assert overall.win is not None
    assert overall.win.estimate == FIGURE_4[model][0] / 870
    assert overall.win.low < overall.win.estimate < overall.win.high
    assert one.win == overall.win  # deterministic
    assert win_rates.win_rates(list(reversed(votes)), "base")[1] == overall


def test_win_rates_of_a_category_without_votes_are_not_zero():
    votes = [Vote("q", "math", "r", (("a",), ("b",)))]
    rates = win_rates.win_rates(votes, "b", categories=["knowledge", "math"])
    assert [one.category for one in rates] == ["knowledge", "math", "overall"]
    assert rates[0].win is None and rates[0].votes == 0
    assert "| knowledge | 0 | 0 | — | — | — | — |" in win_rates.table(rates)
    with pytest.raises(ConfigError, match="unknown baseline 'c'"):
        win_rates.win_rates(votes, "c")


def test_win_rates_leave_out_pairs_without_the_baseline(sheet):
    order = {"one": 2, "two": 1, "three": 0}
    votes = with_names(vote_by(sheet, "r", lambda entry, answer: order[answer.model]), sheet)
    rates = {(one.model, one.category): one for one in win_rates.win_rates(votes, "two")}
    assert rates["one", "overall"].counts == (8, 0, 0)
    assert rates["three", "overall"].counts == (0, 0, 8)
    assert len(rates) == 2 * 3
    # Here the baseline is the first name of one pair and the second of the other.
    rates = {(one.model, one.category): one for one in win_rates.win_rates(votes, "three")}
    assert rates["one", "overall"].counts == rates["two", "overall"].counts == (8, 0, 0)


def test_first_shown_counts_decided_comparisons():
    votes = [Vote("q", "x", "r", (("a",), ("b",)), ("a", "b")),
             Vote("p", "x", "r", (("a",), ("b",)), ("b", "a")),
             Vote("s", "x", "r", (("b",), ("a",)), ("b", "a")),
             Vote("t", "x", "r", (("a", "b"),), ("a", "b"))]  # fmt: skip
    assert win_rates.first_shown(votes) == (2, 3)


def test_cohen_is_that_of_a_known_table():
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    raw, kappa = agreement.cohen(pairs)
    assert raw == 0.7 and kappa == pytest.approx(0.4)
    assert agreement.cohen([("y", "y")] * 3) == (1.0, None)


def test_agreement_is_that_of_krippendorff():
    """His nominal example: 0.743 on 12 units of 4 observers with missing values."""
    data = [
        "1  2  3  3  2  1  4  1  2  .  .  .",
        "1  2  3  3  2  2  4  1  2  5  .  3",
        ".  3  3  3  2  3  4  2  2  5  1  .",
        "1  2  3  3  2  4  4  1  2  5  1  .",
    ]
    items = {}
    for rater, row in enumerate(data):
        for unit, label in enumerate(row.split()):
            if label != ".":
                items.setdefault(("q", str(unit), ""), {})[f"r{rater}"] = float(label)
    items = {unit: labels for unit, labels in items.items() if len(labels) > 1}
    assert agreement._alpha(items) == pytest.approx(0.743, abs=5e-4)


def test_agreement_of_equal_labels_is_undefined(sheet):
    votes = [v for r in ("x", "y", "z") for v in vote_by(sheet, r, lambda e, a: 0)]
    found = agreement.agreement(votes)
    assert found.raw == found.unanimous == 1.0 and found.alpha is None
    other = [v for r in ("x", "y") for v in vote_by(sheet_of(number=400), r, lambda e, a: 0)]
    assert agreement.kappas(other)["x", "y"] == (400, 1.0, None)


def test_results_have_all_parts_and_a_figure(tmp_path):
    sheet = sheet_of(("one", "two", "three"), 12)
    votes = vote_by(sheet, "ann", lambda entry, answer: answer.model == "one")
    votes += vote_by(sheet, "bo", lambda entry, answer: int(entry.question.id[1:]) % 3 == 0
                     and answer.model == "two")  # fmt: skip
    content, text, rates = results.summarize(with_names(votes, sheet), "three")
    results.write_results(tmp_path, content, text, rates)
    assert json.loads((tmp_path / "results.json").read_text())["raters"] == {"ann": 12, "bo": 12}
    assert "Cohen's kappa" in text and "| one | " in text and "2 raters (ann 12, bo 12)" in text
    assert (tmp_path / "win_rates.png").read_bytes().startswith(b"\x89PNG")
    assert figure.draw_win_rates(rates[:3]).startswith(b"\x89PNG")
    with pytest.raises(DataError, match="no votes"):
        results.summarize([], "three")
