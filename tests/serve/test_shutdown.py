"""The server process exits cleanly on a signal in any state."""

import pathlib
import signal
import socket
import subprocess
import sys
import time

import openai
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# A server for an engine without a model that takes 0.02 s per token.
PROGRAM = """
import socket, sys
sys.path.insert(0, {root!r})
from tests.helpers.fake_engine import FakeEngine
from tests.helpers.server import byte_tokenizer
from qwen_jax.serve.app import ServerConfig, create_app
from qwen_jax.serve.connections import Connections
from qwen_jax.serve.limits import ClientLimits
from qwen_jax.serve.api.protocol import Limits
from qwen_jax.serve.models import Models, Served
from qwen_jax.serve.run import run
from qwen_jax.serve.worker import Worker
tokenizer = byte_tokenizer()
engine = FakeEngine(tokenizer, seconds=0.02, unending=True, max_model_len=10**6)
worker = Worker(engine, max_num_seqs=4, max_queued=4)
models = Models([Served(worker, tokenizer, Limits("tiny", 10**6, worker.capacity))])
app = create_app(models, ServerConfig())
limits = ClientLimits().resolved(max_num_seqs=4, capacity=8, max_open_files=100)
sock = socket.socket()
sock.bind(("127.0.0.1", 0))
port = sock.getsockname()[1]
run(app, models, sock, Connections(limits), grace={grace}, ready=lambda: print(port, flush=True))
print("exited", engine.busy, worker.close(0.0), flush=True)
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


def wait_for_exit(process, within: float) -> str:
    begin = time.monotonic()
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0 and "Traceback" not in errors, errors
    assert time.monotonic() - begin < within
    return output


@pytest.mark.parametrize(
    "number",
    # A test below sends SIGINT to a server with a running completion, too.
    [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)],
)
def test_run_on_a_signal_finishes_running_completions_and_accepts_no_more(serve, number):
    process, client = serve(grace=20)
    chunks = stream(client, 60)
    text = next(chunks).choices[0].text
    process.send_signal(number)
    time.sleep(0.4)
    with pytest.raises(openai.APIConnectionError):
        client.completions.create(model="tiny", prompt="y")
    finish = None
    for chunk in chunks:
        text += chunk.choices[0].text
        finish = chunk.choices[0].finish_reason
    assert finish == "length" and len(text.encode()) >= 60
    assert wait_for_exit(process, within=15) == "exited False True\n"


def test_run_cancels_streams_with_an_error_after_the_grace_period(serve):
    process, client = serve(grace=0.3)
    streams = [stream(client, 100_000), stream(client, 100_000)]
    for chunks in streams:
        next(chunks)
    process.send_signal(signal.SIGTERM)
    for chunks in streams:
        with pytest.raises(openai.APIError, match="shutting down"):
            for _ in chunks:
                pass
    assert wait_for_exit(process, within=15) == "exited False True\n"


def test_run_exits_immediately_on_a_second_sigint(serve):
    process, client = serve(grace=60)
    chunks = stream(client, 100_000)
    next(chunks)
    with socket.create_connection(("127.0.0.1", client.base_url.port)) as half:  # a request
        half.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert wait_for_exit(process, within=15).startswith("exited")


def test_run_exits_immediately_when_idle(serve):
    process, client = serve(grace=60)
    assert client.models.list().data  # a connection that stays open
    process.send_signal(signal.SIGTERM)
    assert wait_for_exit(process, within=15) == "exited False True\n"


def test_run_refuses_a_port_that_another_server_took_while_it_loaded(tmp_path):
    start = """
other = bind("127.0.0.1", 0)
sock = bind("127.0.0.1", other.getsockname()[1])  # neither listens yet
other.listen()
"""
    program = PROGRAM.format(root=str(ROOT), grace=1)
    program = "from qwen_jax.serve.address import bind\n" + program.replace(
        'sock = socket.socket()\nsock.bind(("127.0.0.1", 0))\n', start
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "cannot listen on port" in done.stderr and "Address already in use" in done.stderr
    assert done.returncode == 1 and done.stdout == ""
