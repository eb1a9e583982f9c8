"""The launcher of TPU pods against a simulated gcloud: connections, preemptions, exit codes."""

import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import time

import pytest

from launch import commands, gcloud, tpu_pod
from qwen_jax import exit_codes
from tests.helpers import fake_gcloud

OPTIONS = ["--name=r", "--zone=z", "--type=v5p-16", "--grace=2"]
ME = (
    "import os, sys, time; name = os.environ['HOSTNAME']; "
    "attempt = int(os.environ['QWEN_JAX_ATTEMPT']); "
    "open(os.path.expanduser('~/started'), 'a').write(f'{attempt} '); "
)


class Pod:
    """A simulated pod of two hosts, and the runs on it."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.file = folder / "cloud.json"
        self.write()

    def write(self, *, active: bool = True, faults: tuple = (), creation: tuple = ()) -> None:
        for host in ("a", "b"):
            (self.folder / host).mkdir(exist_ok=True)
        cloud = {
            "queue": ["ACTIVE"] if active else [],
            "node": ["READY"],
            "hosts": ["a", "b"],
            "creation": [list(each) for each in creation],
            "counts": {},
            "calls": [],
        }
        cloud["faults"] = [dict(zip(("call", "nth", "do"), each, strict=True)) for each in faults]
        if not active:
            for host in cloud["hosts"]:
                shutil.rmtree(self.folder / host)
        self.file.write_text(json.dumps(cloud))

    def launch(self, code: str = "", *flags: str) -> int | str:
        """Returns the exit code, or the message, of the launcher with this program."""
        try:
            return tpu_pod.main([*OPTIONS, *flags, "--", "-c", ME + code])
        except SystemExit as stop:
            return stop.code if stop.code is not None else 0

    def calls(self) -> list[str]:
        found = json.loads(self.file.read_text())["calls"]
        return [call for call in found if call not in ("describe", "describe-node", "ssh-poll")]

    def starts(self, host: str) -> list[str]:
        """Returns the attempts whose process has started on a host."""
        path = self.folder / host / "started"
        return path.read_text().split() if path.exists() else []


@pytest.fixture
def pod(tmp_path, monkeypatch):
    here = tmp_path / "checkout"
    here.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=here, check=True)
    monkeypatch.chdir(here)
    fake = tmp_path / "gcloud"
    shutil.copy(fake_gcloud.__file__, tmp_path / "fake.py")
    fake.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {tmp_path}/fake.py "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(tpu_pod, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(gcloud, "WAIT_SECONDS", 0.01)
    found = Pod(tmp_path)
    yield found
    cloud = fake_gcloud.Cloud(
        {"hosts": []}, ["", "compute", "tpus", "queued-resources", "describe"]
    )
    fake_gcloud.HERE, here = tmp_path, fake_gcloud.HERE
    for host in ("a", "b"):
        cloud.kill(host)
    fake_gcloud.HERE = here


FIRST = "sys.exit({} if attempt == 0 and name == 'a' else 0)"
WAITING = "time.sleep(0 if attempt else 600)"
START = ["scp", "ssh-install", "ssh-start"]
SCENARIOS = {
    # name: (faults, creation, program, exit code, calls but descriptions and polls)
    "runs": ((), (), "", 0, START),
    "created": ((), [["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]], "", 0, None),
    "creation failed": ((), [["FAILED"]], "", "could not create the pod r", ["create"]),
    "create lost, pod made": ([("create", 1, "lost 1")], [["ACTIVE"]], "", 0, None),
    "preempted while waiting": (
        (),
        [["WAITING_FOR_RESOURCES", "SUSPENDING", "SUSPENDED"], ["ACTIVE"]],
        "",
        0,
        ["create", "delete", "create", *START],
    ),
    "copy lost": ([("scp", 1, "fail 255")], (), "", 0, ["scp", *START]),
    "copy refused": ([("scp", 1, "fail 1")], (), "", 1, ["scp"]),
    "installation refused": ([("ssh-install", 1, "fail 1")], (), "", 1, START[:2]),
    "preempted while installing": (
        [("ssh-install", 1, "preempt")],
        (),
        "",
        0,
        ["scp", "ssh-install", "delete", "create", *START],
    ),
    "start lost before": ([("ssh-start", 1, "fail 255")], (), "", 0, [*START, "ssh-start"]),
    "start lost after": ([("ssh-start", 1, "lost 255")], (), "", 0, [*START, "ssh-start"]),
    "start skips a host": ([("ssh-start", 1, "skip b")], (), "", 0, [*START, "ssh-start"]),
    "poll lost": ([("ssh-poll", n, "fail 255") for n in (2, 3)], (), "", 0, START),
    "preempted while running": (
        [("ssh-poll", 3, "preempt")],
        (),
        WAITING,
        0,
        [*START, "delete", "create", *START],
    ),
    "a host dies": (
        [("ssh-poll", 3, "kill b")],
        (),
        WAITING,
        0,
        [*START, "ssh-stop", "ssh-start"],
    ),
    "maintenance": ([("ssh-poll", 2, "node REPAIRING RESTARTING")], (), "", 0, START),
    "node preempted": (
        [("ssh-poll", 2, "node PREEMPTED PREEMPTED"), ("ssh-poll", 2, "fail 255")],
        (),
        "time.sleep(0 if attempt else 2)",
        0,
        None,
    ),
    "restarted": ((), (), FIRST.format(70), 0, [*START, "ssh-stop", "ssh-start"]),
    "refused": ((), (), FIRST.format(1), 1, [*START, "ssh-stop"]),
    "disk full": ((), (), FIRST.format(73), 73, [*START, "ssh-stop"]),
    "not stopped": (
        [("ssh-stop", n, "fail 255") for n in range(1, 6)],
        (),
        FIRST.format(70),
        0,
        [*START, *["ssh-stop"] * 5, "delete", "create", *START],
    ),
}


QUICK = ("runs", "creation failed", "copy refused", "start lost after", "a host dies")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in SCENARIOS],
)
def test_tpu_pod_scenario(pod, name):
    faults, creation, program, wanted, calls = SCENARIOS[name]
    pod.write(active=not creation, faults=tuple(faults), creation=tuple(creation))
    code = pod.launch(program)
    assert code == wanted or isinstance(wanted, str) and wanted in str(code)
    if calls is not None:
        assert pod.calls() == calls
    for host in ("a", "b"):
        assert len(set(pod.starts(host))) == len(pod.starts(host))  # nothing has started twice


def test_tpu_pod_uses_the_first_cause(pod):
    """The other host is aborted as a consequence, and ends earlier than the launcher looks."""
    program = "sys.exit(1) if name == 'b' else (time.sleep(0.3), sys.exit(77))"
    assert pod.launch(program) == 1


@pytest.mark.slow
def test_tpu_pod_watches_a_run_that_is_active(pod, capfd, monkeypatch):
    """The launcher was lost: another one goes on with the same attempt."""
    program = (
        "print('step', flush=True)\n"
        "while not os.path.exists(os.path.expanduser('~/end')): time.sleep(0.05)"
    )
    pod.write(faults=(("describe", 3, "fail 1"),))
    watch = tpu_pod.Run._watch

    def let_it_end(run):
        for host in ("a", "b"):
            (pod.folder / host / "end").touch()
        return watch(run)

    monkeypatch.setattr(tpu_pod.Run, "_watch", let_it_end)
    run = tpu_pod.Run(options(), ["-c", ME + program])
    assert run._start(0, new=True) == (None, "")
    assert pod.launch(program) == 0
    assert pod.starts("a") == ["0"] and pod.starts("b") == ["0"]
    shown = capfd.readouterr()
    assert "the run is active (attempt 0): watching it" in shown.err and "[a] step" in shown.out


@pytest.mark.slow
def test_tpu_pod_does_not_end_another_run(pod):
    run = tpu_pod.Run(options(), ["-c", ME + "time.sleep(600)"])
    assert run._start(0, new=True) == (None, "")
    assert "another run is active on the pod r: .venv/bin/python -c" in str(pod.launch("pass"))
    assert pod.launch("pass", "--replace") == 0
    assert pod.starts("a") == ["0", "0"]


@pytest.mark.slow
def test_tpu_pod_stop_lets_the_run_save(pod):
    program = (
        "import signal; signal.signal(15, lambda *_: (open(os.path.expanduser('~/saved'), 'w'), "
        "sys.exit(75))); open(os.path.expanduser('~/ready'), 'w'); time.sleep(600)"
    )
    run = tpu_pod.Run(options(), ["-c", ME + program])
    assert run._start(0, new=True) == (None, "")
    for host in ("a", "b"):
        while not (pod.folder / host / "ready").exists():
            time.sleep(0.05)
    assert pod.launch(program, "--stop", "--grace=60") == 0
    assert (pod.folder / "a/saved").exists() and (pod.folder / "b/saved").exists()
    assert pod.calls()[-1] == "ssh-stop"
    # A launcher that was watching does not restart it.
    assert run._watch()[0] == exit_codes.PREEMPTED and run._final


@pytest.mark.slow
def test_tpu_pod_runs_setup_once_after_each_boot(pod):
    program = FIRST.format(70)
    assert pod.launch(program, "--setup=echo mounted >> ~/mounts") == 0
    assert pod.calls() == [
        *["scp", "ssh-install", "ssh-setup", "ssh-start"],
        *["ssh-stop", "ssh-setup", "ssh-start"],
    ]
    assert (pod.folder / "a/mounts").read_text() == "mounted\n"


def test_tpu_pod_stops_if_setup_fails(pod):
    pod.write()
    assert pod.launch("", "--setup=exit 3") == 1
    assert pod.calls() == ["scp", "ssh-install", "ssh-setup"] and pod.starts("a") == []


def test_tpu_pod_refuses_two_kinds_of_capacity():
    with pytest.raises(SystemExit, match="--spot and --reserved"):
        tpu_pod.main([*OPTIONS, "--spot", "--reserved", "--", "-c", "pass"])


def options():
    found, _ = commands.parse(None, "tpu_pod", [*OPTIONS, "--", "x"], tpu_pod.SETTINGS)
    found.version = "v"
    return found


@pytest.mark.slow
def test_gcloud_itself_accepts_the_commands(tmp_path, capsys):
    """It stops for want of an account, after it has read the arguments; nothing is sent."""
    if shutil.which("gcloud") is None:
        pytest.skip("gcloud is not installed")
    given = [*OPTIONS, "--project=p-1", "--slices=2", "--reserved", "--internal_ips", "--delete"]
    given += ["--service_account=me@p", "--network=n", "--subnetwork=s", "--setup=mount it"]
    assert tpu_pod.main([*given, "--dry_run", "--", "pretrain"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("gcloud ")]
    assert len(lines) == 7
    nowhere = {
        "CLOUDSDK_CONFIG": str(tmp_path),
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
        "https_proxy": "http://127.0.0.1:9",
    }
    for line in [*lines, lines[0].replace("--reserved", "--reservd")]:
        done = subprocess.run(
            shlex.split(line), capture_output=True, text=True, env=os.environ | nowhere, timeout=200
        )
        unknown = "--reservd" in line
        assert ("unrecognized arguments" in done.stderr) == unknown, done.stderr
        assert unknown or "active account" in done.stderr, done.stderr
