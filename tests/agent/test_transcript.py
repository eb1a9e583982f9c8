"""Transcripts: replayed to the same bits on a real engine, and made into rows of training."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from qwen_jax.agent import transcript
from qwen_jax.agent.events import Delta
from qwen_jax.agent.function import tool
from qwen_jax.agent.loop import Budgets, run
from qwen_jax.agent.models.engine import EngineModel
from qwen_jax.agent.tool import Tool
from qwen_jax.data.chat.conversations import read_conversations
from qwen_jax.data.chat.rows import Counts
from qwen_jax.data.chat.sft_rows import encode
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.inference.engine import Engine
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.model.spec import init_params
from tests.helpers.chat_templates import released
from tests.helpers.scripted_model import hermes_tokenizer, react_tokenizer, scripted
from tests.helpers.tiny_checkpoint import CONFIG, TOKENIZER


@tool
def now() -> str:
    """Returns another number each time."""
    now_count.append(1)
    return f"number {len(now_count)} Action: <|im_end|>"


@tool
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


now_count: list[int] = []
TOOLS = (now, add)
BUDGETS = Budgets()
CALL = "Thought: look\nAction: now\nAction Input: {}"
WRONG = 'Thought: add\nAction: add\nAction Input: {"a": "x"}'
SUM = 'Thought: add\nAction: add\nAction Input: {"a": 1, "b": 2}'
ANSWER = "Thought: done\nFinal Answer: fine"


def record(path, model, questions, budgets=BUDGETS, stop_at=None, tools=None, language="en"):
    """Runs questions and records them; returns the events without deltas."""
    events, messages, tools = [], [], TOOLS if tools is None else tools
    about = {"name": "m"}, model.dialect.name, tools, budgets, language
    with transcript.Recorder(path, *about) as to:
        for question in questions:
            new = [{"role": "user", "content": question}]
            messages += new
            to.question(new)
            seen = []
            found = run(
                model,
                tools,
                messages,
                budgets,
                language=language,
                cancelled=lambda seen=seen: stop_at is not None and len(seen) >= stop_at,
            )
            for event in to.record(found):
                seen.append(event)
                events += [event] * (not isinstance(event, Delta))
    return events


SCRIPT = [CALL, WRONG, SUM, ANSWER, CALL, ANSWER]


def test_replay_gives_the_same_events_without_running_tools(tmp_path):
    path = tmp_path / "a.jsonl"
    events = record(path, scripted(react_tokenizer(), SCRIPT)[0], ["one?", "two?"])
    count = len(now_count)
    again = transcript.replay(path, scripted(react_tokenizer(), SCRIPT)[0])
    assert [event for _, event in again if not isinstance(event, Delta)] == events
    assert len(now_count) == count


def test_replay_writes_the_same_file(tmp_path):
    path, copy = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    record(path, scripted(react_tokenizer(), SCRIPT)[0], ["one?", "two?"])
    found = transcript.read(path)
    replayed = list(transcript.replay(path, scripted(react_tokenizer(), SCRIPT)[0]))
    with transcript.Recorder(copy, found.model, found.dialect, TOOLS, found.budgets) as to:
        for index, turn in enumerate(found.turns):
            to.question(turn.messages)
            list(to.record(event for number, event in replayed if number == index))
    assert copy.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "script, says",
    [
        ([CALL, WRONG, SUM, ANSWER.replace("fine", "well")], "content: .*well.*fine"),
        ([CALL, WRONG, SUM.replace("2", "3"), ANSWER], "content: "),
    ],
)
def test_replay_says_what_differs(tmp_path, script, says):
    path = tmp_path / "a.jsonl"
    record(path, scripted(react_tokenizer(), SCRIPT)[0], ["one?"])
    with pytest.raises(DataError, match=f"(?s)differs in event .*{says}"):
        list(transcript.replay(path, scripted(react_tokenizer(), script)[0]))


def test_replay_checks_ids_and_not_only_text(tmp_path):
    path = tmp_path / "a.jsonl"
    record(path, scripted(react_tokenizer(), SCRIPT)[0], ["one?"])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[2]["tokens"][0] += 1
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match="tokens"):
        list(transcript.replay(path, scripted(react_tokenizer(), SCRIPT)[0]))


@pytest.mark.parametrize("stop_at", [3, 12, 20])
def test_replay_stops_where_the_user_did(tmp_path, stop_at):
    path = tmp_path / "a.jsonl"
    events = record(path, scripted(react_tokenizer(), SCRIPT)[0], ["one?"], stop_at=stop_at)
    assert events[-1].reason == "cancelled"
    again = transcript.replay(path, scripted(react_tokenizer(), SCRIPT)[0])
    assert [event for _, event in again if not isinstance(event, Delta)] == events


def test_replay_on_the_engine_samples_the_same_ids(tmp_path):
    config = dataclasses.replace(CONFIG, context_length=256, num_layers=1)
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    engine = Engine(params, config, tokenizer=TOKENIZER, max_num_seqs=1)
    budgets = Budgets(max_tokens=40)

    def model(seed):
        return EngineModel(
            engine, TOKENIZER, SamplingParams(max_new_tokens=1, temperature=1.0, seed=seed)
        )

    path = tmp_path / "a.jsonl"
    events = record(path, model(3), ["one?"], budgets, tools=())
    again = transcript.replay(path, model(3))
    assert [event for _, event in again if not isinstance(event, Delta)] == events
    assert len(events[0].tokens) > 10
    with pytest.raises(DataError, match="differs"):
        list(transcript.replay(path, model(4)))


def test_read_leaves_out_an_incomplete_line_and_refuses_other_files(tmp_path):
    path = tmp_path / "a.jsonl"
    record(path, scripted(react_tokenizer(), SCRIPT)[0], ["one?"])
    whole = transcript.read(path)
    with open(path, "a") as file:
        file.write('{"type": "rep')
    assert transcript.read(path) == whole
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "x"}\n')
    with pytest.raises(DataError, match="not a transcript"):
        transcript.read(other)
    with pytest.raises(ConfigError, match="exists"):
        transcript.Recorder(path, {}, "react", (), Budgets())


def test_replay_of_a_killed_recording_ends_where_it_ends(tmp_path):
    path = tmp_path / "a.jsonl"
    events = record(path, scripted(react_tokenizer(), SCRIPT)[0], ["one?"])
    whole = path.read_bytes().splitlines(True)
    for count in range(2, len(whole)):
        path.write_bytes(b"".join(whole[:count]))
        again = transcript.replay(path, scripted(react_tokenizer(), SCRIPT)[0])
        found = [event for _, event in again if not isinstance(event, Delta)]
        assert found == events[: count - 2]


def test_to_sft_rows_never_trains_on_observations(tmp_path):
    path, output = tmp_path / "a.jsonl", tmp_path / "rows.jsonl"
    # The third question has no answer, so nothing of it is left.
    script = [*SCRIPT, SUM, SUM, SUM]
    record(path, scripted(react_tokenizer(), script)[0], ["one?", "two?", "three?"])
    (row,) = transcript.to_sft_rows(path)
    roles = [message["role"] for message in row["messages"]]
    assert roles == [
        *("user", "assistant", "tool", "assistant", "tool", "assistant", "tool", "assistant"),
        *("user", "assistant", "tool", "assistant"),
    ]
    calls = [call for m in row["messages"] for call in m.get("tool_calls", ())]
    assert [call["function"]["name"] for call in calls] == ["now", "add", "add", "now"]
    assert all(call["type"] == "function" and call["id"] for call in calls)
    assert [
        message.get("weight") for message in row["messages"] if message["role"] == "assistant"
    ] == [*(None, 0, None, None, None, None)]
    assert [tool["function"]["name"] for tool in row["tools"]] == ["now", "add"]
    output.write_text(json.dumps(row) + "\n")
    (found,) = read_conversations([output], Counts())
    assert found.trained is not None
    for (role, text), trained in zip(found.turns, found.trained, strict=True):
        assert trained == (role == "assistant" and '"x"' not in text)
        assert not (trained and "number" in text)


def test_to_sft_rows_of_hermes_leaves_out_what_could_not_be_read(tmp_path):
    path, output = tmp_path / "a.jsonl", tmp_path / "rows.jsonl"
    block = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
    call = f"<think>why</think>Sum.\n{block}"
    script = ["<tool_call>\n{oops\n</tool_call>", call, "3"]
    record(path, scripted(hermes_tokenizer(), script)[0], ["one?"])
    (row,) = transcript.to_sft_rows(path)
    assert [message["role"] for message in row["messages"]] == [
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert "oops" not in json.dumps(row)
    output.write_text(json.dumps(row) + "\n")
    (found,) = read_conversations([output], Counts())
    assert [role for role, _ in found.turns][-4:] == ["user", "assistant", "tool", "assistant"]


CODE = Tool(
    "python",
    "Runs code.",
    lambda arguments, limits: "<tool_call>3</tool_call> <|im_end|>\n",
    {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
    description_zh="\u8fd0\u884c",
    text_parameter="code",
)
BLOCK = '<tool_call>\n{{"name": "{}", "arguments": {}}}\n</tool_call>'.format
SCRIPTS = {
    "react": [
        f" {CALL}",
        'Thought: run\nAction: python\nAction Input: ```py\nprint("\u4f60")\n```',
        SUM.replace(": 1,", ":1 ,"),
        ANSWER,
        CALL,
        "Thought: so\nFinal Answer:  two  lines\n",
    ],
    "hermes": [
        f"<think>\nHm.\n</think>\n\nI look. {BLOCK('now', '{}')}"
        + "\n"
        + BLOCK("add", '{"b":2 , "a": 1}'),
        BLOCK("python", '{"code": "print(\\"\u4f60\\")"}'),
        "<think>\nWell.\n</think>\n\nFine. ",
        f"<think>again</think>{BLOCK('now', '{}')}",
        " Good ",
    ],
}


def tokenizer_named(name, shared):
    if name == "react":
        return react_tokenizer()
    return hermes_tokenizer() if name == "hermes" else released(shared(), name)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", ["react", "hermes", "qwen2.5", "qwen3"])
def test_to_sft_rows_are_trained_as_the_ids_of_the_agents_prompts(
    tmp_path, request, name, language
):
    tokenizer = tokenizer_named(name, lambda: request.getfixturevalue("shared"))
    script = SCRIPTS["react" if name == "react" else "hermes"]
    if name != "qwen3":  # only its template has a place for thoughts
        script = [re.sub(r"(?s)<think>.*</think>\n*", "", text) for text in script]
    model, engine = scripted(tokenizer, script)
    path, output = tmp_path / "a.jsonl", tmp_path / "rows.jsonl"
    record(path, model, ["one?", "two?"], tools=(now, add, CODE), language=language)
    assert len(engine.requests) == len(script)
    output.write_text(json.dumps(next(transcript.to_sft_rows(path))) + "\n")
    counts = Counts()
    found = list(
        encode(
            read_conversations([output], counts), tokenizer, counts=counts, context_length=1 << 20
        )
    )
    assert not counts.skipped
    for sent in engine.requests:
        prompt = np.array(sent.prompt)
        # An example goes on from the prompt with what the model wrote there, which is trained.
        assert any(
            np.array_equal(one.tokens[: len(prompt)], prompt) and one.weights[len(prompt)] == 1
            for one in found
        )
    for example in found:
        trained = tokenizer.decode(example.tokens[example.weights > 0])
        assert "number" not in trained and "3</tool_call>" not in trained and "one?" not in trained


def test_to_sft_rows_without_an_answer_yields_nothing(tmp_path):
    path = tmp_path / "a.jsonl"
    record(path, scripted(react_tokenizer(), [SUM] * 3)[0], ["one?"])
    assert list(transcript.to_sft_rows(path)) == []
