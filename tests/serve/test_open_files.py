"""A server process that runs out of file descriptors."""

import pathlib
import socket
import subprocess
import sys

import openai
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The limit on open files is lowered when the server is ready, after its own limits were set.
PROGRAM = """
import os, resource, socket, sys
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
worker = Worker(FakeEngine(tokenizer), max_num_seqs=4, max_queued=4)
limits = ClientLimits(max_connections=500, max_client_connections=500, log_seconds=3600)
limits = limits.resolved(max_num_seqs=4, capacity=8, max_open_files=500)
models = Models([Served(worker, tokenizer, Limits("tiny", 256, 8))])
app = create_app(models, ServerConfig())
sock = socket.socket()
sock.bind(("127.0.0.1", 0))
def ready():
    used = max(map(int, os.listdir("/dev/fd"))) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, hard))
    print(sock.getsockname()[1], flush=True)
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
run(app, models, sock, Connections(limits), ready=ready)
"""


@pytest.mark.slow
def test_run_without_file_descriptors_logs_one_line_and_recovers():
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(root=str(ROOT))],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        port = int(process.stdout.readline())
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
        while "out of system resource" not in process.stderr.readline():
            assert process.poll() is None
        for one in idle:
            one.close()
        client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=5, timeout=60
        )
        completion = client.completions.create(model="tiny", prompt="x", max_tokens=3)
        assert completion.choices[0].finish_reason == "length"
        process.terminate()
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0 and "out of system resource" not in errors
    assert len(errors.splitlines()) < 30  # the traceback of the one record
