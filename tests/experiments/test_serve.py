"""The server from the command line: a real model, the official client, a signal at the end."""

import signal
import socket
import subprocess
import sys

import openai
import pytest

from experiments import serve
from qwen_jax.errors import QwenJaxError
from tests.helpers.tiny_checkpoint import CONFIG, ROOT, environment, write


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write(tmp_path_factory.mktemp("model") / "tiny")


def test_it_answers_and_ends_in_order(checkpoint, tmp_path, tmp_path_factory):
    (tmp_path / "key").write_text("a secret\n")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "experiments.serve",
            f"--checkpoint={checkpoint}",
            "--port=0",
            f"--api_key=@{tmp_path}/key",
            "--rows=8",
        ],
        cwd=ROOT,
        text=True,
        env=environment(tmp_path_factory.getbasetemp() / "compiled"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        lines = [process.stdout.readline() for _ in range(5)]
        assert "secret" not in lines[0] and "trained at 64, extended by dynamic NTK" in lines[1]
        assert lines[4].startswith("tiny: http://127.0.0.1:"), lines
        client = openai.OpenAI(base_url=lines[4].split()[1], api_key="a secret", max_retries=0)
        assert client.models.list().data[0].max_model_len == 4 * CONFIG.context_length
        ask = dict(
            model="tiny", messages=[{"role": "user", "content": "Hi"}], max_tokens=30, temperature=0
        )
        answer = client.chat.completions.create(**ask)
        text = answer.choices[0].message.content
        assert len(text) == 30 and text.isalpha() and answer.choices[0].finish_reason == "length"
        assert text == "".join(
            chunk.choices[0].delta.content or ""
            for chunk in client.chat.completions.create(**ask, stream=True)
        )
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="other").models.list()
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, output) == (0, "ended\n") and "Traceback" not in errors, errors


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"host": "0.0.0.0"}, "--allow_remote"),
        ({"host": "::"}, "--allow_remote"),
        ({"rows": 0}, "rows=0"),
        ({"max_queued": -1}, "max_queued=-1"),
        ({"grace": -1.0}, "grace"),
        ({"api_key": "@/nowhere/key"}, "cannot read"),
        ({"api_key": ""}, "the key is empty"),
        ({"port": 70000}, "cannot listen"),
        ({}, "no model"),
    ],
)
def test_settings_that_cannot_be_right_are_named_before_the_model_is_read(settings, word):
    with pytest.raises(QwenJaxError, match=word):
        serve.main(serve.Config(port=settings.pop("port", 0), **settings))


def test_a_port_that_is_taken_is_named(checkpoint):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(QwenJaxError, match="cannot listen"):
            serve.main(serve.Config(checkpoint=str(checkpoint), port=taken.getsockname()[1]))
