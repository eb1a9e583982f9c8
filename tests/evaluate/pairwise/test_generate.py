"""Questions and answers: from files, from a server, from a model; what is missing is named."""

import dataclasses
import json

import pytest

from qwen_jax.data.chat.rows import Counts
from qwen_jax.errors import ConfigError, DataError, QwenJaxError
from qwen_jax.evaluate.pairwise.generate import answers_of, name_sources, server_settings
from qwen_jax.evaluate.pairwise.questions import read_questions
from qwen_jax.inference.sampling import SamplingParams
from tests.helpers.fake_openai import serving
from tests.helpers.scripted_server import scripted

GREEDY = SamplingParams(max_new_tokens=4)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def questions(tmp_path):
    rows = [
        {"id": 1, "category": "math", "prompt": "1 + 1?", "reference": "2", "gold": 2},
        {"messages": [{"role": "system", "content": "Add."}, {"role": "user", "content": "2?"}]},
        {"messages": [{"role": "user", "content": "3?"}, {"role": "assistant", "content": "no"}]},
    ]
    return read_questions(write(tmp_path / "q.jsonl", rows), Counts())


def source_of(path):
    return name_sources([("--a", str(path))])[0]


def test_read_questions_keeps_ids_categories_and_rows(questions, tmp_path):
    assert [q.category for q in questions] == ["math", "all", "all"]
    assert questions[0].id == "1" and questions[0].reference == "2"
    assert questions[0].columns["gold"] == 2
    assert questions[1].turns == (("system", "Add."), ("user", "2?"))
    assert questions[2].turns == (("user", "3?"),) and len(questions[2].id) == 12
    counts = Counts()
    path = write(tmp_path / "twice.jsonl", [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}])
    with pytest.raises(DataError, match=r"also that of .*twice.jsonl line 1"):
        read_questions(path, counts)
    counts = Counts()
    read_questions(write(tmp_path / "some.jsonl", [{"prompt": "a"}, {"prompt": " "}]), counts)
    assert counts.kept == 1 and counts.skipped["no prompt"] == 1


def test_answers_of_a_file_are_matched_by_id_or_order(questions, tmp_path):
    ids = [question.id for question in questions]
    by_id = write(tmp_path / "m.jsonl", [{"id": i, "answer": f"to {i}"} for i in reversed(ids)])
    found = answers_of(source_of(by_id), questions, tmp_path, [GREEDY])
    assert [one.text for (one,) in found] == [f"to {i}" for i in ids]
    in_order = write(
        tmp_path / "o.jsonl",
        [{"answers": [{"text": str(i), "finish": "length"}]} for i in range(3)],
    )
    found = answers_of(source_of(in_order), questions, tmp_path, [GREEDY])
    assert [(one.text, one.finish, one.model) for (one,) in found][2] == ("2", "length", "o")


@pytest.mark.parametrize(
    "rows, problem",
    [
        ([{"id": "1", "answer": "x"}], "2 of 3 questions have no answer"),
        ([{"answer": "x"}] * 2, "2 answers without ids, but 3 questions"),
        ([{"id": "1", "answer": "x"}] * 2, "a second answer to '1'"),
        ([{"answer": "x"}, {"answer": None}, {"answer": "z"}], "no single answer"),
    ],
    ids=range(4),
)
def test_answers_of_a_file_names_what_is_missing(rows, problem, questions, tmp_path):
    path = write(tmp_path / "bad.jsonl", rows)
    with pytest.raises(DataError, match=problem):
        answers_of(source_of(path), questions, tmp_path, [GREEDY])


def test_answers_of_a_server_resume(questions, tmp_path):
    settings = dataclasses.replace(GREEDY, n=2, temperature=0.5, seed=3)
    with scripted(lambda messages: messages[-1]["content"].upper(), ("m", "n")) as server:
        source = source_of(f"{server.url}#m")
        server.fail_after = 4
        with pytest.raises(QwenJaxError, match="503"):
            answers_of(source, questions, tmp_path, [settings], max_num_seqs=1)
        server.fail_after = None
        del server.requests[:]
        found = answers_of(source, questions, tmp_path, [settings])
        assert len(server.requests) == 2
        sent = server.requests[-1]
        assert sent["model"] == "m" and sent["max_tokens"] == 4 and sent["temperature"] == 0.5
        assert "top_p" not in sent and sent["seed"] in (3, 4)
    assert [[one.text for one in row] for row in found][0] == ["1 + 1?"] * 2
    assert found[0][1].sampling["sample"] == 1 and found[0][0].sampling["temperature"] == 0.5
    assert {one.model for row in found for one in row} == {"m"}
    assert answers_of(source, questions, tmp_path, [settings]) == found  # the server is gone


def test_answers_of_a_server_name_the_prompt_and_the_flags(questions, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret-7")

    def refuses(path, body):
        if body["messages"][-1]["content"] == "3?":
            return 401, {"error": {"message": "no key"}}
        return 200, {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}

    with serving(refuses, models=("m", "n")) as fake:
        with pytest.raises(ConfigError, match="2 models: m, n") as caught:
            answers_of(source_of(fake.url), questions, tmp_path, [GREEDY])
        assert caught.value.where == "--a=URL#MODEL"
        with pytest.raises(QwenJaxError, match="401: no key") as caught:
            source = source_of(f"{fake.url}/v1#m")
            answers_of(source, questions, tmp_path, [GREEDY], key_variable="MY_KEY")
    assert questions[2].id in caught.value.where
    assert "--server_key_variable" in caught.value.fix
    assert {headers["Authorization"] for _, headers, _ in fake.requests} == {"Bearer secret-7"}


def test_server_settings_leave_out_defaults():
    assert server_settings(SamplingParams(max_new_tokens=9, temperature=1.0)) == {"max_tokens": 9}
    sent = server_settings(SamplingParams(max_new_tokens=9, top_p=0.5, stop=("a",)))
    assert sent == {"max_tokens": 9, "temperature": 0.0, "top_p": 0.5, "stop": ["a"]}


def test_name_sources_refuses_one_name_twice():
    with pytest.raises(ConfigError, match="--b and --c have the same name, 'x'"):
        name_sources([("--a", "runs/y"), ("--b", "runs/x"), ("--c", "old/x/")])
    with pytest.raises(ConfigError, match="1 names for 2 models"):
        name_sources([("--a", "runs/y"), ("--b", "runs/x")], ["z"])
    assert [s.name for s in name_sources([("--a", "y/x"), ("--b", "z/x")], ["p", "q"])] == [
        "p",
        "q",
    ]
