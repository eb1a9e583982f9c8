"""Multiple choice by likelihood: token boundaries, choices of several tokens, long prompts."""

import dataclasses

import jax
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.errors import DataError
from qwen_jax.evaluate import likelihood
from qwen_jax.evaluate.boundary import split
from qwen_jax.evaluate.task import Example, Questions, Task
from qwen_jax.inference.scoring import Scorer, Scores
from qwen_jax.model.spec import init_params
from qwen_jax.model.transformer import forward
from qwen_jax.tokenizer.bpe import Tokenizer

BYTES = {bytes([byte]): byte for byte in range(256)}
TOKENIZER = Tokenizer(BYTES | {b":A": 256, b" B": 257})
CONFIG = dataclasses.replace(
    sizes.TINY,
    context_length=64,
    vocab_size=TOKENIZER.vocab_size,
    num_layers=1,
    initializer_range=0.3,
)


def task_of(choices: tuple[str, ...]) -> Task:
    return Task(
        name="toy",
        protocol="qwen",
        read=lambda data: Questions(()),
        template=lambda example, shots: example.fields["text"],
        files=(),
        counts=1,
        source="",
        letters="ABCDE"[: len(choices)],
        choices=lambda example: choices,
    )


def item_of(
    text: str, *choices: str, answer: str = "A", max_length: int = 64
) -> likelihood.Question:
    example = Example(3, {"text": text}, answer, "s")
    return likelihood.encode(task_of(choices), example, (), TOKENIZER, max_length)


@pytest.fixture(scope="module")
def params():
    return jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(0))


def test_split_keeps_continuations_that_merge_with_the_prompt():
    (merged,) = split(TOKENIZER, "x:", ["A"])
    assert merged == ((120, 58), (65,), True)
    (spaces,) = split(TOKENIZER, "x:  ", ["B"])  # spaces go to the continuation
    assert spaces == ((120, 58), (32, 257), False)
    assert split(TOKENIZER, "", ["A"])[0] == ((), (65,), False)
    with pytest.raises(DataError, match="empty"):
        split(TOKENIZER, "x", [""])


def test_split_at_the_boundaries_of_published_prompts(shared):
    qwen = Tokenizer.from_file(shared / "reference/qwen.tiktoken")
    assert split(qwen, "答案：", ["A"])[0] == ((102349, 5122), (32,), False)
    (space,) = split(qwen, "Answer:", [" A"])
    assert not space.separate and qwen.decode(list(space.continuation)) == " A"
    (merged,) = split(qwen, "Answer:", ["A"])
    assert merged.separate and qwen.decode(list(merged.continuation)) == "A"


def test_choices_of_one_token_share_a_row():
    item = item_of("question", "A", "B", "C")
    assert [len(row.scored) for row in item.rows] == [3]
    item = item_of("question", "ab", "ac", "d")
    assert [len(row.scored) for row in item.rows] == [4, 1]


def test_logprobs_are_sums_over_all_tokens_of_a_choice(params):
    choices = ("ab", "ac", "d", "efghi", " B")
    item = item_of("question", *choices, answer="C")
    (_, sample), = likelihood.score(
        Scorer(params, CONFIG), [item], task_of(choices), progress=lambda n: None
    )  # fmt: skip
    for choice, found, count in zip(choices, sample["logprobs"], sample["tokens"], strict=True):
        context, continuation = TOKENIZER.encode("question"), TOKENIZER.encode(choice)
        tokens = np.asarray([[*context, *continuation]], np.int32)
        logprobs = np.asarray(jax.nn.log_softmax(forward(params, tokens, config=CONFIG)))[0]
        first = len(context) - 1
        expected = [logprobs[first + i, token] for i, token in enumerate(continuation)]
        assert found == pytest.approx(sum(expected), abs=1e-4) and count == len(continuation)


def sample_of(logprobs: list[list[float]], choices: tuple[str, ...], answer: str) -> dict:
    item = item_of("q", *choices, answer=answer)
    left = {row.tokens: [] for row in item.rows}
    for part, own in zip(item.parts, logprobs, strict=True):
        left[part.context + part.continuation[:-1]] += own
    scores = [Scores(tuple(left[row.tokens]), ()) for row in item.rows]
    return likelihood.sample(item, scores, task_of(choices))


def test_sample_compares_sums_bytes_and_tokens():
    found = sample_of([[-3.0], [-1.0, -1.0, -1.5]], ("x", "abc"), "B")
    assert found["extracted"] == "A" and not found["correct"]
    assert found["correct_per_byte"] and found["correct_per_token"] and found["ties"] == 0
    tied = sample_of([[-2.0], [-2.0]], ("x", "y"), "B")
    assert (tied["extracted"], tied["ties"], tied["correct"]) == ("A", 2, False)


def test_compared_per_byte_does_not_count_the_space_before_a_choice():
    task = dataclasses.replace(task_of((" x", " abc")), per_byte=True)
    item = item_of("q", " x", " abc", answer="B")
    settings = {"prompt_tokens": None, "separate": False}
    found = likelihood.compared(item, (" x", " abc"), [[-2.0], [-3.0]], task, **settings)
    assert (found["extracted"], found["correct"], found["correct_sum"]) == ("B", True, False)
    assert found["rule"] == "highest log-probability per byte"
    # -1.5 and -3 are 1.5 and 1 per letter; with the space they were 0.75 each.
    found = likelihood.compared(item, (" x", " abc"), [[-1.5], [-3.0]], task, **settings)
    assert found["extracted"] == "B" and not found["ties"]
    tied = likelihood.compared(item, (" x", " abc"), [[-1.0], [-3.0]], task, **settings)
    assert (tied["extracted"], tied["ties"]) == ("A", 2)
    spaces = likelihood.compared(item, (" ", " abc"), [[-1.0], [-3.0]], task, **settings)
    assert spaces["ties"] == 2  # a space is a choice of one byte


def test_encode_cuts_the_beginning_of_a_long_prompt_and_counts_it():
    item = item_of("0123456789" * 3, "A", "xyz", max_length=12)
    assert item.lost == 30 + 2 - 12 and [len(row.tokens) for row in item.rows] == [10, 12]
    assert bytes(item.rows[0].tokens) == b"0123456789"
    with pytest.raises(DataError, match="(?s)3 tokens.*toy s/3"):
        item_of("0", "xyz", max_length=2)
