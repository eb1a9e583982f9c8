"""Conversations: all formats give the same turns, and unusable rows are counted by reason."""

import gzip
import json

import pytest

from qwen_jax.data.chat.conversations import (
    Counts,
    Skipped,
    check_turns,
    read_conversations,
    turns_of,
)
from qwen_jax.errors import DataError

TURNS = [("user", "Hi"), ("assistant", "Hello."), ("user", "Sum: 1 2"), ("assistant", "3")]
SAME = [
    {"messages": [{"role": role, "content": text} for role, text in TURNS]},
    {
        "conversations": [
            {"from": {"user": "human", "assistant": "gpt"}[role], "value": text}
            for role, text in TURNS
        ]
    },
    {"instruction": "Sum:", "input": "1 2", "output": "3", "history": [["Hi", "Hello."]]},
]


@pytest.mark.parametrize("row", SAME, ids=["messages", "ShareGPT", "Alpaca"])
def test_turns_of_gives_the_same_turns_for_each_format(row):
    turns = turns_of(row, "here")
    assert [(role, text.replace("\n", " ")) for role, text in turns] == TURNS
    assert turns_of(row | {"system": "Be brief."}, "here")[0] == ("system", "Be brief.")


def test_turns_of_makes_tools_and_their_outputs_turns():
    row = {
        "tools": [{"name": "add"}],
        "conversations": [
            {"from": "human", "value": "1+2?"},
            {"from": "function_call", "value": "add 1 2"},
            {"from": "observation", "value": "3"},
            {"from": "gpt", "value": "It is 3."},
        ],
    }
    turns = check_turns(turns_of(row, "here"))
    assert turns == (
        ("system", 'Tools:\n[{"name": "add"}]'),
        ("user", "1+2?"),
        ("assistant", "add 1 2"),
        ("tool", "3"),
        ("assistant", "It is 3."),
    )


@pytest.mark.parametrize(
    "roles, reason",
    [
        ("u", "no assistant turn"),
        ("", "no assistant turn"),
        ("a", "do not alternate"),
        ("uu a", "do not alternate"),
        ("uaa", "do not alternate"),
        ("usa", "after the first turn"),
        ("ue", "empty response"),
    ],
)
def test_check_turns_gives_the_reason_for_skipping(roles, reason):
    turns = {
        "u": ("user", "x"),
        "a": ("assistant", "y"),
        "s": ("system", "z"),
        "e": ("assistant", " \n"),
    }
    with pytest.raises(Skipped, match=reason):
        check_turns([turns[letter] for letter in roles.replace(" ", "")])


def test_check_turns_drops_a_last_turn_without_a_response():
    assert check_turns(TURNS[:3]) == tuple(TURNS[:2])


def test_read_conversations_counts_and_names_bad_rows(tmp_path):
    rows = [
        *SAME,
        {"messages": [{"role": "user", "content": "?"}]},
        {"messages": [{"role": "emperor", "content": "?"}]},
        {"messages": "no"},
    ]
    plain, packed = tmp_path / "a.jsonl", tmp_path / "b.json.gz"
    plain.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    packed.write_bytes(gzip.compress(json.dumps(rows).encode()))
    counts = Counts()
    assert len(list(read_conversations([plain, packed], counts))) == counts.kept == 6
    assert counts.skipped == {
        "no assistant turn": 2,
        "unknown role 'emperor'": 2,
        "turns are not a list": 2,
    }
    assert "a.jsonl line 4" in str(counts) and "2 skipped: unknown role" in str(counts)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("x.json", "{}", "JSON list"),
        ("x.jsonl", '{"messages": ', "not valid JSON"),
        ("x.json", '[{"text": "a"}]', "unknown format"),
        ("x.json", "[1]", "not a JSON object"),
        ("x.txt", "a", "unsupported file extension"),
        ("x.json", '[{"messages": []}]', "no usable conversations"),
    ],
)
def test_read_conversations_rejects_an_unusable_file(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        list(read_conversations([tmp_path / name], Counts()))
    with pytest.raises(DataError, match="does not exist"):
        list(read_conversations([tmp_path / "missing.json"], Counts()))


@pytest.mark.parametrize("completion", ["A.", [{"role": "assistant", "content": "A."}]])
def test_turns_of_continues_an_answer_that_the_prompt_begins(completion):
    prompt = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Sure: "}]
    turns = turns_of({"prompt": prompt, "completion": completion}, "here")
    assert turns == [("user", "q"), ("assistant", "Sure: A.")]
    tool = [{"role": "tool", "content": "3"}]
    with pytest.raises(Skipped, match="ends with a message of the assistant"):
        turns_of({"prompt": prompt, "completion": tool}, "here")
