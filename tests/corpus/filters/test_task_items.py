"""Test sets as evaluation reads them, in the index that keeps them out of training text."""

import dataclasses
import json

import pytest

from experiments import prepare_data
from qwen_jax.corpus.filters import task_items
from qwen_jax.corpus.filters.decontaminate import Index
from qwen_jax.corpus.filters.test_items import TestItem, read_test_sets
from qwen_jax.data import shards
from qwen_jax.data.document import Document
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.evaluate.summary import Decontamination, TrainingText
from qwen_jax.evaluate.task import Example
from qwen_jax.evaluate.tasks.appendix import natural_questions, piqa
from qwen_jax.tokenizer.bpe import Tokenizer
from tests.helpers import benchmark_rows

LONG = " ".join(f"word{i}" for i in range(20))


def test_texts_leave_out_short_answers():
    choices = {"question": "Which?", "A": "one", "B": "two", "answer": "B", "subject": "s"}
    assert Example(0, choices, "B").texts() == ("Which?\none\ntwo",)
    worked = {"question": "How many?", "answer": f"{LONG} <<1+1=2>>2 #### 2"}
    assert Example(0, worked, "2").texts() == ("How many?", f"{LONG} 2 #### 2")
    program = {"text": "Write f.", "code": "x", "test_list": [LONG, "assert f() == 1"]}
    assert Example(0, program, "x").texts() == ("Write f.", f"{LONG}\nassert f() == 1")


def test_guarded_says_which_examples_an_index_has(tmp_path):
    Index.build([TestItem("toy", "0", LONG)]).save(tmp_path / "index.npz")
    examples = [
        Example(0, {"question": LONG}, ""),
        Example(1, {"question": "something that is " + LONG[::-1]}, ""),
        Example(2, {"question": "other", "solution": f"and so {LONG}."}, ""),
    ]
    has = task_items.guarded(tmp_path / "index.npz")
    assert has(examples) == [True, False, True]
    record = Decontamination("index.npz", has).record(examples)
    assert record["in_index"] == 2 and record["first_not_in_index"] == ["1"]


def test_index_of_a_run_is_found_through_what_it_started_from(tmp_path):
    (tmp_path / "corpus/shards/web/train").mkdir(parents=True)
    (tmp_path / "corpus" / task_items.INDEX).write_bytes(b"")
    for name, settings in (
        ("base", {"data": {"sources": [f"{tmp_path}/corpus/shards/web/train=2.5"]}}),
        ("chat", {"data": {"conversations": ["a.jsonl"]}, "init_from": str(tmp_path / "base")}),
        ("other", {"data": {"sources": [str(tmp_path)]}, "init_from": str(tmp_path / "none")}),
        ("loop", {"init_from": str(tmp_path / "loop")}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(settings))
    expected = tmp_path / "corpus" / task_items.INDEX
    assert task_items.index_of(tmp_path / "base") == expected
    assert task_items.index_of(tmp_path / "chat") == expected
    assert task_items.index_of(tmp_path / "other") is None
    assert task_items.index_of(tmp_path / "loop") is None


def test_prepare_data_reads_test_sets_through_tasks(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/any.txt").write_text("of no format")
    filters = prepare_data.Filters(
        test_sets=str(tmp_path / "tests"), test_tasks=("unanswerable",), rules=False
    )
    config = prepare_data.Config(
        sources=("x",), output=str(tmp_path / "out"), filters=filters, near_dedup=False
    )
    (tmp_path / "out").mkdir()
    index = Index.load(prepare_data.stages(config)[-1].index)
    text = "He was asked how many birds flew over Paris on the day that Napoleon was crowned, and"
    assert [match.test_set for match in index.matches(text)] == ["unanswerable"]
    with pytest.raises(ConfigError, match="--filters.test_tasks"):
        prepare_data.check(
            dataclasses.replace(config, filters=dataclasses.replace(filters, test_sets=None))
        )


def test_read_tasks_reads_the_appendix_sets_in_their_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(piqa, "QUESTIONS", 2)
    monkeypatch.setattr(natural_questions, "QUESTIONS", 1)
    goals = [
        {"goal": f"{LONG} {i}", "sol1": "with a spoon", "sol2": "with a fork"} for i in range(2)
    ]
    benchmark_rows.write(tmp_path / piqa.FILE, goals)
    (tmp_path / piqa.LABELS).write_text("0\n1\n")
    question = {"question": "who wrote it", "answer": ["somebody"]}
    benchmark_rows.write(tmp_path / "clone/nq_open/NQ-open.dev.jsonl", [question])
    names = ["piqa", "natural_questions"]
    assert list(task_items.read_tasks(names, [tmp_path], "--tasks")) == [
        ("piqa", "0", f"{LONG} 0\nwith a spoon\nwith a fork"),
        ("piqa", "1", f"{LONG} 1\nwith a spoon\nwith a fork"),
        ("natural_questions", "0", "who wrote it"),
    ]


def test_read_tasks_reads_what_the_readers_of_files_read(shared):
    data = shared / "data"
    items = set(read_test_sets(data / "eval"))
    found = list(task_items.read_tasks(["gsm8k", "gsm8k_chat", "mbpp"], [data], "--tasks"))
    texts = {(item.test_set, item.text) for item in items}
    own = [(one.test_set, one.text) for one in found if one.test_set == "gsm8k"]
    assert len(own) == len(set(own)) == 2 * 1_319
    assert not any(one.test_set == "gsm8k_chat" for one in found)  # the same examples
    assert set(own) <= texts
    assert {one.item for one in found if one.test_set == "mbpp"} == set(map(str, range(11, 511)))
    with pytest.raises(ConfigError, match="--tasks"):
        list(task_items.read_tasks(["gsm9k"], [data], "--tasks"))


def test_occurring_says_which_examples_shards_have(tmp_path, monkeypatch):
    monkeypatch.setattr(task_items, "_DOCUMENTS", 1)  # searched at once
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)})
    other = " ".join(f"other{i}" for i in range(300))
    texts = [f"before {LONG} after", other, "the sea"]
    documents = [Document(str(i), text) for i, text in enumerate(texts)]
    shards.write(documents, tmp_path / "web", tokenizer)
    examples = [
        Example(0, {"question": LONG.upper()}, ""),
        Example(1, {"question": f"{LONG[:40]} and nothing else of it, or so it seems"}, ""),
        Example(0, {"question": other[-200:]}, "", "s"),
    ]
    has = task_items.occurring(examples, [tmp_path / "web/train"])
    assert has(examples) == [True, False, True]
    record = TrainingText(("web",), task_items.occurring, has).record(examples[1:])
    assert record == {"folders": ["web"], "examples": 1, "first": ["s/0"]}
    with pytest.raises(DataError, match="no manifest.json"):
        task_items.occurring(examples, [tmp_path / "web"])
