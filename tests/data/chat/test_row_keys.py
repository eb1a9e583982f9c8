"""Keys that other tools write next to a prompt or in a turn: used, or the row is skipped."""

import pathlib

import pytest

from qwen_jax.data.chat import dialogue, messages
from qwen_jax.data.chat.conversations import Counts, read_conversations
from tests.helpers.chat_rows import outcome

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
ASKED, ANSWERED = ["user", "q", False], ["assistant", "a", True]
EARLIER = [["user", "h", False], ["assistant", "k", True]]


@pytest.mark.parametrize("key", ["system_message", "systemPrompt"])
def test_read_conversations_reads_other_names_of_the_system_message(tmp_path, key):
    for row in ({"messages": [Q, A]}, {"prompt": "q", "completion": "a"}):
        found, _ = outcome(tmp_path, "sft", {key: "s", **row})
        assert found == {"turns": [["system", "s", False], ASKED, ANSWERED]}
    found, _ = outcome(tmp_path, "pairs", {key: "s", "prompt": "q", "chosen": "a", "rejected": "b"})
    assert found["prompt"] == [["system", "s"], ["user", "q"]]


@pytest.mark.parametrize("key", ["chat_history", "conversation_history", "previous_turns"])
@pytest.mark.parametrize("turns", [[["h", "k"]], [{**Q, "content": "h"}, {**A, "content": "k"}]])
def test_read_conversations_reads_other_names_of_earlier_turns(tmp_path, key, turns):
    row = {key: turns, "query": "q", "response": "a"}
    assert outcome(tmp_path, "sft", row)[0] == {"turns": [*EARLIER, ASKED, ANSWERED]}
    both = outcome(tmp_path, "sft", {**row, "history": [["x", "y"]]})[0]
    assert "two histories" in both["skip"]


def test_read_conversations_takes_instructions_as_the_prompt(tmp_path):
    row = {"instructions": "Translate.", "input": "q", "output": "a"}
    found, _ = outcome(tmp_path, "sft", row)
    assert found == {"turns": [["user", "Translate.\nq", False], ANSWERED]}
    row = {"instructions": "Be brief.", "messages": [Q, A]}
    assert "messages and instructions differ" in outcome(tmp_path, "sft", row)[0]["skip"]


@pytest.mark.parametrize(
    "keys, reason",
    [
        ({"passage": "The sky is blue."}, "documents next to a prompt"),
        ({"documents": [{"text": "x"}]}, "documents next to a prompt"),
        ({"A": "1", "B": "2", "C": "3", "D": "4"}, "choices next to a question"),
        ({"option_a": "1", "option_b": "2"}, "choices next to a question"),
        ({"choice1": "x", "choice2": "y"}, "choices next to a question"),
        ({"attachments": ["x.pdf"]}, "attached files"),
        ({"chain_of_thought": "hm"}, "thoughts in a form"),
        ({"loss_scale": 0}, "not to be trained on (loss_scale)"),
        ({"loss_weight": 0.3}, "loss_weight is neither 0 nor 1"),
    ],
)
def test_read_conversations_skips_a_row_with_more_than_the_prompt(tmp_path, keys, reason):
    for row in ({"question": "q", "answer": "a"}, {"messages": [Q, A]}):
        assert reason in outcome(tmp_path, "sft", {**row, **keys})[0]["skip"]
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert reason in outcome(tmp_path, "pairs", {**pair, **keys})[0]["skip"]


@pytest.mark.parametrize("key", ["loss_weight", "loss_scale", "training"])
def test_read_conversations_trains_only_turns_whose_mark_of_another_tool_says_so(tmp_path, key):
    turns = [Q, {**A, key: 0}, Q, {**A, key: 1}]
    found, _ = outcome(tmp_path, "sft", {"messages": turns})
    assert found == {"turns": [ASKED, ["assistant", "a", False], ASKED, ANSWERED]}
    turns[1][key] = 0.5
    assert f"{key} is '0.5'" in outcome(tmp_path, "sft", {"messages": turns})[0]["refuse"]


@pytest.mark.parametrize("key", messages.UNCLEAR_MARKS)
def test_read_conversations_skips_a_mark_whose_sense_is_not_clear(tmp_path, key):
    row = {"messages": [Q, {**A, key: [{"train": False}]}]}
    assert f"not supported ({key})" in outcome(tmp_path, "sft", row)[0]["skip"]


@pytest.mark.parametrize("label", [0, 0.0, False])
def test_read_conversations_skips_a_bad_completion_whose_label_is_a_number(tmp_path, label):
    row = {"prompt": "q", "completion": "a", "label": label}
    assert outcome(tmp_path, "sft", row)[0] == {"skip": "an answer labeled as bad"}
    assert outcome(tmp_path, "sft", {**row, "label": 1})[0] == {"turns": [ASKED, ANSWERED]}


def test_read_prompts_skips_a_system_message_without_a_prompt(tmp_path):
    row = {"messages": [{"role": "system", "content": "s"}]}
    assert outcome(tmp_path, "prompt", row)[0] == {"skip": "no prompt"}


def test_labels_of_a_csv_may_be_numbers(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,completion,label\nHi,Hello.,1\nHi,Go.,0\n")
    counts = Counts()
    assert len(list(read_conversations([tmp_path / "a.csv"], counts))) == 1
    assert counts.skipped == {"an answer labeled as bad": 1}


def test_keys_of_histories_and_marks_are_in_the_guide():
    guide = pathlib.Path(__file__).parents[3] / "docs/guides/chat_data.md"
    text = guide.read_text(encoding="utf-8")
    keys = (*dialogue.HISTORIES, *messages.TURN_MARKS, *messages.UNCLEAR_MARKS)
    assert [key for key in keys if f"`{key}`" not in text] == []
