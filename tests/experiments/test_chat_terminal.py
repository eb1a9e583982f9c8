"""experiments.chat, driven through a pseudo-terminal as a person would."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest

import experiments.chat
from qwen_jax.errors import ConfigError
from tests.helpers.tiny_checkpoint import ROOT, environment, write

CTRL_C, CTRL_D = "\x03", "\x04"
# A terminal sends signals only to the session that it controls.
_START = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv("
    "sys.executable, [sys.executable, '-m', 'experiments.chat', *sys.argv[1:]])"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write(tmp_path_factory.mktemp("model") / "tiny", num_layers=1)


class Terminal:
    """A program with its own controlling terminal."""

    def __init__(self, arguments, env):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, *arguments],
            cwd=ROOT,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**env, "TERM": "dumb"},
            start_new_session=True,
        )
        os.close(slave)
        self.shown, self.seen = "", 0

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def interrupt_prompt(self) -> None:
        """Presses Ctrl-C after a pause: Python's input() misses one just before it waits."""
        time.sleep(0.3)
        self.type(CTRL_C)

    def until(self, pattern: str, seconds: float = 300) -> str:
        """The output from the last match to the end of the next one."""
        limit = time.monotonic() + seconds
        while not (match := re.compile(pattern).search(self.shown, self.seen)):
            ready, _, _ = select.select([self.master], [], [], max(limit - time.monotonic(), 0))
            assert ready, f"{pattern!r} did not appear; shown: {self.shown[self.seen :][-2000:]!r}"
            try:
                self.shown += os.read(self.master, 65536).decode("utf-8", "replace")
            except OSError:
                pytest.fail(f"it exited before {pattern!r}: {self.shown[-2000:]!r}")
        start, self.seen = self.seen, match.end()
        return self.shown[start : match.end()]

    def code(self) -> int:
        return self.process.wait(timeout=20)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def start(checkpoint, tmp_path_factory):
    terminals = []

    def launch(*arguments):
        env = environment()
        terminals.append(Terminal([f"--checkpoint={checkpoint}", *arguments], env))
        return terminals[-1]

    yield launch
    for terminal in terminals:
        terminal.close()


def test_chat_runs_its_commands_and_stops_responses(start, tmp_path):
    chat = start("--context=4096", "--max_new_tokens=2000", "--temperature=0")
    assert "trained at 64" in chat.until(r"/help for commands\.\r\n> ")
    chat.type("/help\n")
    assert "/save FILE" in chat.until(r"\n> ")

    # Ctrl-C during a response stops it, and the program continues.
    chat.type("Hello\n")
    assert "compiling" not in chat.until(r"[a-z]{20}")
    chat.type(CTRL_C)
    shown = chat.until(r"\n> ")
    count = int(
        re.search(r"\((\d+) tokens, first token after \S+ s, [\d.]+ tokens/s; stopped\)", shown)[1]
    )
    assert 20 <= count < 2000
    chat.type(f"/save {tmp_path}/chat.jsonl\n")
    chat.until(r"saved to")
    (line,) = (tmp_path / "chat.jsonl").read_text().splitlines()
    messages = json.loads(line)["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert len(messages[1]["content"]) == count  # the history has what was shown

    # Of a conversation that does not fit, the oldest turns are dropped.
    chat.type("Y" * 2030 + "\n")
    chat.until(r"the oldest 1 turn is dropped to fit the context of 4,096 tokens")
    chat.until(r"\(compiling for prompts of up to \d+ tokens, once \.\.\.\)\r\n")
    chat.until(r"[a-z]{20}")
    chat.type(CTRL_C)
    chat.until(r"stopped\)")
    chat.type("Z" * 3000 + "\n")
    chat.until(r"the system message and the last user message need \d+ tokens, but only 2096 are")

    chat.type("/system Be brief.\n")
    chat.until(r"new conversation")
    chat.type("/system\n")
    chat.until(r"system: Be brief\.")
    chat.type("/save /nowhere/at/all\n")
    chat.until(r"not saved")
    chat.type("/reset\n")
    chat.until(r"new conversation\)\r\n> ")
    chat.interrupt_prompt()  # the first one only warns
    chat.until(r"Ctrl-C again or Ctrl-D to exit\)\r\n> ")
    chat.type("/exit\n")
    assert chat.code() == 0


def test_chat_without_template_continues_text_and_exits_after_two_ctrl_c(start, tmp_path):
    chat = start("--context=4096", "--no_chat_template", "--max_new_tokens=20", "--temperature=0")
    chat.until(r"> ")
    chat.type("Once\n")
    first = chat.until(r"\(20 tokens.*reached\)\r\n> ")
    chat.type("\n")
    chat.until(r"\(20 tokens.*reached\)\r\n> ")
    chat.type(f"/save {tmp_path}/text.jsonl\n")
    chat.until(r"saved to")
    text = json.loads((tmp_path / "text.jsonl").read_text())["prompt"]
    assert re.fullmatch(r"Once[a-z]{40}", text) and text[4:24] in first
    chat.type("/system x\n")
    chat.until(r"no system message with --no_chat_template")
    for _ in range(2):  # a terminal accepts lines of 4095 characters
        chat.type("W" * 3000 + "\n")
    chat.until(r"the first [\d,]+ tokens are dropped")
    chat.until(r"reached\)\r\n> ")
    chat.interrupt_prompt()
    chat.until(r"again.*\r\n> ")
    chat.interrupt_prompt()
    assert chat.code() == 0


def test_chat_exits_on_ctrl_d_and_reports_a_missing_folder(start, tmp_path):
    chat = start("--context=4096", "--temperature=0")
    chat.until(r"\n> ")
    chat.type(CTRL_D)
    assert chat.code() == 0
    with pytest.raises(ConfigError, match="none"):
        experiments.chat.main(experiments.chat.Config(checkpoint=str(tmp_path / "none")))
