"""Rows of chat files: no meaning is lost. Each key is used, or the row is skipped and counted."""

import collections
import json
import pathlib

import pytest

from qwen_jax.data.chat import dialogue, messages, rows
from qwen_jax.data.chat.conversations import Counts, Skipped, read_conversations, turns_of
from qwen_jax.data.chat.pairs import read_pairs
from qwen_jax.errors import DataError
from tests.helpers.chat_rows import malformed, outcome

CALL = 'Action: weather\nAction Input: {"city": "Oslo"}'
IN_WORDS = {  # right values that the cases give in words
    "the text AND the call, in the format's own form": f"Thought: Let me look.\n{CALL}",
    "both calls": f"{CALL}\n{CALL.replace('Oslo', 'Rome')}",
    "the text and the call": f"Thought: Looking.\n{CALL}",
    "the tools in the system turn, then Hi": [
        ["system", 'Tools:\n[{"name": "f"}]'],
        ["user", "Hi"],
    ],
}
SKIPPED = {
    "system field beside a system turn": "two system messages that differ",
    "image placeholder with images": "images cannot be read by this model",
    "dialogues that differ before the last answer": "the dialogues differ before the last response",
    "lists that end with the user": "a dialogue does not end with an answer",
}


def _exact(right):
    if isinstance(right, list):
        return [_exact(part) for part in right]
    return IN_WORDS.get(right, right) if isinstance(right, str) else right


def test_outcome_of_each_shared_case_is_right(shared, tmp_path):
    lines = (shared / "cases/chat_rows.jsonl").read_text(encoding="utf-8").splitlines()
    found, right = {}, {}
    for case in map(json.loads, lines):
        name = case["name"]
        found[name], _ = outcome(tmp_path, case["kind"], case["row"])
        right[name] = {key: _exact(part) for key, part in case["right"].items() if key != "note"}
        if "skip" in right[name]:
            right[name] = {"skip": SKIPPED[name]}
    assert len(found) == len(lines) and found == right


Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
ASKED, ANSWERED = ["user", "q", False], ["assistant", "a", True]
TOOLS = [{"name": "f"}]


def _call(name, arguments, identity=None):
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def _after(*messages):
    return {"messages": [Q, *messages]}


def _text(text="Action: f\nAction Input: {}"):
    return ["assistant", text, True]


CALLED = {"role": "assistant", "tool_calls": [_call("f", "{}", "1"), _call("g", "{}", "2")]}
BOTH = "Action: f\nAction Input: {}\nAction: g\nAction Input: {}"

READ = {
    "a system field": ({"system": "s", **_after(A)}, [["system", "s", False], ASKED, ANSWERED]),
    "a system_prompt field": (
        {"system_prompt": "s", "question": "q", "response": "a"},
        [["system", "s", False], ASKED, ANSWERED],
    ),
    "the same system twice": (
        {"system": "s", "messages": [SYSTEM, Q, A]},
        [["system", "s", False], ASKED, ANSWERED],
    ),
    "system, tools and history next to an instruction": (
        {"system": "s", "tools": TOOLS, "history": [["q0", "a0"]], "instruction": "q",
         "output": "a"},
        [["system", 's\n\nTools:\n[{"name": "f"}]', False], ["user", "q0", False],
         ["assistant", "a0", True], ASKED, ANSWERED],
    ),
    "history as messages, next to messages with a system": (
        {"history": [Q, A], "messages": [SYSTEM, {"role": "user", "content": "r"}, A]},
        [["system", "s", False], ASKED, ANSWERED, ["user", "r", False], ANSWERED],
    ),
    "functions of OpenAI's first form": (
        {"functions": TOOLS,
         **_after({"role": "assistant", "content": None,
                   "function_call": {"name": "f", "arguments": "{}"}},
                  {"role": "function", "name": "f", "content": "1"}, A)},
        [["system", 'Tools:\n[{"name": "f"}]', False], ASKED, _text(), ["tool", "1", False],
         ANSWERED],
    ),
    "arguments as an object, the output as JSON": (
        _after({"role": "assistant", "content": "", "tool_calls": [_call("f", {"é": 1.5})]},
               {"role": "tool", "content": {"x": [1]}}, A),
        [ASKED, _text('Action: f\nAction Input: {"é": 1.5}'), ["tool", '{"x": [1]}', False],
         ANSWERED],
    ),
    "calls as a JSON text": (
        _after({"role": "assistant", "tool_calls": json.dumps([_call("f", "{}")])}),
        [ASKED, _text()],
    ),
    "a call without the function object": (
        _after({"role": "assistant", "tool_calls": [{"name": "f", "arguments": {}}]}),
        [ASKED, _text()],
    ),
    "a call with code as its arguments": (
        _after({"role": "assistant", "tool_calls": [_call("python", "print(1)")]}),
        [ASKED, _text("Action: python\nAction Input: print(1)")],
    ),
    "a thought that has its label": (
        _after({"role": "assistant", "content": "Thought: hm", "tool_calls": [_call("f", "{}")]}),
        [ASKED, _text("Thought: hm\nAction: f\nAction Input: {}")],
    ),
    "results in another order than their calls": (
        _after(CALLED, {"role": "tool", "content": "G", "tool_call_id": "2"},
               {"role": "tool", "content": "F", "tool_call_id": "1"}, A),
        [ASKED, _text(BOTH), ["tool", "F", False], ["tool", "G", False], ANSWERED],
    ),
    "ShareGPT: text, two calls, two results": (
        {"conversations": [
            {"from": "human", "value": "q"}, {"from": "gpt", "value": "hm"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
            {"from": "function_call", "value": '{"name": "g", "arguments": {}}'},
            {"from": "observation", "value": "1"}, {"from": "observation", "value": "2"},
            {"from": "gpt", "value": "a"}]},
        [ASKED, _text(f"Thought: hm\n{BOTH}"), ["tool", "1", False], ["tool", "2", False],
         ANSWERED],
    ),
    "ShareGPT: a list of calls in one turn": (
        {"conversations": [
            {"from": "human", "value": "q"},
            {"from": "tool_call", "value": '[{"name": "f", "arguments": {}}, '
                                           '{"name": "g", "arguments": {}}]'}]},
        [ASKED, _text(BOTH)],
    ),
    "ShareGPT: a call that is not JSON": (
        {"conversations": [{"from": "human", "value": "q"},
                           {"from": "function_call", "value": "f 1"}]},
        [ASKED, _text("f 1")],
    ),
    "several parts, with nulls of other columns": (
        {"messages": [{"role": "user", "content": [
            {"type": "text", "text": "q", "image_url": None}, {"type": "input_text", "text": "r"},
            "s"]}, A], "images": None, "system": None, "tools": []},
        [["user", "qrs", False], ANSWERED],
    ),
    "a refusal": (
        _after({"role": "assistant", "content": None, "refusal": "No."}),
        [ASKED, _text("No.")],
    ),
    "roles in capitals": (
        {"conversations": [{"from": "Human", "value": "q"}, {"from": "GPT", "value": "a"}]},
        [ASKED, ANSWERED],
    ),
    "an empty list of images": ({"images": [], **_after(A)}, [ASKED, ANSWERED]),
    "question and answer": ({"question": "q", "answer": "a"}, [ASKED, ANSWERED]),
    "query and response": ({"query": "q", "response": "a"}, [ASKED, ANSWERED]),
    "problem, solution and its result": (
        {"problem": "q", "solution": "a", "answer": "42"}, [ASKED, ANSWERED],
    ),
    "a question with its context": (
        {"question": "q", "context": "c", "answer": "a"},
        [["user", "q\nc", False], ANSWERED],
    ),
    "prompt and completion": ({"prompt": "q", "completion": "a"}, [ASKED, ANSWERED]),
    "prompt and completion as turns, with tools": (
        {"prompt": [SYSTEM, Q], "completion": [A], "tools": json.dumps(TOOLS)},
        [["system", 's\n\nTools:\n[{"name": "f"}]', False], ASKED, ANSWERED],
    ),
    "a completion of several turns": (
        {"prompt": [Q], "completion": [CALLED, {"role": "tool", "content": "1"},
                                       {"role": "tool", "content": "2"}, A]},
        [ASKED, _text(BOTH), ["tool", "1", False], ["tool", "2", False], ANSWERED],
    ),
    "an answer labeled as good": (
        {"prompt": "q", "completion": "a", "label": True}, [ASKED, ANSWERED],
    ),
    "columns of other rows": (
        {"messages": None, "prompt": "q", "completion": "a", "system": None}, [ASKED, ANSWERED],
    ),
    "a label of something else": ({"label": 0, **_after(A)}, [ASKED, ANSWERED]),
    "a prompt that repeats the first turn": (
        {"prompt": "q ", **_after(A)}, [ASKED, ANSWERED],
    ),
    "an HH transcript as the prompt": (
        {"prompt": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:", "response": "b"},
        [ASKED, ANSWERED, ["user", "r", False], ["assistant", "b", True]],
    ),
    "messages and an answer next to them": (
        {"messages": [Q], "completion": "a"}, [ASKED, ANSWERED],
    ),
    "a row marked to be trained": ({"weight": 1, **_after(A)}, [ASKED, ANSWERED]),
    "a row with a loss mask": ({"loss_mask": True, "loss": 1, **_after(A)}, [ASKED, ANSWERED]),
    "two equal lists of turns": (
        {"conversations": [{"from": "human", "value": "q "}, {"from": "gpt", "value": "a"}],
         **_after(A)},
        [ASKED, ANSWERED],
    ),
    "an empty list of turns next to a filled one": (
        {"messages": [], "conversations": [Q, A]}, [ASKED, ANSWERED],
    ),
    "an instruction, its input and an output that the turns repeat": (
        {"instruction": "q", "input": "x", "output": "a",
         "messages": [{"role": "user", "content": "q\nx"}, A]},
        [["user", "q\nx", False], ANSWERED],
    ),
    "equal prompts": ({"instruction": "q", "question": "q", "output": "a"}, [ASKED, ANSWERED]),
    "the result of an answer": (
        {"answer": 42, **_after({**A, "content": "It is 42."})}, [ASKED, _text("It is 42.")],
    ),
    "TRL's columns next to the same messages": (
        {"prompt": [Q], "completion": [A], **_after(A)}, [ASKED, ANSWERED],
    ),
    "no image": ({"has_image": False, "num_images": 0, **_after(A)}, [ASKED, ANSWERED]),
    "tags of HTML": (
        {"prompt": "Close `<image>` and put <video> before <img src=a>.", "completion": "a"},
        [["user", "Close `<image>` and put <video> before <img src=a>.", False], ANSWERED],
    ),
    "the answer writes a placeholder": (
        _after({**A, "content": "<image>"}), [ASKED, _text("<image>")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_read_conversations_keeps(tmp_path, name):
    row, turns = READ[name]
    assert outcome(tmp_path, "sft", row)[0] == {"turns": turns}


SKIP = {
    "two leading systems": ({"messages": [SYSTEM, SYSTEM, Q, A]}, "after the first turn"),
    "system and system_prompt": ({"system": "s", "system_prompt": "t", **_after(A)},
                                 "two system messages that differ"),
    "a system that is a number": ({"system": 3, **_after(A)}, "a turn without text"),
    "tools and functions": ({"tools": TOOLS, "functions": [{"name": "g"}], **_after(A)},
                            "two lists of tools"),
    "tools in a turn": ({"messages": [{**SYSTEM, "tools": TOOLS}, Q, A]}, "tools within a turn"),
    "image": ({"image": "a.png", **_after(A)}, "images cannot be read"),
    "images of a turn": ({"messages": [{**Q, "images": ["a.png"]}, A]}, "images cannot be read"),
    "an image part without a key": ({"messages": [{"role": "user", "content": [
        {"type": "image"}, {"type": "text", "text": "q"}]}, A]}, "images cannot be read"),
    "an image part of a file": ({"messages": [{"role": "user", "content": [
        {"type": "input_image", "file_id": "f"}]}, A]}, "images cannot be read"),
    "an image part": ({"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "a"}}]}, A]}, "images cannot be read"),
    "a part that is sound": ({"messages": [{"role": "user", "content": [
        {"type": "input_audio", "input_audio": {}}]}, A]}, "part of type 'input_audio'"),
    "video": ({"videos": ["a.mp4"], **_after(A)}, "videos cannot be read"),
    "audio of an answer": (_after({**A, "audio": {"id": "x"}}), "audio cannot be read"),
    "reasoning of the user": ({"messages": [{**Q, "reasoning_content": "hm"}, A]},
                              "not the assistant's"),
    "reasoning that is not text": (_after({**A, "thinking": ["hm"]}), "reasoning that is not text"),
    "two thoughts": (_after({**A, "thinking": "a", "reasoning": "b"}), "two thoughts"),
    "reasoning next to turns": ({"reasoning": "hm", **_after(A)}, "reasoning outside of a turn"),
    "variables that are no object": ({"chat_template_kwargs": "x", **_after(A)}, "not an object"),
    "variables that are messages": ({"chat_template_kwargs": {"messages": []}, **_after(A)},
                                    "have messages"),
    "choices of a question": ({"question": "q", "choices": ["a", "b"], "answer": "a"},
                              "choices next to a question"),
    "two answers": ({"prompt": "q", "completion": "a", "response": "b"}, "several answers"),
    "an answer labeled as bad": ({"prompt": "q", "completion": "a", "label": False},
                                 "labeled as bad"),
    "turns labeled as bad": ({"kto_tag": False, **_after(A)}, "labeled as bad"),
    "another prompt next to turns": ({"prompt": "other", **_after(A)},
                                     "the prompt and the turns next to it differ"),
    "two texts": (_after({"role": "assistant", "content": "a", "value": "b"}), "two texts"),
    "two roles": (_after({"role": "assistant", "from": "human", "content": "a"}), "two roles"),
    "a refusal next to a text": (_after({**A, "refusal": "No."}), "a refusal next to a text"),
    "a call without a name": (_after({"role": "assistant", "tool_calls": [{"arguments": "{}"}]}),
                              "without its name"),
    "a custom call": (_after({"role": "assistant", "tool_calls": [{"type": "custom"}]}),
                      "a call of type 'custom'"),
    "a call by the user": ({"messages": [{**Q, "tool_calls": [_call("f", "{}")]}, A]},
                           "a call of a tool by the user"),
    "the result of another call": (
        _after(CALLED, {"role": "tool", "content": "1", "tool_call_id": "1"},
               {"role": "tool", "content": "2", "tool_call_id": "3"}, A), "was not made"),
    "two results of one call": (
        _after(CALLED, {"role": "tool", "content": "1", "tool_call_id": "1"},
               {"role": "tool", "content": "2", "tool_call_id": "1"}, A), "with one id"),
    "one result of two calls": (
        _after(CALLED, {"role": "tool", "content": "1", "tool_call_id": "1"}, A),
        "a call without a result"),
    "the result of another tool": (
        _after({"role": "assistant", "tool_calls": [_call("f", "{}")]},
               {"role": "tool", "name": "g", "content": "1"}, A), "was not called"),
    "history as a text": ({"instruction": "q", "history": "q0", "output": "a"}, "not a list of"),
    "context that is not text": ({"question": "q", "context": ["c"], "answer": "a"},
                                 "a field is not text"),
    "a row marked not to be trained": ({"weight": 0, **_after(A)}, "marked not to be trained"),
    "a row without loss": ({"loss": False, **_after(A)}, "not to be trained on (loss)"),
    "a row without a loss mask": ({"loss_mask": 0, **_after(A)}, "to be trained on (loss_mask)"),
    "a loss mask of tokens": ({"loss_mask": [0, 1], **_after(A)},
                              "the row's loss_mask is neither 0 nor 1"),
    "two lists of turns": ({"conversations": [Q, {**A, "content": "b"}], **_after(A)},
                           "messages and conversations differ"),
    "two prompts": ({"instruction": "x", "question": "q", "output": "a"},
                    "instruction and question differ"),
    "a prompt that says more": ({"instruction": "q", "prompt": "In French: q", "output": "a"},
                                "instruction and prompt differ"),
    "an instruction next to other turns": ({"instruction": "x", **_after(A)},
                                           "messages and instruction differ"),
    "context next to turns": ({"context": "c", **_after(A)}, "messages and context differ"),
    "an output next to finished turns": ({"output": "z", **_after(A)},
                                         "messages and output differ"),
    "a part of the answer as output": ({"output": "4", **_after({**A, "content": "42"})},
                                       "messages and output differ"),
    "another result": ({"answer": "7", **_after(A)}, "messages and answer differ"),
    "another completion": ({"prompt": [Q], "completion": [{**A, "content": "b"}], **_after(A)},
                           "messages and completion differ"),
    "a system of a turn": ({"messages": [{**Q, "system": "s"}, A]},
                           "a system message within a turn"),
    "image_path": ({"image_path": "a.png", **_after(A)}, "by this model (image_path)"),
    "imageUrl of a turn": ({"messages": [{**Q, "imageUrl": "a.png"}, A]}, "images cannot be read"),
    "a placeholder of an image": ({"instruction": "<image>\nWhat?", "output": "a"},
                                  "images cannot be read"),
    "a placeholder within a text": ({"messages": [{**Q, "content": "Is <image_1> red?"}, A]},
                                    "images cannot be read"),
    "Qwen-VL's images": ({"prompt": "Picture 1: <img>a.png</img> What?", "completion": "a"},
                         "images cannot be read"),
    "a placeholder of a video": ({"prompt": "What happens? <video>", "completion": "a"},
                                 "videos cannot be read"),
    "a row with half a weight": ({"weight": 0.5, **_after(A)}, "neither 0 nor 1"),
    "only turns that are not trained": (_after({**A, "weight": 0}), "no turn is to be trained on"),
    "a user turn marked to be trained": ({"messages": [{**Q, "train": True}, A]},
                                         "a user turn is marked to be trained"),
    "another role": ({"messages": [{"role": "critic", "content": "q"}, A]}, "unknown role"),
}  # fmt: skip


@pytest.mark.parametrize("name", SKIP)
def test_read_conversations_skips_and_names(tmp_path, name):
    row, reason = SKIP[name]
    assert reason in outcome(tmp_path, "sft", row)[0]["skip"]


@pytest.mark.parametrize("key", ["weight", "train", "trainable", "loss_mask", "loss"])
@pytest.mark.parametrize("no, yes", [(0, 1), (False, True), (0.0, 1.0)])
def test_read_conversations_trains_only_turns_whose_mark_says_so(tmp_path, key, no, yes):
    row = {"conversations": [{"from": "human", "value": "q"},
                             {"from": "gpt", "value": "BAD", key: no},
                             {"from": "human", "value": "q", key: no},
                             {"from": "gpt", "value": "a", key: yes},
                             {"from": "human", "value": "q", key: None},
                             {"from": "gpt", "value": "a", key: None}]}  # fmt: skip
    turns = [ASKED, ["assistant", "BAD", False], ASKED, ANSWERED, ASKED, ANSWERED]
    assert outcome(tmp_path, "sft", row)[0] == {"turns": turns}


@pytest.mark.parametrize("key", ["weight", "train", "trainable", "loss_mask", "loss"])
@pytest.mark.parametrize("value", [0.5, 2, -1, "0", "false", [1], "partial"])
def test_read_conversations_refuses_a_mark_by_name(tmp_path, key, value):
    error = outcome(tmp_path, "sft", _after({**A, key: value}))[0]["refuse"]
    assert f"{key} is " in error and "rows.jsonl line 1" in error and f"set {key} to 1" in error


def test_read_conversations_refuses_marks_that_differ(tmp_path):
    error = outcome(tmp_path, "sft", _after({**A, "weight": 1, "train": False}))[0]["refuse"]
    assert "weight and train differ" in error


def test_counts_name_the_keys_that_are_not_read_once_per_file(tmp_path):
    rows = [
        {"id": 1, "score": None, "note": "", **_after({**A, "name": "bot"})},
        {"id": 2, "source": "web", **_after(A)},
        {"id": 3, "messages": []},  # skipped: its keys are not counted
    ]
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path, given in zip(paths, (rows, rows[1:2]), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    counts = Counts()
    assert len(list(read_conversations(paths, counts))) == 3
    assert counts.unread == {
        str(paths[0]): {"id": 2, "messages.name": 1, "source": 1},
        str(paths[1]): {"id": 1, "source": 1},
    }
    assert f"keys of {paths[0]} that are not read: id (2), " in str(counts)
    many = Counts(unread={"x": collections.Counter({f"k{i}": 1 for i in range(23)})})
    assert str(many).endswith("k19 (1), and 3 more")


def test_counts_name_turns_that_are_left_out(tmp_path):
    found, counts = outcome(tmp_path, "sft", _after(A, {"role": "user", "content": "thanks"}))
    assert found == {"turns": [ASKED, ANSWERED]}
    assert counts.changed == {"turns after the last response left out": 1}


def test_counts_name_an_answer_that_a_pair_leaves_out(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{**_after(A), "chosen": chosen, "rejected": "c"} for chosen in "ab"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    counts = Counts()
    assert [pair.prompt for pair in read_pairs([path], counts)] == [(("user", "q"),)] * 2
    assert counts.changed == {"an answer next to chosen and rejected left out": 1}


def test_turns_of_names_what_is_wrong_with_malformed_rows():
    tried = 0
    for row in malformed(row for row, _ in READ.values()):
        tried += 1
        try:
            turns = turns_of(row, "here")
            assert all(isinstance(role, str) and isinstance(text, str) for role, text in turns)
        except (Skipped, DataError) as error:
            assert str(error)
    assert tried > 1000


def test_keys_that_mean_something_are_in_the_guide():
    guide = pathlib.Path(__file__).parents[3] / "docs/guides/chat_data.md"
    keys = (*dialogue.TURN_LISTS, *dialogue.PROMPTS, *dialogue.ANSWERS, *dialogue._SYSTEMS,
            *dialogue._TOOLS, *dialogue._INPUTS, *messages.MARKS, *messages._ROLES,
            *messages._TEXT_PARTS, *dialogue._LABELS, *rows._UNUSABLE, *rows._MEDIA)  # fmt: skip
    text = guide.read_text(encoding="utf-8")
    assert [key for key in keys if f"`{key}`" not in text] == []
