"""The dry runs of the launchers, and errors before anything is launched."""

import json
import os
import pathlib
import shlex
import subprocess
import sys
import tarfile

import pytest

from launch import tpu_pod
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
    shown = launcher("tpu_pod", "--name=r", "--zone=z", "--type=v5p-256", "--spot", "--delete")
    create, pack, *lines = [shlex.split(line) for line in shown.splitlines()]
    assert [line[3:5] for line in (create, *lines)] == [
        ["queued-resources", "create"],
        ["tpu-vm", "scp"],
        ["tpu-vm", "ssh"],
        ["tpu-vm", "ssh"],
        ["queued-resources", "delete"],
    ]
    copy, install, start, _ = lines
    assert "--spot" in create and flag(create, "accelerator-type") == "v5p-256"
    assert all("--worker=all" in line for line in (copy, install, start))
    assert pack[0] == "#" and copy[-2] == pack[-1] and copy[-1] == "r:qwen_jax.tgz"
    inside = shlex.split(flag(start, "command"))
    assert "QWEN_JAX_LAUNCHER=tpu_pod" in inside and inside[-4:] == COMMAND


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


def test_xpk_passes_the_command_and_the_grace_period():
    words = shlex.split(
        launcher(
            "xpk",
            "--cluster=c",
            "--name=r",
            "--type=v5p-256",
            "--image=i",
            "--slices=2",
            "--grace=90",
        )
    )
    assert words[:3] == ["xpk", "workload", "create"] and flag(words, "num-slices") == "2"
    assert flag(words, "termination-grace-period-seconds") == "90"
    assert shlex.split(flag(words, "command"))[-4:] == COMMAND


@pytest.mark.parametrize("chips", [0, 4])
def test_jobset_starts_and_restarts_all_hosts_together(chips):
    text = launcher(
        "jobset",
        "--name=r",
        "--image=i",
        "--hosts=4",
        "--volume=v",
        *([f"--chips={chips}", "--topology=4x4x1"] if chips else []),
    )
    first, rest = text.split("\n", 1)
    assert shlex.split(first)[:2] == ["kubectl", "apply"]
    spec = json.loads(rest.rpartition("END")[0])["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (4, 4, "Indexed")
    assert spec["failurePolicy"]["rules"][0]["action"] == "FailJobSet"
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [
        row.code for row in exit_codes.TABLE if row.code and not row.restart
    ]
    container = job["template"]["spec"]["containers"][0]
    names = {item["name"]: item["value"] for item in container["env"]}
    assert container["command"] == ["python", *COMMAND]
    if chips:
        assert container["resources"]["limits"] == {"google.com/tpu": 4}
        assert "JAX_COORDINATOR_ADDRESS" not in names
    else:
        assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
        assert names["JAX_COORDINATOR_ADDRESS"] == "r-hosts-0-0.r:8476"
        assert names["JAX_NUM_PROCESSES"] == "4"


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


GCLOUD = """#!{python}
import pathlib, sys
folder, words = pathlib.Path(__file__).parent, sys.argv[3:]
with open(folder / "calls", "a") as calls:
    print(*words[:2], *words[-1:] if words[1] == "ssh" else (), file=calls)
lines = (folder / words[1]).read_text().splitlines() if (folder / words[1]).exists() else []
line, rest = (lines or [""])[0], lines[1:]
(folder / words[1]).write_text("\\n".join(rest or lines))
print(line) if words[1] == "describe" else sys.exit(int(line or 0))
"""


def pod(folder, **outputs) -> tuple[int, str, list[str]]:
    """Runs the launcher with a fake gcloud that prints these outputs in turn."""
    for name, lines in outputs.items():
        (folder / name).write_text("\n".join(lines))
    (folder / "gcloud").write_text(GCLOUD.format(python=sys.executable))
    (folder / "gcloud").chmod(0o755)
    code, stderr = run(
        "-m",
        "launch.tpu_pod",
        *OPTIONS["tpu_pod"][1],
        "--",
        *COMMAND,
        PATH=f"{folder}:{os.environ['PATH']}",
        TMPDIR=str(folder),
    )
    calls = [line for line in (folder / "calls").read_text().splitlines() if "describe" not in line]
    return code, stderr, calls


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
    tpu_pod.pack(here, tmp_path / "r.tgz")
    assert capsys.readouterr().err == "outside is a link to a file outside of this folder\n"
    with tarfile.open(tmp_path / "r.tgz") as packed:
        wanted = [".gitignore", "kept.py", "inside", "outside", *ODD]
        assert sorted(packed.getnames()) == sorted(wanted)
        assert packed.getmember("inside").linkname == "kept.py"
    with pytest.raises(SystemExit, match="cannot list the files"):
        tpu_pod.pack(tmp_path, tmp_path / "r.tgz")


def test_tpu_pod_removes_its_archive(tmp_path):
    pod(tmp_path, describe=["ACTIVE"], ssh=["0"])
    assert not list(tmp_path.glob("qwen_jax-*"))


@pytest.mark.parametrize("code", [1, 73, 78])
def test_tpu_pod_does_not_repeat_what_a_restart_does_not_cure(tmp_path, code):
    found, _, calls = pod(tmp_path, describe=["ACTIVE"], ssh=["0", str(code)])
    assert found == code and len(calls) == 3


def test_tpu_pod_repeats_after_an_unreadable_disk(tmp_path):
    code, _, calls = pod(tmp_path, describe=["ACTIVE"], ssh=["0", "74", "0"])
    assert code == 0 and len(calls) == 4


def test_xpk_restarts_after_the_codes_of_the_table():
    options = ["--cluster=c", "--name=r", "--type=v5p-256", "--image=i"]
    codes = flag(shlex.split(launcher("xpk", *options)), "restart-on-exit-codes")
    assert codes == ",".join(str(row.code) for row in exit_codes.TABLE if row.restart)


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


def test_tpu_pod_exits_if_creation_fails(tmp_path):
    code, stderr, calls = pod(tmp_path, describe=[""], create=["1"])
    assert code == 1 and "create failed with exit code 1" in stderr
    assert calls == ["queued-resources create"]


def test_tpu_pod_exits_if_the_resource_failed(tmp_path):
    code, stderr, _ = pod(tmp_path, describe=["", "", "FAILED"])
    assert code == 1 and "could not create the pod r" in stderr


def test_tpu_pod_starts_no_run_if_the_installation_fails(tmp_path):
    code, _, calls = pod(tmp_path, describe=["ACTIVE"], ssh=["1", "0"])
    assert code == 1 and [line.split(" ")[1] for line in calls] == ["scp", "ssh"]


def test_tpu_pod_recreates_a_preempted_pod(tmp_path):
    code, _, calls = pod(
        tmp_path, describe=["ACTIVE", "SUSPENDED", "SUSPENDED", "ACTIVE"], ssh=["0", "255", "0"]
    )
    assert code == 0
    assert [line.split(" ")[1] for line in calls] == [
        "scp",
        "ssh",
        "ssh",
        "delete",
        "create",
        "scp",
        "ssh",
        "ssh",
    ]
    assert "QWEN_JAX_ATTEMPT=0" in calls[2] and "QWEN_JAX_ATTEMPT=1" in calls[-1]


def test_jobset_keeps_dollar_signs_of_a_command():
    """Kubernetes replaces $(NAME) in a command, and reduces $$ to $."""
    command = [*COMMAND, "--run_dir=$(HOME)/$$/$a"]
    given = ["-m", "launch.jobset", "--name=r", "--image=i", "--dry_run", "--", *command]
    text = dry_run(sys.executable, *given)
    assert "--run_dir=$$(HOME)/$$$$/$$a" in text
