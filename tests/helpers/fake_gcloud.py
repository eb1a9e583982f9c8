"""A gcloud of one simulated TPU pod, whose hosts are folders. Faults happen at chosen calls.

The folder of the file has cloud.json: the state of the pod, the number of hosts, and faults
{"call": "ssh-poll", "nth": 2, "do": "fail 255"}, counted from 1 by kind of call:

    fail CODE      exits without doing anything       lost CODE    does it, but loses the output
    skip HOST      one host is not reached            preempt      the pod is SUSPENDED, hosts gone
    kill HOST      SIGKILL to the host's processes    node STATES  the node is in these, then READY
    queue STATES   the pod is in these, then in the last one
"""

import fcntl
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent


class Cloud:
    """The pod, and what a call does to it."""

    def __init__(self, cloud: dict, words: list[str]):
        self.cloud, self.words = cloud, words
        self.kind = self._kind()

    def _kind(self) -> str:
        group, action = self.words[3:5]
        if action != "ssh":
            return "describe-node" if group == "tpu-vm" else action
        inside = self.flag("command")
        found = re.match(r"python3 host.py (\w+)", inside)
        return f"ssh-{found[1] if found else 'install'}"

    def flag(self, name: str) -> str:
        return next(w.partition("=")[2] for w in self.words if w.startswith(f"--{name}="))

    def run(self) -> int:
        """Does what the call asks for, with its faults; returns the exit code."""
        count = self.cloud["counts"][self.kind] = self.cloud["counts"].get(self.kind, 0) + 1
        self.cloud["calls"].append(self.kind)
        skipped, lost = [], 0
        for fault in self.cloud["faults"]:
            if fault["call"] == self.kind and fault["nth"] == count:
                name, _, value = fault["do"].partition(" ")
                if name == "fail":
                    print("ERROR: (gcloud) the call failed", file=sys.stderr)
                    return int(value)
                if name == "lost":
                    lost = int(value)
                elif name == "skip":
                    skipped.append(value)
                else:
                    self.break_pod(name, value)
        code = self.act(skipped, quiet=bool(lost))
        return lost or (255 if skipped else code)

    def break_pod(self, name: str, value: str) -> None:
        if name == "preempt":
            self.cloud["queue"] = ["SUSPENDING", "SUSPENDED"]
            self.remove_hosts()
        elif name == "kill":
            self.kill(value)
        elif name == "node":
            self.cloud["node"] = [*value.split(), "READY"]
        elif name == "queue":
            self.cloud["queue"] = value.split()

    def act(self, skipped: list[str], quiet: bool) -> int:
        cloud = self.cloud
        if self.kind == "create":
            if cloud["queue"]:
                print("ERROR: ALREADY_EXISTS", file=sys.stderr)
                return 1
            cloud["queue"] = cloud["creation"].pop(0) if cloud["creation"] else ["ACTIVE"]
            cloud["node"] = ["READY"]
            for host in cloud["hosts"]:
                (HERE / host).mkdir()
        elif self.kind == "delete":
            cloud["queue"] = []
            self.remove_hosts()
        elif self.kind in ("describe", "describe-node"):
            states = cloud["queue" if self.kind == "describe" else "node"]
            if not states:
                print("ERROR: NOT_FOUND: resource", file=sys.stderr)
                return 1
            print(states.pop(0) if len(states) > 1 else states[0])
        elif cloud["queue"][:1] != ["ACTIVE"]:
            return 255
        elif self.kind == "scp":
            files = [word for word in self.words[5:] if not word.startswith("--")][:-1]
            for host in cloud["hosts"]:
                for file in files:
                    shutil.copy(file, HERE / host)
        else:
            codes = [self.ssh(host, quiet) for host in cloud["hosts"] if host not in skipped]
            return next(filter(None, codes), 0)
        return 0

    def ssh(self, host: str, quiet: bool) -> int:
        home = HERE / host
        if self.kind == "ssh-install":
            (home / "qwen_jax/.venv/bin").mkdir(parents=True, exist_ok=True)
            program = home / "qwen_jax/.venv/bin/python"
            program.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')
            program.chmod(0o755)
            return 0
        inside = self.flag("command").replace("python3 host.py", f"{sys.executable} -S -E host.py")
        done = subprocess.run(
            ["bash", "-c", inside],
            cwd=home,
            env={**os.environ, "HOME": str(home), "HOSTNAME": host},
            stdout=subprocess.PIPE,
            check=False,
        )
        if not quiet:
            os.write(1, done.stdout)
        return done.returncode

    def kill(self, host: str) -> None:
        """Kills the processes of a host: those in the session of its attempt."""
        try:
            record = json.loads((HERE / host / ".qwen_jax_run/attempt.json").read_text())
        except OSError:
            return
        for path in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                session = (path / "stat").read_text().rpartition(")")[2].split()[3]
                if session == str(record["pid"]):
                    os.kill(int(path.name), signal.SIGKILL)
            except (OSError, IndexError):
                continue

    def remove_hosts(self) -> None:
        for host in self.cloud["hosts"]:
            self.kill(host)
            shutil.rmtree(HERE / host, ignore_errors=True)


if __name__ == "__main__":
    file = HERE / "cloud.json"
    with open(HERE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = Cloud(json.loads(file.read_text()), ["", *sys.argv[1:]])
        code = found.run()
        file.write_text(json.dumps(found.cloud))
    sys.exit(code)
