"""A server process ends in order on a signal, whatever it is doing."""

import pathlib
import signal
import socket
import subprocess
import sys
import time

import openai
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# A served engine without a model whose answers take 0.02 s a token.
PROGRAM = """
import socket, sys
sys.path.insert(0, {root!r})
from tests.helpers.fake_engine import FakeEngine
from tests.helpers.server import byte_tokenizer
from qwen_jax.serve.app import ServerConfig, create_app
from qwen_jax.serve.calls import Limits
from qwen_jax.serve.run import run
from qwen_jax.serve.worker import Worker
tokenizer = byte_tokenizer()
engine = FakeEngine(tokenizer, seconds=0.02, unending=True, slots=10**6)
worker = Worker(engine, rows=4, max_queued=4)
app = create_app(worker, tokenizer, ServerConfig(Limits("tiny", 10**6, worker.capacity)))
sock = socket.socket()
sock.bind(("127.0.0.1", 0))
run(app, worker, sock, grace={grace}, ready=lambda: print(sock.getsockname()[1], flush=True))
print("ended", engine.busy, worker.close(0.0), flush=True)
"""


@pytest.fixture
def serve():
    processes = []

    def start(grace):
        program = PROGRAM.format(root=str(ROOT), grace=grace)
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        processes.append(process)
        return process, openai.OpenAI(
            base_url=f"http://127.0.0.1:{int(process.stdout.readline())}/v1",
            api_key="none",
            max_retries=0,
            timeout=30,
        )

    yield start
    for process in processes:
        process.kill()
        process.wait()


def stream(client, max_tokens):
    return client.completions.create(model="tiny", prompt="x", max_tokens=max_tokens, stream=True)


def end(process, within: float) -> str:
    begin = time.monotonic()
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0 and "Traceback" not in errors, errors
    assert time.monotonic() - begin < within
    return output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_answers_in_flight_come_to_their_end_and_no_new_ones_are_taken(serve, number):
    process, client = serve(grace=20)
    pieces = stream(client, 60)
    text = next(pieces).choices[0].text
    process.send_signal(number)
    time.sleep(0.4)
    with pytest.raises(openai.APIConnectionError):
        client.completions.create(model="tiny", prompt="y")
    finish = None
    for piece in pieces:
        text += piece.choices[0].text
        finish = piece.choices[0].finish_reason
    assert finish == "length" and len(text.encode()) >= 60
    assert end(process, within=15) == "ended False True\n"


def test_after_the_grace_the_streams_are_told_and_ended(serve):
    process, client = serve(grace=0.3)
    pieces = [stream(client, 100_000), stream(client, 100_000)]
    for piece in pieces:
        next(piece)
    process.send_signal(signal.SIGTERM)
    for piece in pieces:
        with pytest.raises(openai.APIError, match="shutting down"):
            for _ in piece:
                pass
    assert end(process, within=15) == "ended False True\n"


def test_a_second_ctrl_c_waits_for_nothing(serve):
    process, client = serve(grace=60)
    pieces = stream(client, 100_000)
    next(pieces)
    with socket.create_connection(("127.0.0.1", client.base_url.port)) as half:  # a request
        half.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert end(process, within=15).startswith("ended")


def test_an_idle_server_ends_at_once(serve):
    process, client = serve(grace=60)
    assert client.models.list().data  # a connection that stays open
    process.send_signal(signal.SIGTERM)
    assert end(process, within=15) == "ended False True\n"
