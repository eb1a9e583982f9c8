"""The dry runs of the launchers, and errors before anything is launched."""

import json
import os
import pathlib
import shlex
import subprocess
import sys
import tarfile

import pytest

from launch import pack
from qwen_jax import exit_codes

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMAND = ["-m", "experiments.pretrain", "--recipe=7b", "--run_dir=runs/a b"]


def dry_run(*arguments: str) -> str:
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def launcher(name: str, *options: str) -> str:
    return dry_run(sys.executable, "-m", f"launch.{name}", *options, "--dry_run", "--", *COMMAND)


def flag(words: list[str], name: str) -> str:
    return next(word.partition("=")[2] for word in words if word.startswith(f"--{name}="))


def test_local_sets_the_environment_of_every_process():
    lines = [
        shlex.split(line) for line in launcher("local", "--processes=3", "--devices=4").splitlines()
    ]
    assert [word for line in lines for word in line if word.startswith("JAX_PROCESS_ID")] == [
        "JAX_PROCESS_ID=0",
        "JAX_PROCESS_ID=1",
        "JAX_PROCESS_ID=2",
    ]
    for line in lines:
        assert "JAX_NUM_PROCESSES=3" in line and line[-4:] == COMMAND
        assert any("--xla_force_host_platform_device_count=4" in word for word in line)


def test_split_resolves_a_page_name():
    local = [sys.executable, "-m", "launch.local", "--dry_run", "--"]
    shown = dry_run(*local, "pretrain", "--recipe=7b")
    assert shown.count(f"{sys.executable} -m experiments.pretrain --recipe=7b\n") == 2
    shown = dry_run(*local, "./page.py", "-x")
    assert shown.count(f"{sys.executable} ./page.py -x\n") == 2


def test_tpu_pod_creates_installs_and_starts_on_all_workers():
    shown = launcher(
        "tpu_pod",
        "--name=r",
        "--zone=z",
        "--type=v5p-256",
        "--slices=2",
        "--reserved",
        "--internal_ips",
        "--service_account=me@p",
        "--setup=mount it",
        "--env=A=b c",
        "--delete",
    )
    create, pack, *lines = [shlex.split(line) for line in shown.splitlines()]
    actions = ["create", "scp", "ssh", "ssh", "ssh", "ssh", "delete"]
    assert [line[3:5] for line in (create, *lines)] == [
        ["queued-resources", action] for action in actions
    ]
    copy, _, setup, start, poll, _ = lines
    assert "--reserved" in create and "--internal-ips" in create and "--node-count=2" in create
    assert flag(create, "accelerator-type") == "v5p-256"
    assert flag(create, "service-account") == "me@p"
    for line in (copy, setup, start, poll):
        assert {"--worker=all", "--node=all", "--internal-ip"} <= set(line)
    assert pack[0] == "#" and copy[5] == pack[-1] and copy[7] == "r:"
    given = [json.loads(shlex.split(flag(line, "command"))[-1]) for line in (setup, start)]
    assert given[0] == {"command": "mount it"}
    assert given[1]["command"] == [".venv/bin/python", *COMMAND]
    wanted = {"QWEN_JAX_LAUNCHER": "tpu_pod", "QWEN_JAX_ATTEMPT": "0", "A": "b c"}
    assert given[1]["env"] == wanted


@pytest.mark.parametrize(
    "options, image",
    [
        (["--type=v5p-256"], "v2-alpha-tpuv5"),
        (["--type=v5litepod-16"], "v2-alpha-tpuv5-lite"),
        (["--type=v6e-256"], "v2-alpha-tpuv6e"),
        (["--type=v9-8", "--version=new"], "new"),
    ],
)
def test_tpu_pod_image_by_chip_type(options, image):
    create = shlex.split(launcher("tpu_pod", "--name=r", "--zone=z", *options).splitlines()[0])
    assert flag(create, "runtime-version") == image


def test_tpu_pod_image_of_unknown_chips_is_an_error():
    code, stderr = run(
        "-m", "launch.tpu_pod", "--name=r", "--zone=z", "--type=v5e-16", "--dry_run", "--", *COMMAND
    )
    assert code == 1 and "known: v4, v5p, v5litepod, v6e" in stderr


def test_slurm_runs_every_task_and_kills_all_with_one():
    words = shlex.split(dry_run("bash", "launch/slurm.sbatch", "--dry_run", *COMMAND))
    assert words[0] == "srun" and "--kill-on-bad-exit=1" in words and words[-4:] == COMMAND
    directives = (ROOT / "launch/slurm.sbatch").read_text()
    assert "#SBATCH --requeue" in directives and "#SBATCH --signal=TERM@120" in directives


def run(*arguments: str, **environment: str) -> tuple[int, str]:
    """Returns (exit code, stderr)."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=60,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("name", ["local", "tpu_pod", "xpk", "jobset"])
@pytest.mark.parametrize("rest", [[], ["--"], COMMAND])
def test_split_requires_a_command(name, rest):
    code, stderr = run("-m", f"launch.{name}", *rest)
    assert code == 2 and "no command is given. Put it after --" in stderr
    assert ("unrecognized arguments: -m experiments.pretrain" in stderr) == (rest == COMMAND)


REQUIRED = {
    "tpu_pod": {"name": "r", "zone": "z", "type": "v5p-256"},
    "xpk": {"cluster": "c", "name": "r", "type": "v5p-256", "image": "i"},
    "jobset": {"name": "r", "image": "i"},
}


@pytest.mark.parametrize("dry_run", [[], ["--dry_run"]])
@pytest.mark.parametrize("name", list(REQUIRED))
def test_parse_names_all_that_is_missing_at_once(name, dry_run):
    code, stderr = run("-m", f"launch.{name}", *dry_run)
    lines = stderr.splitlines()
    assert code == 2 and len([line for line in lines if ": error: " in line]) == 1
    for flag_name in REQUIRED[name]:
        assert [line for line in lines if f"--{flag_name} is missing: " in line], stderr
    assert "no command is given. Put it after --" in stderr
    assert len(lines) < 10  # one message, not the help


@pytest.mark.parametrize("value", [None, "", " "])
def test_parse_names_only_what_is_missing(value):
    zone = [] if value is None else [f"--zone={value}"]
    code, stderr = run("-m", "launch.tpu_pod", "--name=r", "--type=v5p-256", *zone, "--", *COMMAND)
    assert code == 2
    assert "error: --zone is missing: Google Cloud zone, such as us-east5-a\n" in stderr
    assert "--name" not in stderr and "--type" not in stderr and "no command" not in stderr


def test_slurm_without_a_command_shows_its_use():
    done = subprocess.run(["bash", "launch/slurm.sbatch"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "sbatch --nodes=4" in done.stdout


OPTIONS = {
    name: (program, [f"--{flag_name}={value}" for flag_name, value in REQUIRED[name].items()])
    for name, program in (("tpu_pod", "gcloud"), ("xpk", "xpk"), ("jobset", "kubectl"))
}


@pytest.mark.parametrize("name", list(OPTIONS))
def test_need_names_a_program_that_is_not_installed(name, tmp_path):
    program, options = OPTIONS[name]
    code, stderr = run("-m", f"launch.{name}", *options, "--", *COMMAND, PATH=str(tmp_path))
    assert code == 1 and stderr.startswith(f"{program} is not installed") and "\n" in stderr
    assert "Traceback" not in stderr


ODD = [
    "new file.py",
    "-T",
    "--help",
    "a\nb",
    'a"b',
    "\\x",
    "*",
    "\u4e2d\u6587",
    "\udcff",
    "x" * 200,
]


def test_pack_takes_what_git_does_not_ignore_under_any_name(tmp_path, capsys):
    here = tmp_path / "here"
    (here / "runs").mkdir(parents=True)
    for name in ("kept.py", "gone.py", ".gitignore", "runs/weights", *ODD):
        (here / name).write_text("runs/\n")
    (here / "inside").symlink_to("kept.py")
    (here / "outside").symlink_to(tmp_path)
    for command in (["init", "-q"], ["add", "kept.py", "gone.py"]):
        subprocess.run(["git", *command], cwd=here, check=True)
    (here / "gone.py").unlink()
    pack.pack_checkout(here, tmp_path / "r.tgz")
    assert capsys.readouterr().err == "outside is a link to a file outside of this folder\n"
    with tarfile.open(tmp_path / "r.tgz") as packed:
        wanted = [".gitignore", "kept.py", "inside", "outside", *ODD]
        assert sorted(packed.getnames()) == sorted(wanted)
        assert packed.getmember("inside").linkname == "kept.py"
    with pytest.raises(SystemExit, match="cannot list the files"):
        pack.pack_checkout(tmp_path, tmp_path / "r.tgz")


def test_slurm_hands_on_what_srun_does_not_take_from_the_job():
    given = {"SLURM_CPUS_PER_TASK": "12", "CONTAINER": "image.sqsh", "MOUNTS": "/a:/a"}
    command = ["bash", "launch/slurm.sbatch", "--dry_run", *COMMAND]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ | given
    )
    words = shlex.split(done.stdout.replace("$'", "'"))
    assert flag(words, "cpus-per-task") == "12" and flag(words, "container-image") == "image.sqsh"
    assert flag(words, "container-mounts") == "/a:/a" and words[-4:] == COMMAND
    del given["CONTAINER"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | given)
    assert done.returncode == 2 and "MOUNTS has no effect without CONTAINER" in done.stderr


TASKS = """#!/bin/sh
case $(basename "$0") in
scontrol) echo requeued ;;
srun)
    for code in {codes}; do echo "0: launch: task 0 exited with code $code" >&2; done
    exit {last} ;;
esac
"""


@pytest.mark.parametrize(
    "codes, last, found",
    [
        ("77 1 134", 134, 1),
        ("134 73 143", 143, 73),
        ("143 70 1", 143, None),
        ("77 134", 134, None),
        ("0 0", 0, 0),
    ],
)
def test_slurm_decides_by_the_first_cause(tmp_path, codes, last, found):
    """srun returns the highest code: that of a task that was only ended."""
    for name in ("srun", "scontrol"):
        (tmp_path / name).write_text(TASKS.format(codes=codes, last=last))
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "launch/slurm.sbatch", *COMMAND],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "1"},
    )
    assert ("requeued\n" in done.stdout.splitlines(keepends=True)) == (found is None)
    assert found is None or done.returncode == found
    assert done.stderr.count("launch: task 0 exited") == len(codes.split())


def test_slurm_has_the_codes_of_the_table():
    text = (ROOT / "launch/slurm.sbatch").read_text()
    codes = " ".join(map(str, exit_codes.NOT_RESTARTED))
    assert f'NOT_RESTARTED="{codes}"' in text
    consequences = [code for code in range(256) if exit_codes.is_consequence(code)]
    assert f'CONSEQUENCES="{" ".join(map(str, [0, *consequences]))}"' in text
    assert "#SBATCH --exclusive" in text and "#SBATCH --mem=0" in text


SLURM = """#!/bin/sh
case $(basename "$0") in srun) exit {code} ;; scontrol) echo requeued ;; esac
"""


@pytest.mark.parametrize("code", [*(row.code for row in exit_codes.TABLE), 137])
def test_slurm_requeues_after_the_codes_of_the_table(tmp_path, code):
    for name in ("srun", "scontrol"):
        (tmp_path / name).write_text(SLURM.format(code=code))
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "launch/slurm.sbatch", *COMMAND],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "1"},
    )
    assert ("requeued\n" in done.stdout.splitlines(keepends=True)) == exit_codes.restarts(code)
    assert exit_codes.restarts(code) or done.returncode == code
