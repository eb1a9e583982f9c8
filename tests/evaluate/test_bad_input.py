"""Files, prompts and answers that are not as they should be."""

import gzip
import json
import zipfile

import pytest

from qwen_jax.errors import DataError
from qwen_jax.evaluate import data_files, tasks
from qwen_jax.evaluate.data_files import DataFolders
from qwen_jax.evaluate.prompts import questions
from qwen_jax.evaluate.task import Example
from qwen_jax.evaluate.tasks import TASKS, humaneval, select
from qwen_jax.tokenizer.bpe import Tokenizer

GOLD = {"A": "a", "B": "b", "C": "c", "D": "d", "question": "q", "target": "(A)", "answer": "1"}


def read_all(folder, *names):
    return questions.read_all(select(names), DataFolders([folder]), None)


def test_missing_files_of_all_tasks_are_named_at_once(tmp_path):
    with pytest.raises(DataError) as error:
        read_all(tmp_path, "mmlu", "mmlu_chat", "gsm8k", "humaneval", "unanswerable")
    for name in ("mmlu.zip", "gsm8k_test.jsonl", "HumanEval.jsonl.gz"):
        assert str(error.value).count(f"no folder has {name}") == 1
    assert "the data of 3 tasks" in str(error.value) and "--data" in error.value.where


def _lines_of_gsm8k(folder):
    (folder / "gsm8k_test.jsonl").write_text('{"question": "a", "answer": "#### 1"}\n{"x": 1}\n')
    return "gsm8k_chat", f"{folder / 'gsm8k_test.jsonl'} line 2"


def _other_name_of_gsm8k(folder):
    (folder / "test.jsonl").write_text('{"question": "a", "answer": "#### 1"}\n')
    return "gsm8k_chat", str(folder / "test.jsonl")


def _member_of_a_zip(folder):
    with zipfile.ZipFile(folder / "mmlu.zip", "w") as file:
        file.writestr("data/test/a_test.csv", "q,1,2,3,4,A\nq,1,2,3,4,E\n")
        file.writestr("data/dev/a_dev.csv", "q,1,2,3,4,A\n")
    return "mmlu", f"{folder / 'mmlu.zip'}: data/test/a_test.csv row 2"


def _member_that_a_zip_lacks(folder):
    with zipfile.ZipFile(folder / "mmlu.zip", "w") as file:
        file.writestr("data/test/a_test.csv", "q,1,2,3,4,A\n")
    return "mmlu", str(folder / "mmlu.zip")


def _file_in_a_folder(folder):
    for path, text in (("algebra/1.json", "{"), ("algebra/2.json", "{}")):
        (folder / "MATH/test" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "MATH/test" / path).write_text(text)
    return "math_full", str(folder / "MATH/test/algebra/1.json")


def _file_of_another_version(folder):
    (folder / "piqa").mkdir()
    (folder / "piqa/valid.jsonl").write_text('{"goal": "a"}\n')
    return "piqa", str(folder / "piqa/valid.jsonl")


@pytest.mark.parametrize(
    "write",
    [
        _lines_of_gsm8k,
        _other_name_of_gsm8k,
        _member_of_a_zip,
        _member_that_a_zip_lacks,
        _file_in_a_folder,
        _file_of_another_version,
    ],
)
def test_errors_give_the_path_with_its_folder(tmp_path, write):
    inner = tmp_path / "eval sets"
    inner.mkdir()
    task, where = write(inner)
    with pytest.raises(DataError) as error:
        questions.read_all(select((task,)), DataFolders([tmp_path, inner]), None)
    assert error.value.where == where, error.value


@pytest.mark.parametrize("offset", [60, -30])
def test_archive_with_a_flipped_bit_is_damaged(tmp_path, offset):
    with zipfile.ZipFile(tmp_path / "mmlu.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("test/a_test.csv", "q,1,2,3,4,A\n" * 99)
    content = bytearray((tmp_path / "mmlu.zip").read_bytes())
    content[offset] ^= 0xFF
    (tmp_path / "mmlu.zip").write_bytes(content)
    with pytest.raises(DataError, match="(?s)zip file is damaged.*mmlu.zip"):
        read_all(tmp_path, "mmlu")


@pytest.mark.parametrize("change", [lambda raw: raw[:-9], lambda raw: raw[:40] + b"x" + raw[41:]])
def test_compressed_lines_that_are_damaged_are_named(tmp_path, change):
    raw = gzip.compress(json.dumps({"prompt": "p" * 99, "test": list(range(99))}).encode())
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(change(raw))
    with pytest.raises(DataError, match="(?s)gzip file is damaged.*HumanEval.jsonl.gz"):
        read_all(tmp_path, "humaneval")


def test_lines_that_are_not_utf8_are_named(tmp_path):
    (tmp_path / "gsm8k_test.jsonl").write_bytes(
        b'{"question": "a", "answer": "#### 1"}\n{"\xff": 1}\n'
    )
    with pytest.raises(DataError, match="(?s)not JSON.*gsm8k_test.jsonl line 2"):
        read_all(tmp_path, "gsm8k_chat")


def test_another_version_is_named_by_count_and_hash(tmp_path, monkeypatch):
    line = b'{"question": "a", "answer": "#### 1"}\n'
    (tmp_path / "gsm8k_test.jsonl").write_bytes(line)
    expected = data_files.CHECKED["gsm8k_test.jsonl"][:16]
    with pytest.raises(DataError, match=f"(?s)1 questions.*1,319.*SHA-256 .*not {expected}"):
        read_all(tmp_path, "gsm8k_chat")
    monkeypatch.setattr(tasks.gsm8k, "QUESTIONS", 1)  # the same number, other questions
    data = DataFolders([tmp_path])
    questions.read(TASKS["gsm8k_chat"], data, None)
    (sentence,) = data.differing()
    assert sentence.startswith("gsm8k_test.jsonl has contents") and expected in sentence


def test_contents_are_compared_and_not_how_they_are_packed(tmp_path, shared):
    with (
        zipfile.ZipFile(shared / "data/eval/ceval.zip") as given,
        zipfile.ZipFile(tmp_path / "ceval.zip", "w") as packed,
    ):
        for name in reversed(given.namelist()):
            packed.writestr(name, given.read(name))
    plain = gzip.decompress((shared / "data/eval/HumanEval.jsonl.gz").read_bytes())
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(gzip.compress(plain, 1))
    data = DataFolders([tmp_path, shared / "data/eval", shared / "data/eval_more"])
    questions.read_all(select(("table2", "cmmlu", "math401", "math23k")), data, 1)
    assert data.differing() == []


@pytest.mark.parametrize(
    "text",
    ["answer is " * 10_000, "\\frac{" * 17_000, "7" * 100_000, "（" * 33_000, "A" + " " * 100_000],
)
def test_answers_of_100_kb_get_a_verdict(text):
    of_exams = {"options": None, "answers": ("1",), "kind": "single_choice", "part": 0}
    of_agents = {
        "tools": {}, "inputs": {}, "tasks": ["?"], "programs": ["1"], "arguments": {"a": 1},
    }  # fmt: skip
    example = Example(0, GOLD | of_exams | of_agents, "1", "s")
    for key, task in TASKS.items():
        if task.generation is not None and not task.generation.sandboxed:
            verdict = task.generation.verdict(text, example)
            assert verdict.correct in (True, False), key


def test_endless_loop_is_wrong(monkeypatch):
    monkeypatch.setattr(humaneval, "SECONDS", 0.5)
    fields = {"prompt": "def f():\n", "entry_point": "f", "test": "def check(f):\n    f()\n"}
    example = Example(0, fields, "")
    verdict = humaneval.grade("    while True: pass\n", example)
    assert not verdict.correct and verdict.rule.startswith("time")
    assert humaneval.grade("    return 1\n", example).correct


@pytest.mark.slow
def test_prompts_of_mmlu_that_exceed_a_context_of_2048_are_373(shared):
    tokenizer = Tokenizer.from_file(shared / "reference/qwen.tiktoken")
    work = questions.read(TASKS["mmlu"], DataFolders([shared / "data/eval"]), None)
    subjects = ("high_school_european_history", "high_school_us_history", "professional_law")
    chosen = [one for one in work.examples if one.subject in subjects]
    lost = [work.encode(one, tokenizer, 2048).lost for one in chosen]
    assert sum(one > 0 for one in lost) == 373
