"""experiments.serve from the command line, with a real model and the official client."""

import signal
import socket
import subprocess
import sys

import openai
import pytest

from experiments import serve
from qwen_jax.errors import QwenJaxError
from qwen_jax.serve.page.config import PageConfig
from tests.helpers.tiny_checkpoint import ROOT, environment, write


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write(tmp_path_factory.mktemp("model") / "tiny", num_layers=1, context_length=32)


def test_serve_completes_requests_and_stops_on_a_signal(checkpoint, tmp_path, tmp_path_factory):
    (tmp_path / "key").write_text("a secret\n")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "experiments.serve",
            f"--checkpoint={checkpoint}",
            "--port=0",
            f"--api_key=@{tmp_path}/key",
            "--max_num_seqs=8",
        ],
        cwd=ROOT,
        text=True,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        lines = [process.stdout.readline() for _ in range(5)]
        assert "secret" not in lines[0] and "trained at 32, extended by dynamic NTK" in lines[1]
        assert lines[4].startswith("tiny: http://127.0.0.1:"), lines
        assert process.stdout.readline().startswith("open http://127.0.0.1:")
        client = openai.OpenAI(base_url=lines[4].split()[1], api_key="a secret", max_retries=0)
        assert client.models.list().data[0].max_model_len == 4 * 32
        request = dict(
            model="tiny", messages=[{"role": "user", "content": "Hi"}], max_tokens=30, temperature=0
        )
        response = client.chat.completions.create(**request)
        text = response.choices[0].message.content
        assert len(text) == 30 and text.isalpha() and response.choices[0].finish_reason == "length"
        assert text == "".join(
            chunk.choices[0].delta.content or ""
            for chunk in client.chat.completions.create(**request, stream=True)
        )
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="other").models.list()
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, output) == (0, "stopped\n") and "Traceback" not in errors, errors


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"host": "0.0.0.0"}, "--allow_remote"),
        ({"host": "::"}, "--allow_remote"),
        ({"max_num_seqs": 0}, "max_num_seqs=0"),
        ({"max_queued": -1}, "max_queued=-1"),
        ({"grace": -1.0}, "grace"),
        ({"api_key": "@/nowhere/key"}, "cannot read"),
        ({"api_key": ""}, "api_key='' is not a non-empty string, or none"),
        ({"port": 70000}, "port=70000 is not an integer from 0 to 65,535"),
        (
            {"host": "::", "allow_remote": True, "page": PageConfig(tools=("calculator",))},
            "could run its tools",
        ),
        ({"checkpoint": ("a", "b"), "tensor": 2}, "several models"),
        ({"checkpoint": ("a", "b"), "model_name": ("one",)}, "1 names for 2 models"),
        ({"checkpoint": ("a", "a")}, "two models have the name"),
        ({}, "no model"),
    ],
)
def test_serve_refuses_invalid_settings_before_loading_the_model(settings, word):
    with pytest.raises(QwenJaxError, match=word):
        serve.main(serve.Config(port=settings.pop("port", 0), **settings))


def test_serve_reports_a_port_in_use(checkpoint):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(QwenJaxError, match="cannot listen"):
            serve.main(serve.Config(checkpoint=(str(checkpoint),), port=taken.getsockname()[1]))


def test_names_tell_folders_of_one_name_apart():
    config = serve.Config(checkpoint=("runs/sft/export", "runs/ppo/export"))
    assert [name for _, name in config.names()] == ["sft/export", "ppo/export"]
    config = serve.Config(checkpoint=("runs/sft", "runs/ppo"))
    assert [name for _, name in config.names()] == ["sft", "ppo"]
