"""A sample of the attempts to escape, written by a model as the code of a call."""

import os
import pathlib
import socket
import sys

import pytest

from qwen_jax import sandbox
from qwen_jax.agent.events import Observation
from qwen_jax.agent.interpreter import Interpreter
from qwen_jax.agent.loop import Budgets, run
from qwen_jax.sandbox import programs
from tests.helpers.scripted_model import react_tokenizer, scripted
from tests.sandbox import escapes

TOKEN = "escaped-token-7c1f"
# Limits of programs are other ones: a session's own descriptor is open, and time and output end
# cells and not processes (test_tools.py).
LEFT_OUT = {"inherited descriptors"}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the layers are Linux's")


@pytest.fixture
def host(tmp_path_factory, monkeypatch):
    """The names that the attempts aim at."""
    try:
        programs.python(unsafe=False)
    except sandbox.SandboxError as error:
        pytest.skip(f"untrusted code cannot be isolated here: {error.where}")
    monkeypatch.setenv("SECRET_TOKEN", TOKEN)
    canary = tmp_path_factory.mktemp("host") / "canary"
    canary.write_text(TOKEN)
    os.chmod(canary, 0o666)
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        udp.bind(("127.0.0.1", 0))
        yield {
            "CANARY": str(canary),
            "PARENT": os.getpid(),
            "HOST_TCP": tcp.getsockname()[1],
            "HOST_UDP": udp.getsockname()[1],
            "HOST_UNIX": "/no/socket",
            "HOST_ABSTRACT": "\0none",
            "TOKEN": TOKEN[::-1],
            "PROFILE": "python",
        }


def test_attempts_through_the_agent_fail(host, tmp_path):
    attempts = [
        attempt
        for attempt in (*escapes.FILES, *escapes.NETWORK, *escapes.PROCESSES, *escapes.KERNEL)
        if attempt.name not in LEFT_OUT and not attempt.limit
    ][::4]
    names = "\n".join(f"{name} = {value!r}" for name, value in host.items())
    cells = [f"{escapes.PRELUDE}\n{names}", *(attempt.code for attempt in attempts)]
    script = [f"Action: python\nAction Input: ```python\n{cell}\n```" for cell in cells]
    model, _ = scripted(react_tokenizer(), [*script, "Final Answer: done"])
    interpreter = Interpreter(tmp_path)
    budgets = Budgets(max_turns=len(cells) + 1, max_tokens=10**6)
    messages = [{"role": "user", "content": "Escape."}]
    events = list(run(model, [interpreter.tool()], messages, budgets))
    interpreter.close()
    observed = [event for event in events if isinstance(event, Observation)][1:]
    assert len(observed) == len(attempts) > 25
    for attempt, observation in zip(attempts, observed, strict=True):
        assert "ESCAPED" not in observation.text and TOKEN not in observation.text, attempt.name
        assert "stopped:" in observation.text, (attempt.name, observation.text)
    assert pathlib.Path(host["CANARY"]).read_text() == TOKEN
