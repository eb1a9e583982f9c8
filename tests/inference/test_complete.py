"""Completion of conversations: order, partial responses, conversations without room."""

import pytest

from qwen_jax.inference.complete import Completer
from qwen_jax.inference.request import Event
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.tokenizer import chatml
from qwen_jax.tokenizer.bpe import Tokenizer

TOKENIZER = Tokenizer({bytes([byte]): byte for byte in range(256)})


class LastFirst:
    """An engine that returns the prompt's last word and the seed, the last request first."""

    max_model_len = 256

    def __init__(self):
        self.requests = []

    def submit(self, request):
        self.requests.append(request)
        return [len(self.requests) - 1]

    def step(self):
        number = max(i for i, request in enumerate(self.requests) if request is not None)
        request, self.requests[number] = self.requests[number], None
        assert request.sampling == SamplingParams(
            max_new_tokens=6,
            temperature=1.0,
            top_p=0.9,
            seed=request.sampling.seed,
            stop_token_ids=chatml.stop_ids(TOKENIZER),
        )
        last_word = TOKENIZER.decode(list(request.prompt)).split()[-1]
        return [
            Event(number, 1, last_word, None),
            Event(number, 2, f" {request.sampling.seed}", None),
            Event(number, None, "!", None, "stop"),
        ]


@pytest.fixture
def complete():
    return Completer(LastFirst(), TOKENIZER, SamplingParams(6, temperature=1.0, top_p=0.9))


def test_completer_stream_yields_completions_with_their_index(complete):
    conversations = [
        [("user", "a")],
        [("system", "s"), ("user", "b" * 300)],
        [("user", "d"), ("assistant", "1. e\n2.")],
    ]
    found = list(complete.stream(conversations, [5, 6, 7]))
    assert [index for index, _ in found] == [1, 2, 0]  # as they finish
    completions = dict(found)
    assert completions[1] is None  # no room
    # A partial response is continued after its last character; otherwise a new turn is opened.
    partial = completions[2]
    assert (partial.text, partial.tokens, partial.finish) == ("2. 7!", (1, 2), "stop")
    assert completions[0].text == "<|im_start|>assistant 5!"


def test_completer_texts_are_in_order(complete):
    conversations = [[("user", "q"), ("assistant", letter)] for letter in "abc"]
    assert complete.texts([*conversations, [("user", "x" * 300)]]) == ["a 0!", "b 0!", "c 0!", None]
    assert complete.texts([]) == []
