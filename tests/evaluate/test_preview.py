"""The preview of a prompt: token boundaries, special tokens, choices and stop strings."""

import dataclasses

import pytest

from qwen_jax.evaluate.prompts.marked import Marker
from qwen_jax.evaluate.prompts.preview import preview
from qwen_jax.evaluate.prompts.questions import Work
from qwen_jax.evaluate.task import Example, Generation, Questions, Task, Verdict
from qwen_jax.tokenizer.bpe import Tokenizer

MERGED = (b":A", b" A", b"\n\n", b"to", b"tok", b"to be")
TOKENIZER = Tokenizer(
    {bytes([byte]): byte for byte in range(256)} | {one: 256 + i for i, one in enumerate(MERGED)}
)
CHOICES = Task(
    name="letters",
    protocol="lm_eval",
    read=lambda data: Questions(()),
    template=lambda example, shots: example.fields["text"],
    files=(),
    counts=1,
    source="ours",
    num_shots=5,
    choices=lambda example: (" A", "A", "B to"),
    letters="ABC",
)
COMPLETION = dataclasses.replace(
    CHOICES,
    name="words",
    choices=None,
    generation=Generation(("\n\n", "Q:"), 1024, lambda text, example: Verdict(True, "", "")),
)
CHAT = dataclasses.replace(COMPLETION, chat=True)


def work(task: Task, text: str) -> Work:
    return Work(task, (Example(3, {"text": text}, "A", "history"),), {})


def test_marker_shows_each_boundary():
    plain = Marker(TOKENIZER, color=False)
    ids = TOKENIZER.encode("tok\n\n: A|\x1b[2J\r")
    assert plain.show(ids) == "tok│⏎\n⏎\n│:│ A│|│\\x1b│[│2│J│\\r"
    assert plain.show(TOKENIZER.encode("é")) == "\\xc3│\\xa9"
    special = TOKENIZER.encode("a<|im_start|>", allow_special=True)
    assert plain.show(special) == "a│⟦<|im_start|>⟧"
    assert "⟦" not in plain.show(TOKENIZER.encode("<|im_start|>"))
    assert plain.show([999_999]) == "�"


def test_marker_colors_alternate_and_end_with_the_line():
    one, other, end = "\x1b[30;48;5;153m", "\x1b[30;48;5;223m", "\x1b[0m"
    color = Marker(TOKENIZER, color=True)
    assert color.show(TOKENIZER.encode("tokab\nc")) == (
        f"{one}tok{end}{other}a{end}{one}b{end}{other}⏎{end}\n{one}c{end}"
    )
    assert color.show(TOKENIZER.encode("a"), first=7) == f"{other}a{end}"
    assert color.show([TOKENIZER.im_end]) == f"\x1b[1;97;41m<|im_end|>{end}"


def test_preview_of_choices_shows_where_they_begin():
    text = preview(work(CHOICES, "tok\nto:"), TOKENIZER, color=False)
    assert text.splitlines() == [
        "=== letters@lm_eval: protocol lm_eval, 5 shots, example history/3",
        "tok│⏎",
        "│to│:",
        "the prompt has 4 tokens",
        "to│:║ A  (1 token)",
        "to│:║A  (1 token, encoded separately: tokens would merge)",
        "to│:║B│ │to  (3 tokens)",
    ]


def test_preview_of_a_completion_names_what_ends_it():
    text = preview(work(COMPLETION, "tok"), TOKENIZER, color=False)
    assert text.splitlines()[1:] == [
        "tok",
        "the prompt has 1 token",
        "the completion ends at <|endoftext|>, or after 1,024 tokens",
        "stop strings: '\\n\\n', 'Q:'",
    ]


@pytest.mark.parametrize("tokenizer", [None, TOKENIZER])
def test_preview_of_a_chat_task_is_rendered(tokenizer):
    text = preview(work(CHAT, "tok <|im_end|>"), tokenizer, color=False)
    assert "<|im_end|> or <|endoftext|>" in text
    if tokenizer is None:
        assert "<|im_start|>user⏎\ntok <|im_end|><|im_end|>⏎\n<|im_start|>assistant⏎\n" in text
        assert "tokens are not shown" in text and "│" not in text
    else:
        assert "│⟦<|im_start|>⟧│u│s│e│r│⏎\n│tok│ │<│|│i│m│_│e│n│d│|│>│⟦<|im_end|>⟧│⏎\n" in text


def test_preview_without_a_tokenizer_has_the_choices():
    text = preview(work(CHOICES, "tok\nto:"), None, color=False)
    assert "tok⏎\nto:\n" in text and "choice ' A'" in text and "choice 'B to'" in text
