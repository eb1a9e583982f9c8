"""The tasks @lm_eval without lm-eval: their prompts are those that were compared with it."""

import collections

import pytest

from qwen_jax.errors import DataError
from qwen_jax.evaluate.data_files import DataFolders
from qwen_jax.evaluate.generation import Completion, sample
from qwen_jax.evaluate.prompts import questions
from qwen_jax.evaluate.server.client import Refused
from qwen_jax.evaluate.server.model import _failed
from qwen_jax.evaluate.summary import ceiling, summarize
from qwen_jax.evaluate.task import Example, Item
from qwen_jax.evaluate.tasks import TASKS, gsm8k, lettered

# SHA-256 of all prompts, choices and answers. test_lm_eval_protocol.py found the prompts equal to
# those of lm-eval 0.4.13.
HASHES = {
    "mmlu": "8598f7d082e2bed6",
    "ceval": "b091c9f3886c1cd1",
    "cmmlu": "698eb722a9b46ec0",
    "gsm8k": "df00cc88d4926e33",
    "math": "227ceb52aaa4ad29",
    "humaneval": "461530862ef2aa66",
    "mbpp": "8c1e7bc92f234cb9",
    "bbh": "070c9c0b08a4f694",
}
TRAIN = 2_000  # questions that the shared part of GSM8K's training set has


@pytest.fixture
def data(shared, tmp_path, monkeypatch) -> DataFolders:
    rows = (shared / "data/chat/gsm8k_train_2000.jsonl").read_bytes()
    (tmp_path / "gsm8k_train.jsonl").write_bytes(rows)
    monkeypatch.setattr(gsm8k, "TRAIN_QUESTIONS", TRAIN)
    return DataFolders([tmp_path, shared / "data/eval", shared / "data/eval_more"])


@pytest.mark.parametrize("key", HASHES)
def test_prompts_are_those_compared_with_lm_eval(data, key):
    work = questions.read(TASKS[f"{key}@lm_eval"], data, None)
    assert questions.hash_of(work)[:16] == HASHES[key]
    assert not work.task.macro and work.task.protocol == "lm_eval"


def test_gsm8k_has_worked_examples_of_its_own_for_each_question(data):
    work = questions.read(TASKS["gsm8k@lm_eval"], data, None)
    found = {tuple(shot.index for shot in work.shots_of(one)) for one in work.examples}
    assert len(found) == len(work.examples) and all(len(set(one)) == 5 for one in found)
    some = questions.read(TASKS["gsm8k@lm_eval"], data, 3)  # --limit changes no prompt
    assert [some.prompt(one) for one in some.examples] == [
        work.prompt(one) for one in work.examples if one in some.examples
    ]


@pytest.mark.parametrize(
    "text, strict, flexible",
    [
        ("16 - 7 = 9\n#### 9", True, True),
        ("It makes $9.", False, True),
        ("#### 9\n#### 8", True, False),
        ("#### 9.0", False, False),
        ("####9", False, True),
        ("", False, False),
    ],
)
def test_gsm8k_gives_both_verdicts(text, strict, flexible):
    example = Example(0, {"question": "?", "answer": "So\n#### 9"}, "9")
    found = TASKS["gsm8k@lm_eval"].generation.verdict(text, example)
    assert (found.correct, found.also) == (strict, {"flexible": flexible})


@pytest.mark.parametrize(
    "text, correct, anywhere",
    [
        ("Final Answer: The final answer is $x = 1{,}000$ cm. I hope it is correct.", True, True),
        (r"So it is $\boxed{1000}$.", False, True),
        ("Final Answer: The final answer is $7$. I hope it is correct.", False, False),
        ("Final Answer: The final answer is $1000$. ", True, True),
        ("Final Answer: The final answer is $1000$.", False, True),
    ],
)
def test_math_needs_the_sentence_of_minerva(text, correct, anywhere):
    example = Example(0, {"question": "?"}, r"1,\!000")
    found = TASKS["math@lm_eval"].generation.verdict(text, example)
    assert (found.correct, found.also) == (correct, {"anywhere": anywhere})


def test_summary_has_the_score_of_every_verdict():
    task = TASKS["gsm8k@lm_eval"]
    item = Item(Example(0, {"question": "?", "answer": "#### 9"}, "9"), "prompt", 0)
    samples = [
        sample(item, Completion(text, "stop", 3), task, prompt_tokens=1)
        for text in ("#### 9", "It is 9", "It is 9.", "8")
    ]
    record = summarize(task, samples)
    assert (record["score"], record["score_flexible"]) == (25, 75)
    failed = _failed(item, Refused("too long", "", ""))
    record = summarize(task, [*samples, failed])
    assert (record["score"], record["score_flexible"], record["errors"]) == (20, 60, 1)


def test_ceiling_of_bbh_lacks_what_a_stop_string_cuts(data):
    work = questions.read(TASKS["bbh@lm_eval"], data, None)
    # lm-eval stops at "Q", so the answer (Q) cannot be given.
    answers = collections.Counter(one.answer for one in work.examples)
    assert answers["(Q)"] == 7
    expected = 100 * (len(work.examples) - 7) / len(work.examples)
    assert ceiling(work.task, work.examples) == pytest.approx(expected)


def test_a_subject_without_a_description_is_refused():
    with pytest.raises(DataError, match="no description of 'alchemy'"):
        lettered.name_of("alchemy", {"logic": "逻辑学"})
