"""The command for XPK, also read by XPK's own parser."""

import argparse
import re
import shlex

import pytest

from launch import xpk
from qwen_jax import exit_codes

OPTIONS = ["--cluster=c", "--name=r", "--type=v5p-256", "--image=i"]
COMMAND = ["-m", "experiments.pretrain", "--run_dir=/b/a b", "--x=$HOME"]


def words(capsys, *options: str, command=COMMAND) -> list[str]:
    assert xpk.main([*OPTIONS, *options, "--dry_run", "--", *command]) == 0
    return shlex.split(capsys.readouterr().out)


def flags(found: list[str], name: str) -> list[str]:
    return [word.partition("=")[2] for word in found if word.startswith(f"--{name}=")]


def test_xpk_passes_its_options(capsys):
    given = ["--slices=2", "--grace=90", "--project=p", "--zone=z", "--storage=s", "--storage=t"]
    found = words(capsys, *given, "--env=A=b=c", "--env=LD=$x")
    assert found[:3] == ["xpk", "workload", "create"] and flags(found, "num-slices") == ["2"]
    assert flags(found, "termination-grace-period-seconds") == ["90"]
    assert flags(found, "project") == ["p"] and flags(found, "zone") == ["z"]
    assert flags(found, "storage") == ["s", "t"]
    assert flags(found, "env") == ["QWEN_JAX_LAUNCHER=xpk", "A=b=c", "LD=$$x"]
    codes = [str(row.code) for row in exit_codes.TABLE if row.restart]
    assert flags(found, "restart-on-exit-codes") == [",".join(codes)]


def test_xpk_runs_python_in_place_of_its_shell(capsys):
    (command,) = flags(words(capsys), "command")
    assert command.startswith("exec python ")
    assert shlex.split(command.replace("$$", "$"))[2:] == COMMAND and "$$HOME" in command


@pytest.mark.parametrize(
    "options, what",
    [
        (["--env=A"], "--env=A is not NAME=VALUE"),
        (["--env=A-B=1"], "--env=A-B=1 is not NAME=VALUE"),
        (["--env=A=1", "--env=A=2"], "--env=A=2 sets A a second time"),
        (["--slices=0"], "--slices=0 is less than 1"),
        (["--grace=0"], "--grace=0 is less than 1"),
    ],
)
def test_parse_refuses_bad_values(capsys, options, what):
    with pytest.raises(SystemExit) as stop:
        xpk.main([*OPTIONS, *options, "--dry_run", "--", *COMMAND])
    assert stop.value.code == 2 and what in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, what",
    [
        (["--name=R"], "--name='R'"),
        (["--cluster=" + "c" * 41], "at most 40"),
        (["--priority=top"], "very-low"),
        (["--env=A=1\n2"], "a line break"),
    ],
)
def test_problems_names_what_xpk_refuses(options, what):
    with pytest.raises(SystemExit, match=re.escape(what)):
        xpk.main([*OPTIONS, *options, "--dry_run", "--", *COMMAND])


def test_xpk_reads_the_command(capsys):
    """`make test-launch` installs XPK, whose dependencies are those of another environment."""
    core = pytest.importorskip("xpk.parser.core", reason="xpk is not installed")
    from xpk.commands.workload import get_restart_exit_codes
    from xpk.core.docker_resources import parse_env_config

    given = ["--slices=2", "--grace=90", "--project=p", "--zone=z", "--storage=s", "--env=A=b c"]
    found = words(capsys, *given)
    parser = argparse.ArgumentParser()
    core.set_parser(parser)
    read = parser.parse_args(found[1:])
    assert (read.workload, read.cluster, read.num_slices) == ("r", "c", 2)
    assert (read.project, read.zone, read.storage) == ("p", "z", ["s"])
    assert (read.tpu_type, read.docker_image) == ("v5p-256", "i")
    assert read.termination_grace_period_seconds == "90" and read.max_restarts == "100"
    assert shlex.split(read.command)[:3] == ["exec", "python", "-m"]
    read.debug_dump_gcs = None
    parse_env_config(read, {})
    assert "A" in read.env and "b c" in str(read.env)
    restarted = set(get_restart_exit_codes(read))
    # XPK itself adds 127 to 255; the others are those of the table.
    for row in exit_codes.TABLE:
        assert (row.code in restarted) == (row.restart or row.code >= 127)
