"""The attempts to escape, written by a model as the code of calls: a sample, and all of them."""

import contextlib
import os
import pathlib
import re
import socket
import sys

import pytest

from qwen_jax import sandbox
from qwen_jax.agent.events import Answer, Observation
from qwen_jax.agent.interpreter import Interpreter
from qwen_jax.agent.loop import Budgets, run
from qwen_jax.sandbox import programs
from tests.helpers.scripted_model import react_tokenizer, scripted
from tests.sandbox import escapes

TOKEN = "escaped-token-7c1f"
LEFT = "qwen-jax-escaped"
EMPTY = """
import shutil
for name in os.listdir():
    shutil.rmtree(name) if os.path.isdir(name) and not os.path.islink(name) else os.remove(name)
"""
LEFT_OUT = {"inherited descriptors"}  # a session's own descriptor is open

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the layers are Linux's")


class Host:
    """What the attempts aim at: a file, sockets and this process."""

    def __init__(self, folder: pathlib.Path, sockets: list[socket.socket]):
        self.canary, self.sockets = folder / "canary", sockets
        self.canary.write_text(TOKEN)
        os.chmod(self.canary, 0o666)
        os.utime(self.canary, (1e9, 1e9))
        self.unix, abstract = str(folder / "unix"), f"\0escape-{os.getpid()}-{id(self)}"
        sockets[0].bind(("127.0.0.1", 0))
        sockets[1].bind(("127.0.0.1", 0))
        sockets[2].bind(self.unix)
        sockets[3].bind(abstract)
        for each in sockets:
            each.setblocking(False)
            if each.type == socket.SOCK_STREAM:
                each.listen()
        self.names = {
            "CANARY": str(self.canary),
            "PARENT": os.getpid(),
            "HOST_TCP": sockets[0].getsockname()[1],
            "HOST_UDP": sockets[1].getsockname()[1],
            "HOST_UNIX": self.unix,
            "HOST_ABSTRACT": abstract,
            "TOKEN": TOKEN[::-1],
            "PROFILE": "python",
        }

    def damage(self) -> str:
        """Returns what has changed here, or ""."""
        state = os.stat(self.canary)
        if self.canary.read_text() != TOKEN or (state.st_mode & 0o777, state.st_mtime) != (
            0o666,
            1e9,
        ):
            return "the file outside changed"
        if sorted(os.listdir(self.canary.parent)) != ["canary", "unix"]:
            return "the folder outside changed"
        for each in self.sockets:
            with contextlib.suppress(BlockingIOError):
                each.accept() if each.type == socket.SOCK_STREAM else each.recv(1)
                return "something was received"
        left = [path for path in ("/tmp", "/dev/shm", "/var/tmp") if LEFT in os.listdir(path)]
        return f"a file was left in {left}" if left else ""


@pytest.fixture
def host(tmp_path_factory, monkeypatch):
    try:
        programs.python(unsafe=False)
    except sandbox.SandboxError as error:
        pytest.skip(f"untrusted code cannot be isolated here: {error.where}")
    monkeypatch.setenv("SECRET_TOKEN", TOKEN)
    kinds = [
        (socket.AF_INET, socket.SOCK_STREAM),
        (socket.AF_INET, socket.SOCK_DGRAM),
        (socket.AF_UNIX, socket.SOCK_STREAM),
        (socket.AF_UNIX, socket.SOCK_STREAM),
    ]
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(*kind)) for kind in kinds]
        yield Host(tmp_path_factory.mktemp("host"), sockets)


def observed(attempts, host, interpreter) -> list[str]:
    """Runs each attempt as a call of one turn of the agent; returns what the model read."""
    names = "\n".join(f"{name} = {value!r}" for name, value in host.names.items())
    # Each cell has the names and an empty folder: the one before may have ended the session.
    begin = f"{escapes.PRELUDE}\n{names}\n{EMPTY}"
    cells = [f"{begin}\n{attempt.code}" for attempt in attempts]
    script = [f"Action: python\nAction Input: ```python\n{cell}\n```" for cell in cells]
    model, _ = scripted(react_tokenizer(), [*script, "Final Answer: done"])
    budgets = Budgets(max_turns=len(cells) + 1, max_tokens=10**7, max_seconds=3600)
    messages = [{"role": "user", "content": "Escape."}]
    events = list(run(model, [interpreter.tool()], messages, budgets))
    assert isinstance(events[-1], Answer)  # no attempt ended the turn
    texts = [event.text for event in events if isinstance(event, Observation)]
    assert len(texts) == len(attempts)
    return texts


def chosen(*groups):
    return [
        attempt
        for group in groups
        for attempt in escapes.ATTEMPTS[group]
        if attempt.name not in LEFT_OUT and (not attempt.x86 or os.uname().machine == "x86_64")
    ]


def check(attempts, texts) -> None:
    for attempt, text in zip(attempts, texts, strict=True):
        # A traceback shows the code, which may have the word.
        assert TOKEN not in text and not re.search("^ESCAPED", text, re.M), (attempt.name, text)
        if attempt.limit:  # also an end of the cell or of the session
            assert "stopped" in text or "error:" in text, (attempt.name, text)
        else:
            assert "stopped:" in text, (attempt.name, text)


def test_attempts_through_the_agent_fail(host, tmp_path):
    groups = ("files", "network", "processes", "kernel")
    attempts = [attempt for attempt in chosen(*groups) if not attempt.limit][::4]
    with contextlib.closing(Interpreter(tmp_path)) as interpreter:
        texts = observed(attempts, host, interpreter)
    check(attempts, texts)
    assert len(attempts) > 25 and host.damage() == ""


@pytest.mark.slow
@pytest.mark.parametrize("group", escapes.ATTEMPTS)
def test_all_attempts_through_the_agent_fail(group, host, tmp_path):
    """Attempts that only time ends get little of it; the others enough for a busy machine."""
    for only_time, seconds in ((True, 2.0), (False, 60.0)):
        attempts = [each for each in chosen(group) if (each.limit == "time") == only_time]
        settings = {"cell_seconds": seconds, "memory_mb": 256, "disk_mb": 16}
        with contextlib.closing(Interpreter(tmp_path, **settings)) as interpreter:
            check(attempts, observed(attempts, host, interpreter))
            after = interpreter.run("print(6 * 7)")
        assert "42" in after.text and host.damage() == ""
