"""The harness: results, samples, and evaluations that were killed."""

import dataclasses
import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.evaluate import harness, likelihood, run, tasks
from qwen_jax.evaluate.summary import TrainingText, summarize
from qwen_jax.evaluate.task import Example, Questions, Task
from qwen_jax.model.spec import init_params
from qwen_jax.model.transformer import forward
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.utils.append_only import open_exclusive

TOKENIZER = Tokenizer({bytes([byte]): byte for byte in range(256)})
CONFIG = dataclasses.replace(
    sizes.TINY,
    context_length=64,
    vocab_size=TOKENIZER.vocab_size,
    num_layers=1,
    initializer_range=0.3,
)


def read(data) -> Questions:
    examples = [
        Example(i, {letter: letter * 2 for letter in "ABCD"}, "ABCD"[i * 7 % 4], f"s{i % 3}")
        for i in range(12)
    ]
    shots = {f"s{i}": tuple(examples[i : i + 2]) for i in range(3)}
    return Questions(tuple(examples), shots)


TOY = Task(
    name="toy",
    protocol="qwen",
    read=read,
    template=lambda example, shots: f"{len(shots)} {example.subject} {example.index}:",
    files=(),
    counts=12,
    source="none",
    num_shots=1,
    choices=lambda example: tuple(example.fields[letter] for letter in "ABCD"),
    groups={"first": frozenset({"s0", "s1"})},
)


@pytest.fixture(scope="module")
def model() -> harness.Model:
    params = jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(0))
    return harness.Model(CONFIG, params, TOKENIZER)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "toy", TOY)


def evaluate(model, folder, **settings):
    return run(model, ["toy"], data=[folder.parent], output=folder, log=print, **settings)


def files_of(folder) -> dict[str, Any]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "times.json"
    }


def test_run_writes_scores_samples_and_hashes(model, tmp_path):
    results = evaluate(model, tmp_path / "a")
    record = results["tasks"]["toy"]
    lines = (tmp_path / "a/samples/toy.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    assert [one["id"] for one in samples] == [f"s{i % 3}/{i}" for i in range(12)]
    assert samples[4]["prompt"] == "1 s1 4:" and len(samples[4]["logprobs"]) == 4
    assert record["n"] == 12 and record["score"] == 100 * sum(s["correct"] for s in samples) / 12
    assert record["groups"]["first"]["n"] == 8 and record["floors"]["constant"] == 25
    assert json.loads((tmp_path / "a/results.json").read_text()) == json.loads(json.dumps(results))
    assert "toy" in json.loads((tmp_path / "a/times.json").read_text())


def test_run_that_was_killed_writes_the_same_bytes(model, tmp_path, monkeypatch):
    evaluate(model, tmp_path / "whole")
    sample, made = likelihood.sample, []

    def killed(*arguments):
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(sample(*arguments))
        return made[-1]

    monkeypatch.setattr(likelihood, "sample", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, tmp_path / "part")
    partial = tmp_path / "part/samples/toy.jsonl.partial"
    partial.write_bytes(partial.read_bytes()[:-9])  # as kill -9 may leave it
    monkeypatch.setattr(likelihood, "sample", lambda *a: made.append(None) or sample(*a))
    made.clear()
    evaluate(model, tmp_path / "part")
    assert len(made) == 12 - 4
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "part")


def test_run_takes_examples_from_all_of_the_set_up_to_a_limit(model, tmp_path):
    record = evaluate(model, tmp_path / "a", limit=5)["tasks"]["toy"]
    assert record["n"] == 5 and record["of"] == 12
    lines = (tmp_path / "a/samples/toy.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["s0/0", "s2/2", "s1/4", "s1/7", "s0/9"]
    with pytest.raises(ConfigError, match="(?s)limit: was 5, now None"):
        evaluate(model, tmp_path / "a")


def test_folder_has_one_writer(model, tmp_path):
    with open_exclusive(tmp_path / ".lock"), pytest.raises(ConfigError) as caught:
        evaluate(model, tmp_path)
    assert "another process is writing to the folder" in caught.value.what
    assert caught.value.where == str(tmp_path)


def test_temporary_files_of_others_stay(model, tmp_path):
    evaluate(model, tmp_path / "a")
    kept = [tmp_path / "a" / name for name in ("x.writing", "sub/model.1.writing")]
    left = [
        tmp_path / "a" / name
        for name in ("results.json.1.writing", "samples/toy.jsonl.1.writing", "page/toy/1.writing")
    ]
    for path in (*kept, *left):
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    evaluate(model, tmp_path / "a")
    assert all(path.exists() for path in kept) and not any(path.exists() for path in left)


@pytest.mark.parametrize(
    "name, content",
    [
        ("results.json", "{"),
        ("results.json", '{"tasks": []}'),
        ("results.json", '{"tasks": {"toy": null}}'),
        ("results.json", '{"tasks": {}, "data": 1}'),
        ("times.json", "x"),
    ],
)
def test_damaged_results_are_named_before_anything_is_computed(model, tmp_path, name, content):
    evaluate(model, tmp_path / "a", limit=2)
    for path in (tmp_path / "a/samples").iterdir():
        path.unlink()
    (tmp_path / "a" / name).write_text(content)
    with pytest.raises(DataError) as caught:
        evaluate(model, tmp_path / "a", limit=2)
    assert (
        caught.value.where == str(tmp_path / "a" / name) and "delete the file" in caught.value.fix
    )
    assert not [*(tmp_path / "a/samples").iterdir()]
    (tmp_path / "a" / name).unlink()
    evaluate(model, tmp_path / "a", limit=2)


def test_run_says_what_extends_its_context(model, tmp_path):
    lines = []
    for name, length in (("a", None), ("b", 200), ("c", 256)):
        settings: dict[str, Any] = {"max_length": length, "log": lines.append}
        run(model, ["toy"], data=[tmp_path], output=tmp_path / name, limit=2, **settings)
    assert [line for line in lines if line.startswith("context")] == [
        "context: 64 tokens (trained at 64); serve and chat extend it to 256, and so does "
        "--max_length=256",
        "context: 200 tokens (trained at 64, extended by dynamic NTK)",
        "context: 256 tokens (trained at 64, extended by dynamic NTK)",
    ]
    lines = [(tmp_path / name / "samples/toy.jsonl").read_text() for name in ("a", "b", "c")]
    samples = {re.sub(r', "evaluation".*', "", line) for line in lines}
    assert len(samples) == 1  # a short prompt has the same score in each


def test_run_with_a_longer_context_scores_prompts_whole(model, tmp_path, monkeypatch):
    """A prompt beyond the training length is scored as a forward pass with dynamic NTK does."""
    long = dataclasses.replace(TOY, template=lambda example, shots: f"{example.index}:" * 90)
    monkeypatch.setitem(tasks.TASKS, "toy", long)
    cut = evaluate(model, tmp_path / "a", limit=2)
    whole = evaluate(model, tmp_path / "b", limit=2, max_length=256)
    assert [one["tasks"]["toy"]["truncated"] for one in (cut, whole)] == [2, 0]
    row = json.loads((tmp_path / "b/samples/toy.jsonl").read_text().splitlines()[0])
    ids = np.asarray(TOKENIZER.encode(row["prompt"] + "AA"))
    logits = forward(model.params, jnp.asarray(ids[None, :-1]), config=CONFIG)
    logprobs = jax.nn.log_softmax(logits[0].astype(jnp.float32))
    assert len(ids) > 2 * CONFIG.context_length
    expected = logprobs[-2, ids[-2]] + logprobs[-1, ids[-1]]
    assert row["logprobs"][0] == pytest.approx(float(expected), abs=1e-3)


def test_run_searches_the_training_text_once_for_all_examples(model, tmp_path):
    searched = []

    def search(examples, folders):
        searched.append((len(examples), folders))
        return lambda some: [one.index < 3 for one in some]

    text = TrainingText(("web",), search)
    found = evaluate(model, tmp_path / "a", training_text=text)["tasks"]["toy"]["training_text"]
    assert searched == [(12, ("web",))]
    assert found == {"folders": ["web"], "examples": 3, "first": ["s0/0", "s1/1", "s2/2"]}


def test_run_fails_if_the_model_tells_no_choices_apart(model, tmp_path):
    constant = model._replace(params=jax.tree.map(lambda x: x * 0, model.params))
    with pytest.raises(ConfigError, match="equal likelihood"):
        evaluate(constant, tmp_path / "a")


def sample_of(subject, correct):
    names = ("correct", "correct_sum", "correct_per_byte", "correct_per_token")
    rest = {"truncated": 0, "ties": 0, "extracted": "A"}
    return {"subject": subject} | dict.fromkeys(names, correct) | rest


def test_summarize_averages_over_examples_or_subjects():
    samples = [sample_of("a", True), *(sample_of("b", x) for x in (False, False, False, True))] * 5
    over_examples = summarize(TOY, samples)
    assert over_examples["score"] == 40 and over_examples["stderr"] == pytest.approx(10)
    over_subjects = summarize(dataclasses.replace(TOY, macro=True), samples)
    assert over_subjects["score"] == 62.5 and over_subjects["stderr"] == pytest.approx(
        4.967, abs=1e-3
    )
    subject = over_subjects["subjects"]["b"]
    assert (subject["n"], subject["score"]) == (20, 25)
    assert subject["interval"] == pytest.approx([11.186, 46.870], abs=1e-3)


def test_summarize_counts_points():
    task = dataclasses.replace(TOY, points={"a": 3.0, "b": 1.5})
    samples = [sample_of("a", i < 5) for i in range(10)] + [sample_of("b", True)] * 20
    found = summarize(task, samples)
    assert found["average"] == "points" and found["points"] == {"a": 3.0, "b": 1.5}
    assert found["score"] == pytest.approx(100 * (5 * 3 + 20 * 1.5) / (10 * 3 + 20 * 1.5))
    # Half of the points are a's, whose mean has the variance 0.25 / 9; b has none.
    assert found["stderr"] == pytest.approx(100 * 0.5 * (0.25 / 9) ** 0.5)
    few = summarize(task, [sample_of("a", True), sample_of("b", False)])
    assert few["score"] == pytest.approx(100 * 3 / 4.5)
    equal = summarize(dataclasses.replace(TOY, points={"a": 2, "b": 2}), samples)
    assert equal["score"] == pytest.approx(summarize(TOY, samples)["score"])


def test_run_says_how_many_rows_were_left_out(model, tmp_path, monkeypatch):
    dropping = dataclasses.replace(
        TOY, read=lambda data: dataclasses.replace(read(data), dropped=3)
    )
    monkeypatch.setitem(tasks.TASKS, "toy", dropping)
    lines = []
    found = run(model, ["toy"], data=[tmp_path], output=tmp_path / "a", log=lines.append, limit=2)
    assert found["tasks"]["toy"]["dropped"] == 3
    assert any("toy: rows without a right answer, left out: 3" in line for line in lines)
    assert "dropped" in (tmp_path / "a/index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("right", [0, 3, 5])
def test_summary_of_one_example_per_subject_has_a_width(right):
    task = dataclasses.replace(TOY, macro=True)
    samples = [sample_of(f"s{i}", i < right) for i in range(5)]
    found = summarize(task, samples)
    low, high = found["interval"]
    assert high - low > 40 and low <= found["score"] <= high
    assert found["stderr"] == pytest.approx(100 * (right / 5 * (1 - right / 5) / 5) ** 0.5)


def test_run_keeps_the_results_of_other_tasks_in_its_folder(model, tmp_path, monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "second", dataclasses.replace(TOY, name="second"))
    first = evaluate(model, tmp_path / "a")
    both = run(model, ["second"], data=[tmp_path], output=tmp_path / "a", log=print)
    assert list(both["tasks"]) == ["toy", "second"]
    assert both["tasks"]["toy"] == first["tasks"]["toy"]
    page = (tmp_path / "a/index.html").read_text(encoding="utf-8")
    assert "toy (none" in page and "second (none" in page
    assert set(json.loads((tmp_path / "a/times.json").read_text())) == {"toy", "second"}


def test_run_refuses_a_folder_of_other_settings_before_it_writes(model, tmp_path):
    evaluate(model, tmp_path / "a", limit=5)
    before = files_of(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"(?s)limit: was 5, now 6.*--output"):
        evaluate(model, tmp_path / "a", limit=6)
    assert files_of(tmp_path / "a") == before
    evaluate(model, tmp_path / "a", limit=5)


def test_an_evaluation_that_failed_before_its_first_sample_locks_no_settings(
    model, tmp_path, monkeypatch
):
    def fail(*_):
        raise DataError("the prompt does not fit.", "toy 0", "set a larger --max_length.")

    with monkeypatch.context() as patch:
        patch.setattr(harness, "_before_grading", fail)
        with pytest.raises(DataError, match="max_length"):
            evaluate(model, tmp_path / "a", limit=5)
    assert [path for path in (tmp_path / "a").rglob("*") if path.is_file()] == []
    evaluate(model, tmp_path / "a", limit=6, max_length=256)
    before = files_of(tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(harness, "_before_grading", fail)
        with pytest.raises(DataError, match="max_length"):
            evaluate(model, tmp_path / "a", limit=6, max_length=256)
    assert before.items() <= files_of(tmp_path / "a").items()
