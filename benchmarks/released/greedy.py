"""Greedy text of one folder: from generate, the chat in the terminal, and the server.

All start from the folder's generation_config.json, so a penalty for repetition counts; only the
temperature is set, to 0.
"""

import contextlib
import io
from collections.abc import Iterator
from unittest import mock

from benchmarks.released import inputs
from benchmarks.released.checks import Place, load
from experiments import chat
from qwen_jax.inference import jsonl
from qwen_jax.inference.complete import Completer
from qwen_jax.inference.engine import Engine
from qwen_jax.inference.terminal import Conversation, printable
from qwen_jax.inference.warmup import start_engine
from qwen_jax.serve.api.protocol import Limits
from qwen_jax.serve.app import ServerConfig, create_app
from qwen_jax.serve.models import Models, Served
from qwen_jax.serve.worker import Worker
from qwen_jax.tokenizer import generation_config
from qwen_jax.tokenizer.bpe import Tokenizer

_CONTEXT = 512
_TIE = 1e-3  # of two logits of order 1; either id is then right
_NEW_TOKENS = 12


def texts(place: Place) -> str:
    """Compares the texts of all three with each other; of plain messages also with transformers."""
    config, params, tokenizer = load(place)
    context = 4 * config.context_length if place.of_qwen1 else _CONTEXT
    with contextlib.redirect_stdout(io.StringIO()):
        engine = start_engine(
            params, config, tokenizer, max_num_seqs=1, context=context, cache_dtype=None
        )
    questions = list(inputs.QUESTIONS[: 1 if place.of_qwen1 else None])
    found = [_generated(engine, tokenizer, each) for each in questions]
    for question, text in zip(questions, found, strict=True):
        typed = _typed(engine, tokenizer, question, context)
        assert printable(text) in typed, f"chat: {typed!r}, not {text!r}"
    with _served(place, engine, tokenizer, context) as ask:
        for question, text in zip(questions, found, strict=True):
            assert (answer := ask(question)) == text, f"server: {answer!r}, not {text!r}"
    if place.of_qwen1:
        return "3 ways"
    ties = 0
    for text, right in zip(found, place.expected()["greedy"], strict=True):
        # The name of a control token in a message is text to us; transformers would end the turn.
        named = any("<|" in message["content"] for message in right["messages"])
        if not named and text != right["text"]:
            assert min(right["margins"]) < _TIE, f"{text!r}, not {right['text']!r}"
            ties += 1
    return "3 ways" + (f", {ties} ties" if ties else "")


def _generated(engine: Engine, tokenizer: Tokenizer, messages: list[dict]) -> str:
    """As experiments.generate completes one line of a file."""
    settings = jsonl.Settings(temperature=0.0, max_new_tokens=_NEW_TOKENS)
    sampling, _ = settings.of_model(tokenizer)
    turns = [(message["role"], message["content"]) for message in messages]
    (text,) = Completer(engine, tokenizer, sampling).texts([turns])
    assert text is not None
    return text


def _typed(engine: Engine, tokenizer: Tokenizer, messages: list[dict], context: int) -> str:
    """What experiments.chat shows after a user has typed the question."""
    system = [message["content"] for message in messages if message["role"] == "system"]
    config = chat.Config(temperature=0.0, max_new_tokens=_NEW_TOKENS)
    sampling, _ = config.sampling(tokenizer.settings)
    conversation = Conversation(
        engine, tokenizer, sampling, context=context, system=system[0] if system else None
    )
    lines = iter([messages[-1]["content"]])

    def typed(prompt: str) -> str:
        if (line := next(lines, None)) is None:
            raise EOFError
        return line

    with contextlib.redirect_stdout(io.StringIO()) as screen, mock.patch("builtins.input", typed):
        conversation.run()
    return screen.getvalue()


@contextlib.contextmanager
def _served(place: Place, engine: Engine, tokenizer: Tokenizer, context: int) -> Iterator:
    """Yields a function from messages to the server's answer, without a network."""
    from starlette.testclient import TestClient

    worker = Worker(engine, max_num_seqs=1, max_queued=4, max_client_choices=5)
    defaults = generation_config.sampling(tokenizer.settings)
    limits = Limits(model="tiny", context=context, max_choices=4, defaults=defaults)
    app = create_app(Models([Served(worker, tokenizer, limits)]), ServerConfig())

    def ask(messages: list[dict]) -> str:
        body = {"model": "tiny", "messages": messages, "temperature": 0}
        body["max_tokens"] = _NEW_TOKENS
        response = client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["message"]["content"]

    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield ask
