"""Several samples of each question: seeds, files, pass@k and resuming."""

import dataclasses
import itertools
import json

import pytest

from qwen_jax.errors import ConfigError
from qwen_jax.evaluate import compare, generation, harness, run, tasks
from qwen_jax.evaluate.samples.repeated import by_question, ks
from qwen_jax.evaluate.samples.sampling import Sampling
from qwen_jax.evaluate.summary import mean_of, summarize
from qwen_jax.evaluate.task import Mean
from qwen_jax.grading.code import pass_at_k
from tests.helpers import tiny_evaluation as tiny

SAMPLING = Sampling(samples=5, temperature=1.0, seed=3)


@pytest.fixture(scope="module")
def model() -> harness.Model:
    return tiny.model()


@pytest.fixture(autouse=True)
def short_tasks(monkeypatch):
    for name, task in tiny.TASKS.items():
        monkeypatch.setitem(tasks.TASKS, name, task)


def evaluate(model, folder, names=("unanswerable",), **settings):
    settings = {"limit": 4, "sampling": SAMPLING, "log": lambda line: None} | settings
    return run(model, names, data=[], output=folder, **settings)


def rows_of(folder, name="unanswerable"):
    return [
        json.loads(line)
        for line in (folder / f"samples/{name}.jsonl").read_text().split("\n")
        if line
    ]


def test_run_samples_each_question_several_times(model, tmp_path):
    results = evaluate(model, tmp_path)
    rows, record = rows_of(tmp_path), results["tasks"]["unanswerable"]
    assert len(rows) == 20 and len({row["id"] for row in rows}) == 20
    assert [row["sample"] for row in rows] == [0, 1, 2, 3, 4] * 4
    assert rows[7]["id"] == f"{rows[7]['question']}#2"
    texts = {row["question"]: set() for row in rows}
    for row in rows:
        texts[row["question"]].add(row["completion"])
    assert min(map(len, texts.values())) > 1  # at temperature 1 samples differ
    assert record["n"] == 4 and record["samples"] == 5 and set(record["pass@k"]) == {"1", "5"}
    assert record["score"] == pytest.approx(record["pass@k"]["1"]["score"])
    assert results["sampling"] == {"samples": 5, "temperature": 1.0, "top_p": 0.95, "seed": 3}


def test_samples_depend_on_question_and_number_only(model, tmp_path, monkeypatch):
    """Not on how many there are, on others of the set, on the order, or on a kill."""
    evaluate(model, tmp_path / "whole")
    whole = {row["id"]: row["completion"] for row in rows_of(tmp_path / "whole")}
    evaluate(model, tmp_path / "fewer", sampling=dataclasses.replace(SAMPLING, samples=2))
    assert all(whole[row["id"]] == row["completion"] for row in rows_of(tmp_path / "fewer"))
    evaluate(model, tmp_path / "other", limit=8)
    other = {row["id"]: row["completion"] for row in rows_of(tmp_path / "other")}
    assert len(both := whole.keys() & other.keys()) == 20
    assert all(whole[name] == other[name] for name in both)

    sample, made = generation.sample, itertools.count()

    def killed(*arguments, **settings):
        if next(made) == 7:
            raise KeyboardInterrupt
        return sample(*arguments, **settings)

    monkeypatch.setattr(generation, "sample", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, tmp_path / "part")
    monkeypatch.setattr(generation, "sample", sample)
    evaluate(model, tmp_path / "part")
    names = ("results.json", "samples/unanswerable.jsonl", "index.html")
    for name in names:
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(ConfigError, match="sampling.seed: was 3, now 4"):
        evaluate(model, tmp_path / "part", sampling=dataclasses.replace(SAMPLING, seed=4))


def test_sampling_changes_no_task_of_choices(model, tmp_path):
    lines = []
    evaluate(model, tmp_path, ("words", "unanswerable"), log=lines.append)
    assert "note: words: choices are compared, so nothing is sampled" in lines
    assert len(rows_of(tmp_path, "words")) == 4
    with pytest.raises(ConfigError, match="no task samples completions: words"):
        evaluate(model, tmp_path / "b", ("words",))


@pytest.mark.parametrize(
    "settings, error",
    [
        ({"samples": 3, "temperature": 0.0}, "all 3 samples of a question are equal"),
        ({"top_p": 0.9}, "top_p has no effect"),
        ({"seed": 1}, "seed has no effect"),
        ({"samples": 0}, "--samples"),
    ],
)
def test_sampling_refuses_settings_without_effect(settings, error):
    with pytest.raises(ConfigError, match=error):
        Sampling(**settings)


def test_sampling_takes_the_literatures_defaults():
    assert Sampling().is_greedy and Sampling().record() == {}
    assert Sampling(samples=10).settings == {"temperature": 0.8, "top_p": 0.95}
    seeds = {
        SAMPLING.seed_of(task, question, sample)
        for task, question, sample in itertools.product(["a", "b"], ["1", "11"], range(3))
    }
    assert len(seeds) == 12


def repeated(right, samples=4, subject=""):
    """Samples of questions of which `right` are right."""
    rest = {"truncated": 0, "extracted": "", "completion": "a", "finish": "stop", "rule": "r"}
    return [
        {"id": f"{i}#{j}", "question": str(i), "sample": j, "subject": subject, **rest}
        | {"correct": j < count, "completion_tokens": 1}
        for i, count in enumerate(right)
        for j in range(samples)
    ]


def test_summarize_estimates_pass_at_k_over_questions():
    task = tiny.TASKS["unanswerable"]
    right = [0, 1, 2, 4]
    record = summarize(task, repeated(right))
    assert record["score"] == pytest.approx(100 * sum(right) / 16) and record["n"] == 4
    for k, one in record["pass@k"].items():
        expected = [pass_at_k(4, c, int(k)) for c in right]
        mean = sum(expected) / 4
        assert one["score"] == pytest.approx(100 * mean)
        spread = sum((value - mean) ** 2 for value in expected) / 3 / 4
        assert one["stderr"] == pytest.approx(100 * spread**0.5)
        assert one["interval"][0] < one["score"] < one["interval"][1]
    # Samples of one question are no further questions.
    more = summarize(task, repeated([10 * c for c in right], samples=40))
    assert more["stderr"] == pytest.approx(record["stderr"])


def test_ks_are_1_10_100_and_all():
    assert [ks(n) for n in (1, 5, 10, 20, 200)] == [
        [1], [1, 5], [1, 10], [1, 10, 20], [1, 10, 100, 200]
    ]  # fmt: skip


def test_mean_of_takes_a_question_as_one_observation():
    mean = Mean(("a", "b"))
    found = mean_of(mean, {"a": repeated([4, 0]), "b": repeated([2, 0])})
    assert found is not None and found["n"] == 2 and found["score"] == pytest.approx(37.5)


def test_compare_takes_a_question_as_one_example(model, tmp_path):
    for name, seed in (("a", 3), ("b", 4)):
        evaluate(model, tmp_path / name, sampling=dataclasses.replace(SAMPLING, seed=seed))
    found = compare.compare(tmp_path / "a", tmp_path / "b", tmp_path / "c")["tasks"]["unanswerable"]
    assert found["n"] == 4
    shares = [
        {row["id"]: row["correct"] for row in by_question(rows_of(tmp_path / name))}
        for name in ("a", "b")
    ]
    differences = [shares[0][one] - shares[1][one] for one in shares[0]]
    assert found["difference"] == pytest.approx(100 * sum(differences) / 4)
    evaluate(model, tmp_path / "d", sampling=dataclasses.replace(SAMPLING, samples=2))
    with pytest.raises(ConfigError, match="samples: 5 and 2"):
        compare.compare(tmp_path / "a", tmp_path / "d", tmp_path / "e")
