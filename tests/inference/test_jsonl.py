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
    '{"prompt": "a", "presence_penalty": 0.5}',
    '{"prompt": "a", "stop_token_ids": [464]}',
    json.dumps({"prompt": "a", "stop_token_ids": list(range(16))}),
    '{"prompt": "a", "max_new_tokens": 200}',
]


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
