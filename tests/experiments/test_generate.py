"""experiments.generate from the command line: one prompt, files, and killed runs that resume."""

import json
import random
import subprocess
import sys
import time

import pytest

from experiments import generate
from qwen_jax.errors import QwenJaxError
from qwen_jax.inference import jsonl
from tests.helpers.tiny_checkpoint import ROOT, environment, write

LINES = [{"prompt": f"number {i}", "max_new_tokens": 20 + i % 40} for i in range(60)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write(tmp_path_factory.mktemp("model") / "tiny", num_layers=1, context_length=32)


@pytest.fixture(scope="module")
def command(checkpoint, tmp_path_factory):
    """Starts experiments.generate on LINES; the processes share a compilation cache."""
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    env = environment()

    def start(output, *flags):
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "experiments.generate",
                f"--checkpoint={checkpoint}",
                f"--input={path}",
                f"--output={output}",
                *flags,
            ],
            cwd=ROOT,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return start


def finish(process) -> str:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]
    return output


def lines_in(path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_and_finish(command, folder, kills: int) -> int:
    """Kills the run `kills` times, then lets it finish. Returns how many attempts resumed."""
    partial, rng, resumed = folder / "killed.jsonl.partial", random.Random(0), 0
    for _ in range(kills):
        before = lines_in(partial)
        process = command(folder / "killed.jsonl")
        wanted = before + rng.randrange(1, max(60 // (kills + 1), 2))
        while process.poll() is None and lines_in(partial) < wanted:
            time.sleep(0.001)
        process.kill()
        resumed += f"60 lines, {before} already done" in process.communicate()[0] and before > 0
        if not partial.exists():
            break
        assert lines_in(partial) >= before
    output = finish(command(folder / "killed.jsonl"))
    return resumed + ("already done" in output and ", 0 already done" not in output)


def test_generate_resumes_a_killed_run_with_the_same_output(command, tmp_path):
    output = finish(command(tmp_path / "full.jsonl"))
    assert "60 lines, 0 already done" in output and "60 lines" in output.splitlines()[-1]
    assert kill_and_finish(command, tmp_path, kills=1) >= 1
    full = (tmp_path / "full.jsonl").read_bytes()
    assert (tmp_path / "killed.jsonl").read_bytes() == full
    records = [json.loads(line) for line in full.splitlines()]
    assert [record["line"] for record in records] == list(range(1, 61))
    assert all(record["answers"][0]["tokens"] == 20 + i % 40 for i, record in enumerate(records))
    assert len({record["answers"][0]["text"] for record in records}) > 50


@pytest.mark.slow
def test_generate_output_is_the_same_after_eight_kills_and_another_batch(command, tmp_path):
    finish(command(tmp_path / "full.jsonl", "--max_num_seqs=3"))
    assert kill_and_finish(command, tmp_path, kills=8) >= 3
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "full.jsonl").read_bytes()


@pytest.mark.slow  # a quick test of tests/inference/test_engine.py samples on a mesh
def test_generate_output_is_the_same_on_two_devices(checkpoint, capsys):
    outputs = []
    for tensor in (1, 2):
        generate.main(
            generate.Config(
                checkpoint=str(checkpoint),
                prompt="one ",
                settings=jsonl.Settings(max_new_tokens=100),
                tensor=tensor,
            )
        )
        outputs.append(capsys.readouterr().out[-80:])
    assert outputs[0] == outputs[1] and len(outputs[0]) == 80


def test_generate_refuses_invalid_settings_and_leaves_no_file(tmp_path, checkpoint):
    for flags, word in (
        ({}, "no model"),
        ({"checkpoint": str(checkpoint), "input": "a"}, "--output"),
        (
            {"checkpoint": str(checkpoint), "input": "a", "output": "b", "prompt": "c"},
            "--prompt and --input are exclusive",
        ),
    ):
        with pytest.raises(QwenJaxError, match=word):
            generate.main(generate.Config(**flags))
    with pytest.raises(QwenJaxError, match="cannot read"):
        generate.main(
            generate.Config(
                checkpoint=str(checkpoint),
                input=str(tmp_path / "none"),
                output=str(tmp_path / "b.jsonl"),
            )
        )
    with pytest.raises(QwenJaxError, match="tensor=9 is not possible with 8 devices"):
        generate.main(generate.Config(checkpoint=str(checkpoint), tensor=9))
    assert list(tmp_path.iterdir()) == []
