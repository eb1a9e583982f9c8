"""Batch inference from a file to a file: validation of every line first, resuming after kills."""

import dataclasses
import json
import pathlib

import pytest

from qwen_jax.errors import ConfigError, DataError
from qwen_jax.inference import jsonl
from qwen_jax.inference.request import Request
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.tokenizer import chatml
from qwen_jax.tokenizer.bpe import Tokenizer
from tests.helpers.chat_templates import released
from tests.helpers.fake_engine import FakeEngine, complete  # noqa: E402

TOKENIZER = Tokenizer({bytes([byte]): byte for byte in range(256)})
SETTINGS = dataclasses.replace(jsonl.DEFAULTS, max_new_tokens=20, temperature=0.7, seed=3)
LINES = [{"prompt": f"number {i}"} for i in range(30)]
LINES[4] = {"messages": [{"role": "user", "content": "Hi"}], "id": "é", "n": 2, "seed": 9}
LINES[7] |= {"temperature": 0, "max_new_tokens": 60, "stop": "END", "logprobs": True, "id": 0}


def write(path, lines) -> pathlib.Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def source(path) -> jsonl.Source:
    return jsonl.Source(path, TOKENIZER, SETTINGS, context=200)


def complete_file(path, out, engine=None, identity=None):
    """Runs until all lines are finished, or until the engine fails."""
    output = jsonl.Output(out, identity or {"input": source(path).check()[1]})
    engine = engine or FakeEngine(TOKENIZER)
    try:
        if not output.complete:
            for _ in jsonl.complete_lines(
                engine, source(path), output, max_num_seqs=engine.max_num_seqs
            ):
                pass
    finally:
        output.close()


def test_complete_lines_writes_lines_in_order_with_their_own_settings(tmp_path):
    path = write(tmp_path / "a.jsonl", LINES[:10])
    path.write_text("\n" + path.read_text(encoding="utf-8"), encoding="utf-8")  # a blank line
    complete_file(path, tmp_path / "out" / "b.jsonl")
    text = (tmp_path / "out/b.jsonl").read_text(encoding="utf-8")
    found = [json.loads(line) for line in text.splitlines()]
    assert [record["line"] for record in found] == list(range(2, 12))
    assert found[4]["id"] == "é" and found[7]["id"] == 0 and "id" not in found[0]
    chat = tuple(chatml.prompt(LINES[4]["messages"], TOKENIZER))
    expected = complete(
        FakeEngine(TOKENIZER),
        Request(
            chat,
            SamplingParams(
                max_new_tokens=20,
                temperature=0.7,
                top_p=0.95,
                seed=9,
                stop_token_ids=chatml.stop_ids(TOKENIZER),
                n=2,
            ),
        ),
    )
    assert [(one["text"], one["finish"]) for one in found[4]["answers"]] == expected
    (one,) = found[7]["answers"]
    assert len(one["logprobs"]) == one["tokens"] and "END" not in one["text"]
    (first,) = complete(
        FakeEngine(TOKENIZER),
        Request(
            tuple(b"number 0"),
            SamplingParams(
                max_new_tokens=20,
                temperature=0.7,
                seed=4,  # line 2 of the file: the seed plus 1
                stop_token_ids=(TOKENIZER.end_of_text,),
            ),
        ),
    )
    assert found[0]["answers"][0]["text"] == first[0]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["b.jsonl", "b.jsonl.run.json"]


def test_complete_lines_resumes_after_a_kill_in_any_step(tmp_path):
    path = write(tmp_path / "a.jsonl", LINES)
    complete_file(path, tmp_path / "full.jsonl")
    expected = (tmp_path / "full.jsonl").read_bytes()
    out, partial, max_done = tmp_path / "b.jsonl", tmp_path / "b.jsonl.partial", 0
    for fail_at in (5, 31, 40, 38, 60, None):
        engine = FakeEngine(TOKENIZER, fail_at=fail_at, max_num_seqs=3)
        before = partial.read_bytes() if partial.exists() else b""
        if fail_at is None:
            complete_file(path, out, engine)
        else:
            with pytest.raises(RuntimeError):
                complete_file(path, out, engine)
            if partial.exists():
                after = partial.read_bytes()
                assert after.startswith(
                    before[: before.rfind(b"\n") + 1]
                )  # finished lines are kept
                partial.write_bytes(after + b'{"line": 99, "ans')  # killed while writing
            assert not out.exists()
        done = {json.loads(line)["line"] for line in before.splitlines()[:-1]}
        assert not done & {
            number
            for number in range(1, 31)
            if number != 5  # a conversation
            and tuple(b"number %d" % (number - 1)) in engine.prompts
        }
        max_done = max(max_done, len(done))
    assert out.read_bytes() == expected and not partial.exists()
    assert max_done >= 10
    idle = FakeEngine(TOKENIZER, fail_at=0)  # a finished file does not change
    complete_file(path, out, idle)
    assert idle.steps == 0 and out.read_bytes() == expected


def test_output_finished_with_a_partial_file_left_is_complete(tmp_path):
    path, out = write(tmp_path / "a.jsonl", LINES[:3]), tmp_path / "b.jsonl"
    complete_file(path, out)
    (tmp_path / "b.jsonl.partial").write_bytes(b'{"line": 1}\n')
    complete_file(path, out, FakeEngine(TOKENIZER, fail_at=0))
    assert not (tmp_path / "b.jsonl.partial").exists()


def test_output_rejects_the_file_of_another_run(tmp_path):
    path, out = write(tmp_path / "a.jsonl", LINES), tmp_path / "b.jsonl"
    with pytest.raises(RuntimeError):
        complete_file(path, out, FakeEngine(TOKENIZER, fail_at=40), {"seed": 1, "input": "x"})
    before = (tmp_path / "b.jsonl.partial").read_bytes()
    assert before
    with pytest.raises(ConfigError, match="seed: was 1, now 2"):
        jsonl.Output(out, {"seed": 2, "input": "x"})
    assert (tmp_path / "b.jsonl.partial").read_bytes() == before
    (tmp_path / "c.jsonl").write_text("mine")
    with pytest.raises(ConfigError, match="run.json does not, so another program"):
        jsonl.Output(tmp_path / "c.jsonl", {})
    assert (tmp_path / "c.jsonl").read_text() == "mine"
    assert not (tmp_path / "c.jsonl.partial").exists()


def test_source_identity_is_that_of_older_versions(tmp_path):
    # The names in OUTPUT.run.json before stop_token_ids existed.
    older = {
        *("tokenizer", "context", "max_new_tokens", "temperature", "top_k", "top_p"),
        *("repetition_penalty", "stop", "seed", "n", "logprobs"),
    }
    path = write(tmp_path / "a.jsonl", LINES)
    assert set(source(path).identity()) == older
    stopping = dataclasses.replace(SETTINGS, stop_token_ids=(7,))
    found = jsonl.Source(path, TOKENIZER, stopping, context=200).identity()
    assert found["stop_token_ids"] == (7,)


def test_output_is_locked_for_one_process(tmp_path):
    first = jsonl.Output(tmp_path / "b.jsonl", {})
    with pytest.raises(ConfigError, match="another process"):
        jsonl.Output(tmp_path / "b.jsonl", {})
    first.close()
    jsonl.Output(tmp_path / "b.jsonl", {}).close()


def checked(path, out, identity=None):
    """Opens the output and compares it with the input, as complete_file does first."""
    output = jsonl.Output(out, identity or {"input": source(path).check()[1]})
    try:
        output.check(source(path).outline())
    finally:
        output.close()


EXTRA = {
    "answer": {"b": [1, None, "é"]},
    "category": "sums",
    "\\ud800": "\\udfff",
    "x": float("nan"),
}


@pytest.mark.parametrize("fail_at", [None, 40])
def test_complete_lines_copies_keys_without_a_meaning(tmp_path, fail_at):
    lines = [line | EXTRA for line in LINES[:10]]
    path, out = write(tmp_path / "a.jsonl", lines), tmp_path / "b.jsonl"
    if fail_at:
        with pytest.raises(RuntimeError):
            complete_file(path, out, FakeEngine(TOKENIZER, fail_at=fail_at, max_num_seqs=3))
    checked(path, out)
    complete_file(path, out)
    checked(path, out)
    plain = tmp_path / "plain.jsonl"
    complete_file(write(tmp_path / "c.jsonl", LINES[:10]), plain)
    for line, other in zip(
        out.read_text().splitlines(), plain.read_text().splitlines(), strict=True
    ):
        found, wanted = json.loads(line), json.loads(other)
        assert found["answer"] == EXTRA["answer"] and found["category"] == "sums"
        assert {key: found[key] for key in wanted} == wanted
    one = source(path)
    one.check()
    assert one.copied == set(EXTRA)


ALTERED = {
    "another id": lambda row: row | {"id": "z"},
    "a copied key": lambda row: row | {"category": "other"},
    "a lost key": lambda row: {key: value for key, value in row.items() if key != "category"},
    "one more key": lambda row: row | {"more": 1},
    "an answer less": lambda row: row | {"answers": row["answers"][1:]},
    "no answers": lambda row: {key: value for key, value in row.items() if key != "answers"},
    "text that is none": lambda row: row | {"answers": [a | {"text": 1} for a in row["answers"]]},
    "tokens": lambda row: row | {"answers": [a | {"tokens": "3"} for a in row["answers"]]},
    "another line": lambda row: row | {"line": 77},
    "no line": lambda row: {key: value for key, value in row.items() if key != "line"},
    "a repeated line": lambda row: row | {"line": 1},
    "a list": lambda row: [row],
}


@pytest.mark.parametrize("name", list(ALTERED))
@pytest.mark.parametrize("complete", [False, True])
def test_output_refuses_a_file_that_was_changed(tmp_path, name, complete):
    path = write(tmp_path / "a.jsonl", [line | {"category": "sums"} for line in LINES[:10]])
    out = tmp_path / "b.jsonl"
    if complete:
        complete_file(path, out)
    else:
        with pytest.raises(RuntimeError):
            complete_file(path, out, FakeEngine(TOKENIZER, fail_at=45, max_num_seqs=3))
    file = out if complete else tmp_path / "b.jsonl.partial"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    index = next(i for i in range(len(rows) - 1, -1, -1) if rows[i]["line"] not in (1, 5))
    rows[index] = ALTERED[name](rows[index])
    write(file, rows)
    before = file.read_bytes()
    with pytest.raises(DataError, match="line") as caught:
        checked(path, out)
    assert "was changed" in caught.value.what and caught.value.where == str(file)
    assert file.read_bytes() == before


@pytest.mark.parametrize("change", ["shorter", "longer", "swapped"])
def test_output_refuses_a_finished_file_with_other_lines(tmp_path, change):
    path, out = write(tmp_path / "a.jsonl", LINES[:4]), tmp_path / "b.jsonl"
    complete_file(path, out)
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    write(out, {"shorter": rows[:-1], "longer": rows + rows[:1], "swapped": rows[::-1]}[change])
    with pytest.raises(DataError, match="was changed"):
        checked(path, out)


def test_output_names_a_full_disk(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", LINES[:3])
    output = jsonl.Output(tmp_path / "b.jsonl", {})
    monkeypatch.setattr(output, "_file", open("/dev/full", "wb", buffering=0))
    (line, *_) = source(path)
    with pytest.raises(OSError, match="No space left") as caught:
        output.add(line, [])
    assert caught.value.filename == str(tmp_path / "b.jsonl.partial")


@pytest.mark.parametrize("name", ["Temperature", "topp", "max_tokens", "min_p", "answers", "line"])
def test_source_refuses_keys_that_ask_for_something(tmp_path, name):
    path = write(tmp_path / "a.jsonl", [{"prompt": "a", name: 1}])
    with pytest.raises(DataError, match=f"unknown field '{name}'"):
        source(path).check()


@pytest.mark.parametrize(
    "name",
    ["ignore_eos", "guided_json", "stop_sequences", "num_beams", "do_sample", "enable_thinking",
     "system", "system_message", "history", "chat_history", "images", "documents"],
)  # fmt: skip
def test_source_refuses_settings_of_other_programs_and_parts_of_a_prompt(tmp_path, name):
    path = write(tmp_path / "a.jsonl", [{"prompt": "a", name: "x"}])
    with pytest.raises(DataError, match=f"'{name}'"):
        source(path).check()
    write(path, [{"prompt": "a", name: empty} for empty in (None, "", [])])  # columns without it
    source(path).check()
    path.write_text('{"prompt": "a", "prompt": "b"}\n')
    with pytest.raises(DataError, match="'prompt' is repeated"):
        source(path).check()


BAD = [
    "{",
    "3",
    '{"prompt": "a", "messages": []}',
    "{}",
    '{"prompt": 1}',
    '{"messages": []}',
    '{"messages": "Hi"}',
    '{"messages": [{"role": "bard", "content": ""}]}',
    '{"prompt": "a", "temprature": 1}',
    '{"prompt": "a", "temperature": -1}',
    '{"prompt": "a", "temperature": "x"}',
    '{"prompt": "a", "n": 0}',
    '{"prompt": "a", "stop": 3}',
    '{"prompt": "a", "stop": [3]}',
    '{"prompt": "a", "seed": -1}',
    '{"prompt": "a", "logprobs": 1}',
    '{"prompt": "a", "presence_penalty": 2.5}',
    '{"prompt": "a", "stop_token_ids": [464]}',
    json.dumps({"prompt": "a", "stop_token_ids": list(range(16))}),
    '{"prompt": "a", "max_new_tokens": 200}',
]


def test_source_check_suggests_the_name_of_a_misspelled_setting(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": "a", "temprature": 0}])
    with pytest.raises(DataError, match=r"'temprature'\. Did you mean 'temperature'\?"):
        source(path).check()


def test_source_check_names_every_invalid_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(['{"prompt": "good"}', *BAD]))
    with pytest.raises(DataError) as caught:
        source(path).check()
    for number in range(2, len(BAD) + 2):
        assert f"line {number}: " in str(caught.value), BAD[number - 2]
    assert f"invalid lines: {len(BAD)}." in str(caught.value) and "line 1:" not in str(caught.value)
    path.write_text("{\n" * 25)
    with pytest.raises(DataError, match="(?s)line 20: .*and 5 more"):
        source(path).check()
    path.write_text("\n \n")
    with pytest.raises(DataError, match="no prompts"):
        source(path).check()
    with pytest.raises(DataError, match="cannot read"):
        source(tmp_path / "none").check()


def test_source_renders_messages_with_tools_and_variables_of_the_line(tmp_path, shared):
    tokenizer = released(shared, "qwen3", {"eos_token_id": [7]})
    tools = [{"type": "function", "function": {"name": "f"}}]
    messages, off = [{"role": "user", "content": "Hi"}], {"enable_thinking": False}
    lines = [{"messages": messages, "tools": tools, "chat_template_kwargs": off}, {"prompt": "a"}]
    path = write(tmp_path / "a.jsonl", lines)
    chat, text = jsonl.Source(path, tokenizer, SETTINGS, context=2000)
    assert tokenizer.decode(chat.request.prompt) == tokenizer.apply_chat_template(
        messages, tools, True, **off
    )
    assert chat.request.sampling.stop_token_ids == (7, tokenizer.im_end, tokenizer.end_of_text)
    assert text.request.sampling.stop_token_ids == (tokenizer.end_of_text, 7)
    for wrong in (
        {"prompt": "a", "tools": tools},
        {"messages": messages, "tools": "f"},
        {"messages": messages, "chat_template_kwargs": {"messages": []}},
        {"messages": [{"role": "user", "content": [1]}]},
    ):
        bad = jsonl.Source(write(path, [wrong]), tokenizer, SETTINGS, context=2000)
        with pytest.raises(DataError, match="invalid lines: 1"):
            bad.check()


def test_settings_take_the_defaults_of_the_model_unless_a_flag_is_set(shared):
    tokenizer = released(shared, "qwen3", {"temperature": 0.6, "top_k": 20})
    found, said = jsonl.Settings(top_k=5, seed=3).of_model(tokenizer)
    assert (found.temperature, found.top_k, found.top_p, found.seed) == (0.6, 5, 0.95, 3)
    assert said == "temperature 0.6 (generation_config.json)"
    assert jsonl.Settings().of_model(TOKENIZER) == (jsonl.DEFAULTS, "")
    explicit, _ = jsonl.Settings(temperature=0.7).of_model(tokenizer)  # our own default, but set
    assert explicit.temperature == 0.7
