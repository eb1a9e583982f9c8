"""Evaluation of a model behind an OpenAI-compatible server."""

import dataclasses
import json

import pytest

from qwen_jax.errors import ConfigError, DataError
from qwen_jax.evaluate import Server, run, tasks
from qwen_jax.evaluate.samples.sampling import Sampling
from qwen_jax.evaluate.server import client
from qwen_jax.evaluate.server.threads import completed
from qwen_jax.evaluate.task import Example, Generation, Questions, Task, Verdict
from tests.helpers import server as own_server
from tests.helpers.fake_engine import FakeEngine
from tests.helpers.fake_openai import serving

N = 12


def toy(*, chat=False, choices=False, stops=("END", "\nb", "\nc", "\nd", "STOP"), n=N) -> Task:
    def grade(text, example):
        return Verdict(text == example.answer, text, "whole text")

    examples = tuple(Example(i, {"text": f"q{i}:"}, "A" if choices else f"a{i} ") for i in range(n))
    return Task(
        name="toy",
        protocol="qwen",
        read=lambda data: Questions(examples),
        template=lambda example, shots: example.fields["text"],
        files=(),
        counts=n,
        source="",
        letters="AB",
        choices=(lambda example: (" A", " B")) if choices else None,
        generation=None if choices else Generation(stops, 9, grade),
        chat=chat,
    )


def evaluate(monkeypatch, task, url, folder, **settings):
    monkeypatch.setitem(tasks.TASKS, "toy", task)
    return run(Server(url, **settings), ["toy"], data=[], output=folder)["tasks"]["toy"]


def samples_of(folder):
    return [json.loads(line) for line in (folder / "samples/toy.jsonl").open(encoding="utf-8")]


def answered(path, body):
    """Right for all but the third example; the text goes on behind a stop that was not sent."""
    number = int((body.get("prompt") or body["messages"][0]["content"])[1:-1])
    text = f"a{number} STOP more" if number != 2 else "no idea"
    usage = {"prompt_tokens": 3, "completion_tokens": 4}
    finish = "length"
    if path.endswith("chat/completions"):
        choice = {"message": {"content": text}, "finish_reason": finish}
    else:
        choice = {"text": text, "finish_reason": finish}
    return 200, {"choices": [choice], "usage": usage}


@pytest.mark.parametrize("chat", [False, True])
def test_completions_are_graded(monkeypatch, tmp_path, chat):
    monkeypatch.setenv("MY_KEY", "secret-7")
    with serving(answered) as fake:
        record = evaluate(monkeypatch, toy(chat=chat), fake.url, tmp_path, key_variable="MY_KEY")
    assert record["score"] == pytest.approx(100 * 11 / 12) and record["errors"] == 0
    assert record["ended"] == pytest.approx(11 / 12) and record["mean_completion_tokens"] == 4
    path, headers, body = fake.requests[0]
    assert path == ("/v1/chat/completions" if chat else "/v1/completions")
    assert headers["Authorization"] == "Bearer secret-7"
    assert body["model"] == "fake" and body["temperature"] == 0 and len(body["stop"]) == 4
    sample = samples_of(tmp_path)[5]
    assert (sample["completion"], sample["finish"], sample["correct"]) == ("a5 ", "stop", True)
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "secret-7" not in written


@pytest.mark.parametrize("chat", [False, True])
def test_several_samples_are_sent_with_their_seeds(monkeypatch, tmp_path, chat):
    sampling = Sampling(samples=2, temperature=0.5)
    monkeypatch.setitem(tasks.TASKS, "toy", toy(chat=chat, n=3))
    with serving(answered) as fake:
        found = run(Server(fake.url), ["toy"], data=[], output=tmp_path, sampling=sampling)
    bodies = [body for _, _, body in fake.requests]
    assert {(one["temperature"], one["top_p"]) for one in bodies} == {(0.5, 0.95)}
    assert len({one["seed"] for one in bodies}) == len(bodies) == 6
    expected = sampling.seed_of("toy", "1", 1)
    row = samples_of(tmp_path)[3]
    assert row["id"] == "1#1" and expected in {one["seed"] for one in bodies}
    assert found["tasks"]["toy"]["samples"] == 2


def test_variables_of_the_chat_template_are_sent_with_chat_tasks(monkeypatch, tmp_path):
    sampling = Sampling(chat_template_kwargs='{"enable_thinking": false}')
    monkeypatch.setitem(tasks.TASKS, "chat", dataclasses.replace(toy(chat=True, n=2), name="chat"))
    monkeypatch.setitem(tasks.TASKS, "toy", toy(n=2))
    with serving(answered) as fake:
        server = Server(fake.url)
        run(server, ["chat", "toy"], data=[], output=tmp_path, sampling=sampling)
        found = {path: body.get("chat_template_kwargs") for path, _, body in fake.requests}
        assert found == {
            "/v1/chat/completions": {"enable_thinking": False}, "/v1/completions": None
        }  # fmt: skip
        with pytest.raises(ConfigError, match="other evaluation|another"):  # other prompts
            run(server, ["chat", "toy"], data=[], output=tmp_path)
        with pytest.raises(ConfigError, match="--chat_template_kwargs"):
            run(server, ["toy"], data=[], output=tmp_path / "b", sampling=sampling)


def test_requests_are_tried_again(monkeypatch, tmp_path):
    seen = []

    def busy(path, body):
        seen.append(body["prompt"])
        failures = [(429, {}), (503, b"busy"), None]
        if (count := seen.count(body["prompt"])) <= 3:
            return failures[count - 1]
        return answered(path, body)

    with serving(busy, headers={"Retry-After": "0"}) as fake:
        record = evaluate(monkeypatch, toy(), fake.url, tmp_path)
    assert record["n"] == N and record["errors"] == 0 and len(seen) == 4 * N


def test_server_that_dies_is_named_and_its_evaluation_resumes(monkeypatch, tmp_path):
    count = []

    def dying(path, body):
        count.append(1)
        return answered(path, body) if len(count) <= 5 else None

    with serving(dying) as fake, pytest.raises(client.ServerError, match="(?s)resume") as caught:
        evaluate(monkeypatch, toy(), fake.url, tmp_path, concurrency=1)
    assert fake.url in caught.value.where
    assert not (tmp_path / "results.json").exists()
    with serving(answered) as fake:  # at another port
        record = evaluate(monkeypatch, toy(), fake.url, tmp_path)
    assert len(fake.requests) == N - 5 and record["score"] == pytest.approx(100 * 11 / 12)


def test_examples_that_the_server_refuses_are_counted_and_tried_again(monkeypatch, tmp_path):
    def full(path, body):
        if body["prompt"] in ("q3:", "q7:"):
            return 400, {"error": {"message": "the prompt is too long"}}
        return answered(path, body)

    with serving(full) as fake:
        record = evaluate(monkeypatch, toy(), fake.url, tmp_path)
    assert record["errors"] == 2 and record["n"] == N and record["abstained"] == 0
    assert "too long" in samples_of(tmp_path)[3]["error"]
    with serving(answered) as fake:
        assert evaluate(monkeypatch, toy(), fake.url, tmp_path)["errors"] == 0
    assert [body["prompt"] for *_, body in fake.requests] in (["q3:", "q7:"], ["q7:", "q3:"])


@pytest.mark.parametrize(
    "answer, error",
    [
        (lambda path, body: (401, {"error": {"message": "no key"}}), "no key"),
        (lambda path, body: (302, {}), "redirect"),
        (lambda path, body: (200, b"<html>"), "not a JSON object"),
        (lambda path, body: (200, {"choices": []}), "no completion"),
    ],
)
def test_server_that_refuses_everything_ends_the_evaluation(monkeypatch, tmp_path, answer, error):
    with serving(answer) as fake, pytest.raises(ConfigError, match=error):
        evaluate(monkeypatch, toy(n=400), fake.url, tmp_path)
    assert len(fake.requests) < 400


@pytest.mark.parametrize(
    "url, settings, error",
    [
        ("127.0.0.1:80", {}, "not the URL"),
        ("http://me:secret@127.0.0.1", {}, "credentials"),
        ("http://127.0.0.1:99999", {}, "not the URL"),
        (None, {"model": "fake1"}, "did you mean 'fake'"),
        (None, {}, "2 models: fake, more"),
    ],
)
def test_settings_of_a_server_are_checked(monkeypatch, tmp_path, url, settings, error):
    with serving(answered, models=("fake", "more")) as fake:
        with pytest.raises(ConfigError, match=error) as caught:
            evaluate(monkeypatch, toy(), url or fake.url, tmp_path, **settings)
    assert "secret" not in str(caught.value)


def echoed(path, body):
    """One token per character; an A after an even number is likelier than a B."""
    choices = []
    for index, prompt in enumerate(body["prompt"]):
        if isinstance(prompt, list):  # ids are bytes
            prompt = bytes(prompt).decode()
        number = int(prompt[1 : prompt.index(":")])
        likely = (number % 2 == 0) == prompt.endswith("A")
        logprobs = [None] + [-1.0] * (len(prompt) - 2) + [-0.5 if likely else -2.5, -9.0]
        tokens = [*prompt, "!"]
        offsets = list(range(len(tokens)))
        choices.append(
            {
                "index": index,
                "logprobs": {
                    "tokens": tokens, "token_logprobs": logprobs, "text_offset": offsets
                },
            }
        )  # fmt: skip
    return 200, {"choices": choices[::-1]}


@pytest.mark.parametrize("ids", [False, True])
def test_choices_are_scored_by_echo(monkeypatch, tmp_path, ids):
    settings = {}
    if ids:
        own_server.byte_tokenizer().save(tmp_path / "bytes.tiktoken")
        settings["tokenizer"] = str(tmp_path / "bytes.tiktoken")
    with serving(echoed) as fake:
        record = evaluate(monkeypatch, toy(choices=True), fake.url, tmp_path, **settings)
    assert record["score"] == 50
    first = samples_of(tmp_path)[0]
    assert first["logprobs"] == [-1.5, -3.5] and first["tokens"] == [2, 2]
    assert fake.requests[0][2]["echo"] and fake.requests[0][2]["logprobs"] == 1


def test_choices_need_a_server_with_echo(monkeypatch, tmp_path):
    def refuses(path, body):
        return 400, {"error": {"message": "echo is not supported"}}

    def ignores(path, body):
        return 200, {"choices": [{"index": i, "logprobs": None} for i in range(2)]}

    for answer in (refuses, ignores):
        with serving(answer) as fake, pytest.raises(ConfigError, match="(?s)log-prob.*gsm8k"):
            evaluate(monkeypatch, toy(choices=True), fake.url, tmp_path)


def test_choices_whose_first_token_begins_in_the_prompt_are_refused(monkeypatch, tmp_path):
    def merged(path, body):
        status, found = echoed(path, body)
        for choice in found["choices"]:  # ": " is one token
            at = choice["logprobs"]["tokens"].index(":")
            for name in ("tokens", "token_logprobs", "text_offset"):
                del choice["logprobs"][name][at + 1]
        return status, found

    with serving(merged) as fake, pytest.raises(DataError, match="(?s)across.*--tokenizer"):
        evaluate(monkeypatch, toy(choices=True), fake.url, tmp_path)


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("part", [slice(0, -2), slice(2, None)], ids=["end", "beginning"])
def test_log_probabilities_of_fewer_tokens_are_refused(monkeypatch, tmp_path, ids, part):
    """A server that leaves out the last token, or cuts the prompt."""

    def cut(path, body):
        status, found = echoed(path, body)
        for choice in found["choices"]:
            for name in ("tokens", "token_logprobs", "text_offset"):
                choice["logprobs"][name] = choice["logprobs"][name][part]
        return status, found

    own_server.byte_tokenizer().save(tmp_path / "bytes.tiktoken")
    settings = {"tokenizer": str(tmp_path / "bytes.tiktoken")} if ids else {}
    with serving(cut) as fake, pytest.raises(DataError, match="fewer tokens than it was sent"):
        evaluate(monkeypatch, toy(choices=True), fake.url, tmp_path / "out", **settings)


@pytest.mark.parametrize("usage", [5, [1], {"completion_tokens": "4"}, {"completion_tokens": -1}])
def test_numbers_of_tokens_that_are_none_are_not_known(monkeypatch, tmp_path, usage):
    def answer(path, body):
        status, found = answered(path, body)
        return status, found | {"usage": usage}

    with serving(answer) as fake:
        record = evaluate(monkeypatch, toy(), fake.url, tmp_path)
    assert record["mean_completion_tokens"] is None and record["errors"] == 0


@pytest.mark.parametrize("text", [5, ["a1 "], {"a": 1}])
def test_text_that_is_not_a_string_is_refused(monkeypatch, tmp_path, text):
    def answer(path, body):
        return 200, {"choices": [{"text": text, "finish_reason": "stop"}]}

    with serving(answer) as fake, pytest.raises(ConfigError, match="has no completion"):
        evaluate(monkeypatch, toy(), fake.url, tmp_path)


@pytest.mark.parametrize("listed", [5, [1], [{"id": None}], [{"id": ""}], {"id": "x"}])
def test_a_list_of_models_that_has_none_is_refused(monkeypatch, tmp_path, listed):
    monkeypatch.setattr(client.Client, "_call", lambda self, path, body: {"data": listed})
    with pytest.raises(ConfigError, match="the server has 0 models"):
        evaluate(monkeypatch, toy(), "http://127.0.0.1:1", tmp_path)


def test_our_own_server_is_evaluated(monkeypatch, tmp_path):
    tokenizer = own_server.byte_tokenizer()
    with own_server.running(FakeEngine(tokenizer), tokenizer) as running:
        url = f"http://127.0.0.1:{running.port}"
        for chat in (False, True):
            folder = tmp_path / str(chat)
            record = evaluate(monkeypatch, toy(chat=chat, stops=("END",)), url, folder)
            assert record["n"] == N and record["errors"] == 0
            assert record["mean_completion_tokens"] > 0
    assert json.loads((folder / "results.json").read_text())["model"] == own_server.MODEL


def test_completed_begins_no_call_after_an_error():
    begun = []

    def call(number):
        begun.append(number)
        if number == 3:
            raise ValueError("three")
        return -number

    found = []
    with pytest.raises(ValueError, match="three"):
        for index, value in completed(call, range(100), threads=1):
            found.append((index, value))
    assert found == [(0, 0), (1, -1), (2, -2)] and begun == [0, 1, 2, 3]
