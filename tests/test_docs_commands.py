"""Every command of README.md, docs/ and launch/README.md is run, in the order of the page.

tests/helpers/doc_commands.py finds them, and lists what stands for placeholders and what is exempt.
The quick tests run a few; `make test-slow` runs all.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import urllib.request

import pytest

from tests.helpers import doc_commands, tiny_checkpoint
from tests.helpers.doc_commands import EXEMPT, OTHER, PAGES, ROOT, RULES, SHELL, Command

README = ROOT / "README.md"
FIRST = (README, ROOT / "docs/guides/your_own_data.md")  # the other pages go on from their runs
COMMANDS = {page: list(doc_commands.commands(page)) for page in PAGES}
ALL = [command for found in COMMANDS.values() for command in found]
WITH_COMMANDS = [page for page, found in COMMANDS.items() if found]
QUICK = (r"experiments.plan", r"launch.tpu_pod", r"^sbatch", r"^make docs")
TYPED = {"experiments.chat": "Hello\n/exit\n"}


def _id(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


class World:
    """A folder with the files that the commands name, in which they run."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.done = folder, set()
        (folder / "bin").mkdir()
        for name, arguments in (
            ("python", ""),
            ("qwen-jax", '-c "from qwen_jax.cli.console import main; main()"'),
        ):
            path = folder / "bin" / name
            path.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
            path.chmod(0o755)
        # The package as setup.py installs it, for `qwen-jax`.
        (folder / "installed/qwen_jax").mkdir(parents=True)
        parts = [*(ROOT / "qwen_jax").iterdir(), ROOT / "experiments", ROOT / "launch"]
        for part in parts:
            (folder / "installed/qwen_jax" / part.name).symlink_to(part)
        self.environment = tiny_checkpoint.environment() | {
            "PATH": f"{folder}/bin:{os.environ['PATH']}",
            "PYTHONPATH": f"{folder}/installed:{ROOT}",
            "HOME": str(folder),
        }

    def run(self, command: Command) -> str:
        """Runs a command once; returns its output. Fails on an exit code that is not 0."""
        text = command.runs
        if text in self.done:
            return ""
        self.done.add(text)
        if "experiments.serve" in text or "--serve=" in text:
            return self._serve(text)
        typed = next((typed for name, typed in TYPED.items() if name in text), "")
        run = subprocess.run(
            ["bash", "-ec", text],
            cwd=self.folder,
            env=self.environment,
            input=typed,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=1200,
        )
        shown = f"{command.page.name}: {command.text}\nran as: {text}\n{run.stdout[-4000:]}"
        assert run.returncode == 0 and "former name" not in run.stdout, shown
        return run.stdout

    def _serve(self, text: str) -> str:
        process = subprocess.Popen(
            ["bash", "-ec", f"exec {text}"],
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        lines: list[str] = []
        stopped = False
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line)
                found = re.search(r"http://127\.0\.0\.1:\d+", line)
                if found and not stopped:
                    stopped = True
                    with urllib.request.urlopen(f"{found[0]}/health", timeout=60) as answer:
                        assert answer.status == 200
                    process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0, "".join(lines)
        finally:
            process.kill()
        assert any("http://127.0.0.1" in line for line in lines), "".join(lines)
        return "".join(lines)

    def run_page(self, page: pathlib.Path) -> None:
        for command in COMMANDS[page]:
            if command.exempt is None:
                self.run(command)


def _rows(path: pathlib.Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_inputs(folder: pathlib.Path) -> None:
    """Writes what a reader would have: text, conversations, pairs, prompts, released models."""
    (folder / "FOLDER").mkdir()
    for page in [*PAGES, *(ROOT / "benchmarks/results").glob("*.md"), *ROOT.glob("*.md")]:
        shutil.copy(page, folder / "FOLDER" / _id(page).replace("/", "_"))
    for path in sorted((ROOT / "qwen_jax").rglob("*.py"))[::4]:
        shutil.copy(path, folder / "FOLDER" / _id(path).replace("/", "_"))
    sums = [(a, b) for a in range(10) for b in range(10)]
    asked = [{"role": "user", "content": f"What is {a} + {b}?"} for a, b in sums]
    right = [f"{a} + {b} = {a + b}." for a, b in sums]
    answers = [{"role": "assistant", "content": text} for text in right]
    _rows(
        folder / "chat.jsonl",
        [{"messages": list(turns)} for turns in zip(asked, answers, strict=True)],
    )
    pairs = [
        {"prompt": turn["content"], "chosen": text, "rejected": "I do not know."}
        for turn, text in zip(asked, right, strict=True)
    ]
    for name in ("large", "small", "pairs"):
        _rows(folder / f"{name}.jsonl", pairs)
    for name in ("a", "prompts"):
        _rows(folder / f"{name}.jsonl", [{"prompt": turn["content"]} for turn in asked[:16]])
    _rows(
        folder / "gsm8k.jsonl",
        [
            {"question": turn["content"], "answer": f"{text} #### {a + b}"}
            for turn, text, (a, b) in zip(asked, right, sums, strict=True)
        ],
    )
    _rows(
        folder / "seed_tasks.jsonl",
        [
            {"instruction": turn["content"], "output": text}
            for turn, text in zip(asked[:20], right, strict=False)
        ],
    )
    # What the guides print.
    guide = doc_commands.blocks(ROOT / "docs/guides/your_own_data.md")
    (settings,) = [text for language, text in guide if language == "yaml"]
    (folder / "mine.yaml").write_text(settings)
    guide = doc_commands.blocks(ROOT / "docs/guides/alignment.md")
    (module,) = [text for language, text in guide if "def gsm8k(" in text]
    (folder / "my_rewards.py").write_text(module)
    for name in ("Qwen-7B", "Qwen-1_8B"):
        tiny_checkpoint.write(folder / name)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def begun(world):
    """The world of somebody who has followed the first pages."""
    _write_inputs(world.folder)
    for page in FIRST:
        world.run_page(page)
    return world


def test_blocks_are_shell_or_of_a_known_language():
    for page in PAGES:
        unknown = [language for language, _ in doc_commands.blocks(page)
                   if language not in (*SHELL, *OTHER)]  # fmt: skip
        assert unknown == [], page
        text = page.read_text(encoding="utf-8")
        assert len(doc_commands.blocks(page)) * 2 == len(re.findall(r"^\s*```", text, re.M)), page


def test_commands_begin_with_a_program():
    known = re.compile(rf"({doc_commands.PROGRAMS}|\. \.venv/bin/activate &&) ")
    assert [command for command in ALL if not known.match(f"{command.text} ")] == []
    assert len(ALL) > 45 and README in WITH_COMMANDS and ROOT / "launch/README.md" in WITH_COMMANDS


def test_every_line_of_a_shell_block_is_a_command_or_a_comment():
    for page in PAGES:
        shell = [body for language, body in doc_commands.blocks(page) if language in SHELL]
        lines = "".join(shell).replace("\\\n", " ").splitlines()
        lines = [line for line in lines if line.strip() and not line.startswith("#")]
        found = [command.text for command in COMMANDS[page]]
        assert [" ".join(line.split(" #")[0].split()) for line in lines] == found[: len(lines)]


def test_rules_and_exemptions_are_all_used():
    run = [command for command in ALL if command.exempt is None]
    used = [rule for command in run for rule in command.rules]
    assert [rule.pattern for rule in RULES if rule not in used] == []
    assert set(EXEMPT) == {command.exempt for command in ALL} - {None}


def test_commands_that_run_have_no_placeholder():
    for command in ALL:
        if command.exempt is None:
            left = re.search(r"\.\.\.|[<>]|\b(RUN|NAME|SHARDS|ADDRESS)\b", command.runs)
            assert left is None, command.runs


def test_exempt_commands_install_extras_that_exist():
    extras = set(re.findall(r'^        "(\w+)": ', (ROOT / "setup.py").read_text(), re.MULTILINE))
    named = {
        extra
        for command in ALL
        for group in re.findall(r'"\.\[([\w,]+)\]"', command.text)
        for extra in group.split(",")
    }
    assert named and named <= extras


def test_make_quickstart_runs_the_quickstart():
    run = ["make", "-C", str(ROOT), "-n", "quickstart"]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert re.search(r"^\S+/python -m experiments\.quickstart$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("pattern", QUICK)
def test_cheap_commands_run(world, pattern):
    command = next(each for each in ALL if re.search(pattern, each.text))
    assert world.run(command)


@pytest.mark.slow  # minutes: every command, each in its own process
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=_id)
def test_every_command_of_the_page_runs(begun, page):
    begun.run_page(page)
