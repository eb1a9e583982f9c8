"""Completions: prompts that fit, stops, and verdicts."""

import dataclasses

import pytest

from qwen_jax.errors import ConfigError, DataError, TokenizerError
from qwen_jax.evaluate import generation
from qwen_jax.evaluate.samples.sampling import Sampling
from qwen_jax.evaluate.summary import summarize
from qwen_jax.evaluate.task import Example, Generation, Next, Questions, Task, Verdict
from qwen_jax.evaluate.tasks import TASKS, bbh, chat_choices, gsm8k, math
from qwen_jax.tokenizer.bpe import Tokenizer
from tests.helpers.chat_templates import released
from tests.helpers.fake_engine import FakeEngine

TOKENIZER = Tokenizer({bytes([byte]): byte for byte in range(256)})


def task_of(*, chat: bool = False, stops: tuple[str, ...] = ("END",), new: int = 40) -> Task:
    def grade(text: str, example: Example) -> Verdict:
        return Verdict("sea" in text, text[:3] or None, "first letters")

    return Task(
        name="toy",
        protocol="qwen",
        read=lambda data: Questions(()),
        template=lambda example, shots: example.fields["text"],
        files=(),
        counts=9,
        source="",
        generation=Generation(stops, new, grade),
        chat=chat,
    )


def items_of(task: Task, texts, max_length: int = 256):
    examples = [Example(i, {"text": text}, "x") for i, text in enumerate(texts)]
    return [generation.encode(task, one, (), TOKENIZER, max_length) for one in examples]


def test_generate_equals_a_run_of_each_prompt_by_itself():
    task, texts = task_of(new=15), [f"prompt {i}" for i in range(9)]
    items = items_of(task, texts)
    done = []
    found = dict(generation.generate(FakeEngine(TOKENIZER), items, task, progress=done.append))
    assert sorted(found) == list(range(9)) and sum(done) == 9
    for index, item in enumerate(items):
        engine = FakeEngine(TOKENIZER, max_num_seqs=1)
        assert (
            dict(generation.generate(engine, [item], task, progress=lambda n: None))[0]
            == found[index]
        )
        assert "END" not in found[index]["completion"]
        assert found[index]["correct"] == ("sea" in found[index]["completion"])
    assert {one["finish"] for one in found.values()} == {"stop", "length"}
    record = summarize(task, list(found.values()))
    assert record["ended"] == sum(s["finish"] == "stop" for s in found.values()) / 9
    assert record["rules"] == {"first letters": 9}


def test_encode_renders_with_the_variables_of_the_chat_template(shared):
    tokenizer, example = released(shared, "qwen3"), Example(0, {"text": "q"}, "x")
    off = Sampling(chat_template_kwargs='{"enable_thinking": false}')
    for sampling, thoughts in ((Sampling(), ""), (off, "<think>\n\n</think>\n\n")):
        item = generation.encode(task_of(chat=True), example, (), tokenizer, 999, sampling)
        assert tokenizer.decode(item.request.prompt).endswith(f"assistant\n{thoughts}")
    assert off.record() == {"chat_template_kwargs": {"enable_thinking": False}}
    with pytest.raises(TokenizerError, match="no variable"):  # there is no template to read it
        generation.encode(task_of(chat=True), example, (), TOKENIZER, 999, off)
    for wrong in ("x", "[]", '{"tools": []}'):
        with pytest.raises(ConfigError, match="--chat_template_kwargs"):
            Sampling(chat_template_kwargs=wrong)


def test_generate_completes_equal_prompts_once():
    task, engine, done = task_of(new=15), FakeEngine(TOKENIZER), []
    submitted, submit = [], engine.submit
    engine.submit = lambda request: submitted.append(request) or submit(request)
    items = items_of(task, ["same", "other", "same"])
    found = dict(generation.generate(engine, items, task, progress=done.append))
    assert len(submitted) == 2 and sorted(found) == [0, 1, 2] and sum(done) == 3
    assert found[0] == found[2] | {"id": "0"} and found[2]["id"] == "2"


def test_encode_cuts_the_beginning_of_a_long_prompt_but_not_of_a_conversation():
    (item,) = items_of(task_of(), ["0123456789" * 10], max_length=100)
    assert item.lost == 40 and bytes(item.request.prompt) == b"0123456789" * 6
    with pytest.raises(DataError, match="(?s)up to 40.*toy 0"):
        items_of(task_of(), ["x"], max_length=40)
    with pytest.raises(DataError, match="context has 100"):
        items_of(task_of(chat=True), ["0123456789" * 10], max_length=100)


def test_encode_renders_a_users_turn_in_chatml():
    (item,) = items_of(task_of(chat=True), ["hello"])
    text = TOKENIZER.decode(list(item.request.prompt))
    assert text.endswith("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n")
    assert TOKENIZER.im_end in item.request.sampling.stop_token_ids
    (plain,) = items_of(task_of(), ["hello"])
    assert bytes(plain.request.prompt) == b"hello"
    assert plain.request.sampling.stop_token_ids == (TOKENIZER.end_of_text,)


def test_encode_renders_the_template_and_the_stop_ids_of_the_model(shared):
    tokenizer = released(shared, "qwen2.5", {"eos_token_id": 7})
    example = Example(0, {"text": "hello"}, "")
    item = generation.encode(task_of(chat=True), example, (), tokenizer, 4000)
    turn = [{"role": "user", "content": "hello"}]
    right = tokenizer.apply_chat_template(turn, add_generation_prompt=True)
    assert tokenizer.decode(list(item.request.prompt)) == right
    assert "created by Alibaba Cloud" in right  # not ChatML's own system message
    assert item.request.sampling.stop_token_ids[0] == 7


@pytest.mark.parametrize(
    "grade, text, answer, correct",
    [
        (gsm8k.grade_base, "so 5 + 13 = 18 dollars", "18", True),
        (gsm8k.grade_base, "so 1,234", "1234", False),  # the released script takes 234
        (gsm8k.grade_base, "many", "18", False),
        (gsm8k.grade_chat, "It is 1,234.", "1234", True),
        (gsm8k.grade_chat, "-7", "7", False),
        (math.grade_math, r"thus $\boxed{\frac12}$.", "0.5", True),
        (math.grade_math, "I do not know", "0.5", False),
        (math.grade_math401, "The answer is 8.3", "8.3000", True),
        (math.grade_math23k, "答案是0.8", "80%", True),
        (bbh.grade, " So the answer is (B).", "(B)", True),
        (bbh.grade, " So the answer is (A).", "(B)", False),
    ],
)
def test_graders(grade, text, answer, correct):
    assert grade(text, Example(0, {}, answer)).correct is correct


def test_chat_choices_abstain_only_in_the_strict_task():
    example = Example(0, {"A": "Paris", "B": "London", "C": "Rome", "D": "Madrid"}, "C")
    released, strict = (
        chat_choices.grade(kind)("No idea.", example) for kind in ("mmlu_chat", "mmlu_chat_strict")
    )
    assert released.extracted is not None and strict.extracted is None and not strict.correct
    assert TASKS["mmlu_chat"].generation.grade("The answer is C.", example).correct


def test_generate_goes_on_as_the_task_says_and_grades_the_full_text():
    task, engine = task_of(new=15), FakeEngine(TOKENIZER)
    engine.tokenizer = TOKENIZER
    assert task.generation is not None
    asked = []

    def follow(text, example):
        asked.append(text)
        if text.count("|") >= example.index:  # the first example has one completion, and so on
            return None
        return Next([("user", f"again {text}")], "begun", f"{text}|")

    task = dataclasses.replace(task, generation=dataclasses.replace(task.generation, follow=follow))
    # Equal prompts of examples that go on differently.
    items = items_of(task, ["same", "same", "same"], max_length=400)
    engine.max_model_len = 400
    found = dict(generation.generate(engine, items, task, progress=lambda n: None))
    assert [found[index]["completion"].count("|") for index in range(3)] == [0, 1, 2]
    parts = found[2]["completion"].split("|")
    assert found[1]["completion"].split("|") == parts[:2] and len(asked) == 3 + 2 + 1
    prompts = [TOKENIZER.decode(list(prompt)) for prompt in engine.prompts]
    assert len(prompts) == 3 and sum(one.endswith("assistant\nbegun") for one in prompts) == 2
    assert any(f"again {parts[0]}|{parts[1]}" in one for one in prompts)
    assert found[1]["completion_tokens"] > found[0]["completion_tokens"]
    engine.max_model_len = 60  # no room for another completion
    found = dict(generation.generate(engine, items, task, progress=lambda n: None))
    assert [found[index]["completion"].count("|") for index in range(3)] == [0, 0, 0]
