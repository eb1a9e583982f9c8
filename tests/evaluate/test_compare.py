"""Comparison of two evaluations on the same examples."""

import itertools
import json

import numpy as np
import pytest

from qwen_jax.errors import ConfigError, DataError
from qwen_jax.evaluate import compare
from qwen_jax.evaluate.samples import sealed
from qwen_jax.utils.jsonl import write_rows


def write(folder, verdicts, *, average="examples", prompt="q", **changes):
    """Writes an evaluation of "toy" with a verdict for each (subject, verdict)."""
    (folder / "samples").mkdir(parents=True)
    rows = [
        {
            "id": str(i),
            "subject": subject,
            "prompt": f"{prompt}{i}",
            "gold": "A",
            "extracted": "A" if correct else "B",
            "rule": "r",
            "correct": correct,
        }
        for i, (subject, correct) in enumerate(verdicts)
    ]
    write_rows(folder / "samples/toy.jsonl", [sealed.seal(row, "e") for row in rows])
    record = {
        "protocol": "qwen",
        "n": len(rows),
        "average": average,
        "score": 50.0,
        "truncated": 0,
        "errors": 0,
        "grader": {"name": "g", "sha256": "1"},
    } | changes
    (folder / "results.json").write_text(json.dumps({"tasks": {"toy": record}}))
    return folder


def test_compare_writes_the_difference_and_what_flipped(tmp_path):
    a = write(tmp_path / "a", [("s", i < 70) for i in range(100)])
    b = write(tmp_path / "b", [("s", 10 <= i < 60 or i == 99) for i in range(100)], truncated=3)
    found = compare.compare(a, b, tmp_path / "out")
    one = found["tasks"]["toy"]
    assert one["difference"] == pytest.approx(19)
    assert (one["only_a_right"], one["only_b_right"]) == (20, 1)
    assert one["p"] == pytest.approx(2 * 22 / 2**21)  # 0 or 1 of 21 coins, both sides
    # The variance of a difference of -1, 0, 1 with mean m and second moment s is s - m^2.
    half = 1.96 * np.sqrt((0.21 - 0.19**2) / 100) * 100
    assert one["interval"] == pytest.approx([19 - half, 19 + half], abs=1.1)
    lines = (tmp_path / "out/flips/toy.jsonl").read_text().splitlines()
    flips = [json.loads(line) for line in lines]
    assert [row["id"] for row in flips] == [*map(str, range(10)), *map(str, range(60, 70)), "99"]
    assert flips[-1]["b"]["correct"] and flips[-1]["a"]["extracted"] == "B"
    shown = compare.table(found)
    assert "+19.0" in shown and "truncated: 0 of A, 3 of B" in shown
    assert compare.compare(a, b, tmp_path / "again") == found  # seeded


def test_compare_averages_over_subjects_as_the_score_does(tmp_path):
    verdicts = [("one", True)] * 2 + [("many", False)] * 8
    a = write(tmp_path / "a", verdicts, average="subjects")
    b = write(tmp_path / "b", [(subject, False) for subject, _ in verdicts], average="subjects")
    found = compare.compare(a, b, tmp_path / "out")["tasks"]["toy"]
    assert found["difference"] == 50 and found["interval"] == [50, 50]


def test_compare_counts_points_as_the_score_does(tmp_path):
    verdicts = [("one", True)] * 2 + [("many", False)] * 8
    settings = {"average": "points", "points": {"one": 6, "many": 0.5}}
    a = write(tmp_path / "a", verdicts, **settings)
    b = write(tmp_path / "b", [(subject, False) for subject, _ in verdicts], **settings)
    found = compare.compare(a, b, tmp_path / "out")["tasks"]["toy"]
    assert found["difference"] == 75 and found["interval"] == [75, 75]
    c = write(tmp_path / "c", verdicts, average="points", points={"one": 1, "many": 1})
    with pytest.raises(ConfigError, match="points"):
        compare.compare(a, c, tmp_path / "other")


def test_bootstrap_equals_the_distribution_of_all_resamples():
    values = [1, 1, -1, 0]
    means = [sum(drawn) / 4 for drawn in itertools.product(values, repeat=4)]
    found = compare.bootstrap({"s": values}, macro=False, samples=200_000)
    assert found.estimate == 0.25
    assert (found.low, found.high) == tuple(np.percentile(means, [2.5, 97.5]))


def test_holm():
    assert compare.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])


@pytest.mark.parametrize(
    "changes, error",
    [
        ({"prompt": "other "}, "the prompt of an example differs.*toy 0"),
        ({"grader": {"name": "g", "sha256": "2"}}, "grader"),
        ({"protocol": "lm_eval"}, "protocol: 'qwen' and 'lm_eval'"),
    ],
)
def test_compare_refuses_what_was_evaluated_in_two_ways(tmp_path, changes, error):
    a = write(tmp_path / "a", [("s", True)])
    b = write(tmp_path / "b", [("s", True)], **changes)
    with pytest.raises(ConfigError, match="(?s)" + error):
        compare.compare(a, b, tmp_path / "out")


def test_compare_refuses_samples_that_were_edited(tmp_path):
    a, b = (write(tmp_path / name, [("s", True), ("s", False)]) for name in "ab")
    path = b / "samples/toy.jsonl"
    path.write_text(path.read_text().replace('"correct": false', '"correct": true'))
    with pytest.raises(DataError, match="'1' was changed after it was written") as caught:
        compare.compare(a, b, tmp_path / "out")
    assert caught.value.where == f"{path} line 2"


def test_compare_names_what_is_missing(tmp_path):
    a = write(tmp_path / "a", [("s", True)])
    with pytest.raises(DataError, match="results.json"):
        compare.compare(a, tmp_path / "none", tmp_path / "out")
    b = write(tmp_path / "b", [("s", True)])
    (b / "results.json").write_text(json.dumps({"tasks": {"other": {}}}))
    with pytest.raises(ConfigError, match="no task is in both: toy; other"):
        compare.compare(a, b, tmp_path / "out")
