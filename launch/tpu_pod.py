"""Creates a Cloud TPU pod, starts a run on all its hosts and restarts it after a preemption.

    python -m launch.tpu_pod --name=run --zone=us-east5-a --type=v5p-256 --spot --dry_run -- \\
        pretrain --recipe=7b --run_dir=gs://my-bucket/runs/7b --data.sources=...

The command after -- runs in Python on every host, detached from this launcher; JAX detects the
other hosts. If the connection or this launcher is lost, the run goes on: the same command watches
it again, and --stop ends it after it has saved a checkpoint. run_dir and the data must be on
storage that all hosts share: a bucket, or what --setup mounts on every host. The launcher exits
after the run and keeps the pod unless --delete is set.
"""

import hashlib
import json
import shlex
import sys
import time
import uuid

from qwen_jax import exit_codes

from . import commands, host
from .gcloud import Pod

IMAGES = {
    "v4": "tpu-ubuntu2204-base",
    "v5p": "v2-alpha-tpuv5",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v6e": "v2-alpha-tpuv6e",
}
SETTINGS = {
    "name": (None, "name of the pod and of its queued resource"),
    "zone": (None, "Google Cloud zone, such as us-east5-a"),
    "type": (
        None,
        "accelerator type, such as v5p-256 (counts cores) or v5litepod-16, v6e-256 (chips)",
    ),
    "slices": (1, "number of slices, connected by DCN; --mesh.data is a multiple of it", 1),
    "version": ("", "runtime image; default: the one for the chips of --type"),
    "project": ("", "Google Cloud project; default: that of gcloud"),
    "setup": ("", "shell command that every host runs after each of its boots, such as a mount"),
    "env": ([], "NAME=VALUE of an environment variable of the run"),
    "spot": (False, "use a spot pod: cheaper, preempted at 30 seconds' notice"),
    "reserved": (False, "use reserved capacity"),
    "internal_ips": (False, "hosts without external addresses; run this launcher in their network"),
    "iap": (False, "reach the hosts through Google's Identity-Aware Proxy"),
    "service_account": ("", "service account of the hosts, for access to buckets"),
    "network": ("", "network of the hosts; default: that of the project"),
    "subnetwork": ("", "subnetwork of the hosts"),
    "max_restarts": (100, "maximum number of restarts"),
    "grace": (120, "seconds to save a checkpoint after SIGTERM, or after another host has failed"),
    "delete": (False, "delete the pod after a successful run"),
    "replace": (False, "end another run that is active on the pod"),
    "stop": (False, "end the run after it has saved a checkpoint; the pod stays"),
}
POLL_SECONDS = 10
SILENT_SECONDS = 600  # a host of a healthy pod that does not respond counts as lost
SSH_SECONDS = 180  # of a connection that only asks
LATE_SECONDS = 600  # for the other hosts to exit after one is done


def main(argv: list[str]) -> int:
    options, command = commands.parse(__doc__, "tpu_pod", argv, SETTINGS)
    if options.spot and options.reserved:
        sys.exit("--spot and --reserved are two kinds of capacity: choose one.")
    options.version = options.version or image(options.type)
    commands.need("gcloud", "https://cloud.google.com/sdk/docs/install", dry_run=options.dry_run)
    run = Run(options, command)
    try:
        return run.stop() if options.stop else run.supervise()
    except KeyboardInterrupt:
        print(
            "\n[launch] the run goes on; the same command watches it again, and --stop ends it",
            file=sys.stderr,
        )
        return exit_codes.INTERRUPTED


def image(accelerator: str) -> str:
    """Returns the runtime image of an accelerator type such as "v5p-256"; exits if unknown."""
    kind = accelerator.partition("-")[0]
    if kind not in IMAGES:
        sys.exit(
            f"no runtime image is known for {accelerator!r} (known: {', '.join(IMAGES)}): check "
            "--type, or set the image with --version."
        )
    return IMAGES[kind]


class Run:
    """One run on a pod, over all of its attempts.

    Attributes:
      end: host -> (time, exit code) of those whose process has ended in this attempt.
    """

    def __init__(self, options, command: list[str]):
        self._options, self._command = options, command
        # Of an installation (qwen-jax launch), the package itself is packed.
        self._pod = Pod(options, installed=not commands.PAGES.startswith("experiments"))
        self._digest = hashlib.sha256(json.dumps([command, options.env]).encode()).hexdigest()
        self._token = uuid.uuid4().hex[:8]
        self._hosts: set[str] = set()
        self._offsets: dict[str, int] = {}
        self._id, self._final = "", False
        self.end: dict[str, tuple[float, int]] = {}

    def supervise(self) -> int:
        """Starts the run, or watches the one that is active; returns its exit code."""
        made = self._pod.ensure()
        number = None if made else self._active()
        attempt = number or 0
        for restart in range(self._options.max_restarts + 1):
            if number is None:
                number = attempt
                code, reason = self._start(number, new=made or restart == 0)
            else:
                code, reason = None, ""
            if code is None:
                code, reason = (0, "") if self._options.dry_run else self._watch()
            if code == exit_codes.DONE:
                if self._options.delete:
                    self._pod.delete()
                return code
            _log(f"attempt {number}: {reason}")
            if self._final:
                _log("not restarted: --stop has ended it")
                return exit_codes.INTERRUPTED
            gone = self._pod.state() != "ACTIVE"
            if self._id and not gone:
                gone = not self._kill(grace=0)  # before anything else starts
            if not exit_codes.restarts(code):
                _log("not restarted: a restart would repeat the error")
                return code
            if restart == self._options.max_restarts:
                break
            attempt, number = number + 1, None
            _log(f"restart {restart + 1} of {self._options.max_restarts}")
            time.sleep(min(2**restart, 60) * POLL_SECONDS / 10)
            made = self._remake() if gone else self._pod.ensure()
        _log(f"stopped after the maximum of {self._options.max_restarts} restarts")
        return exit_codes.CRASHED

    def stop(self) -> int:
        """Ends the active run after it has saved; returns 0 if nothing runs any more."""
        if self._pod.state() != "ACTIVE":
            _log(f"the pod {self._options.name} is not active: nothing runs on it")
            return 0
        return 0 if self._kill(grace=self._options.grace, final=True) else 1

    def _active(self) -> int | None:
        """Returns the number of the attempt of this run that is active on the pod, or None.

        Exits if another run is active, unless --replace is set.
        """
        found = [reply for reply in self._ask("poll", offsets={}) if "state" in reply]
        running = [reply for reply in found if reply["state"] == "running"]
        if not running:
            return None
        others = [reply for reply in running if reply["digest"] != self._digest]
        if others and not self._options.replace:
            sys.exit(
                f"another run is active on the pod {self._options.name}: {others[0]['shown']}\n"
                "wait for it, add --replace to end it, or use a pod with another --name."
            )
        if others:
            _log(f"ending the run that is active: {others[0]['shown']}")
            if not self._kill(grace=self._options.grace):
                sys.exit("it could not be ended on every host; run the same command again.")
            return None
        self._id, number = running[0]["id"], running[0]["number"]
        self._hosts = {reply["host"] for reply in found}
        self._offsets = {}
        _log(f"the run is active (attempt {number}): watching it")
        return number

    def _start(self, number: int, *, new: bool) -> tuple[int | None, str]:
        """Installs what is needed, and starts an attempt on all hosts.

        Returns:
          (exit code, reason) of what failed; the code is None if the attempt was started.
        """
        self._id = ""
        if new:
            self._hosts, self._offsets = set(), {}
            if code := self._pod.install():
                return self._failure(code, "the installation failed")
        if self._options.setup:
            replies = self._ask("setup", command=self._options.setup)
            if bad := next((each["code"] for each in replies if each.get("code")), 0):
                return exit_codes.REFUSED, f"--setup failed with exit code {bad}: see its output"
            if not replies and not self._options.dry_run:
                return self._failure(255, "--setup did not run on every host")
        self._id, self.end = f"{self._token}-{number}", {}
        environment = {"QWEN_JAX_LAUNCHER": "tpu_pod", "QWEN_JAX_ATTEMPT": str(number)}
        replies = self._ask(
            "start",
            id=self._id,
            number=number,
            digest=self._digest,
            command=[".venv/bin/python", *self._command],
            folder="~/qwen_jax",
            env=environment | self._options.env,
        )
        if self._options.dry_run:
            self._ask("poll", offsets={})
            return None, ""
        if others := [each for each in replies if each["id"] != self._id]:
            sys.exit(
                f"another launcher has started attempt {others[0]['id']} on {others[0]['host']}"
            )
        if not replies:
            return self._failure(255, "the run could not be started on every host")
        self._hosts = {reply["host"] for reply in replies}
        return None, ""

    def _failure(self, code: int, what: str) -> tuple[int, str]:
        """Returns (exit code, reason) of a step that failed, which a restart cures or not."""
        if self._options.dry_run:
            return exit_codes.REFUSED, what
        state = self._pod.state()
        if state != "ACTIVE":
            return exit_codes.PREEMPTED, f"{what}: the pod is {state}"
        lost = code == 255
        return (exit_codes.LOST_PROCESS if lost else code), f"{what} (exit code {code})"

    def _ask(self, action: str, **given) -> list[dict]:
        """Returns the replies of the hosts; repeats it until all of them reply, except for `poll`.

        Returns [] if some host does not reply, except for `poll`.
        """
        text = shlex.join(["python3", "host.py", action, json.dumps(given)])
        seconds = None if action == "setup" else SSH_SECONDS + given.get("grace", 0)
        for _ in range(1 if action == "poll" else 5):
            code, output = self._pod.ssh(text, seconds=seconds)
            replies = []
            for line in output.splitlines():
                before, marker, rest = line.partition(host.REPLY)
                if not marker:
                    print(line, flush=True)
                    continue
                try:
                    replies.append(json.loads(rest))
                except ValueError:
                    continue
            complete = code == 0 and self._hosts <= {each["host"] for each in replies}
            refused = action == "setup" and any(each.get("code") for each in replies)
            if complete or refused or action == "poll" or self._options.dry_run:
                return replies
            if self._pod.state() != "ACTIVE":
                return []
            time.sleep(POLL_SECONDS)
        return []

    def _watch(self) -> tuple[int, str]:
        """Follows an attempt until it has ended on all hosts; returns (exit code, reason).

        The exit code is that of the first cause: other hosts fail as a consequence.
        """
        heard = dict.fromkeys(self._hosts, time.monotonic())
        self.end, deadline = {}, None
        while True:
            for reply in self._ask("poll", offsets=self._offsets):
                self._take(reply, heard)
            failed = {name: each for name, each in self.end.items() if each[1] != 0}
            if self._hosts and self.end.keys() >= self._hosts:
                return self._verdict(failed)
            now = time.monotonic()
            if self.end and deadline is None:
                deadline = now + (self._options.grace if failed else LATE_SECONDS)
            if deadline is not None and now > deadline:
                if failed:
                    return self._verdict(failed)
                late = ", ".join(sorted(self._hosts - self.end.keys()))
                return exit_codes.LOST_PROCESS, f"{late} did not end {LATE_SECONDS} s after others"
            silent = [
                name
                for name, since in heard.items()
                if name not in self.end and now - since > 3 * POLL_SECONDS
            ]
            if silent or not heard:
                state = self._pod.state()
                if state != "ACTIVE" and not state.startswith("node "):
                    return exit_codes.PREEMPTED, f"the pod is {state}"
                if lost := [name for name in silent if now - heard[name] > SILENT_SECONDS]:
                    what = f"{', '.join(lost)} did not respond for {SILENT_SECONDS} s"
                    return exit_codes.LOST_PROCESS, what
            time.sleep(POLL_SECONDS)

    def _take(self, reply: dict, heard: dict[str, float]) -> None:
        """Records what a host says, and prints the new part of its log."""
        name = reply["host"]
        self._final |= reply.get("final", False) and reply["id"] == self._id
        heard[name] = time.monotonic()
        if "log" in reply:
            if reply["offset"] == self._offsets.get(name, reply["offset"]):
                self._offsets[name] = reply["next"]
                for line in reply["log"].splitlines():
                    print(f"[{name}] {line}", flush=True)
        elif reply["state"] == "exited" and reply["id"] == self._id:
            self.end.setdefault(name, (reply["time"], reply["code"]))
        elif reply["state"] in ("lost", "none", "exited"):  # killed, or the host has booted
            self.end.setdefault(name, (time.time(), 137))

    def _verdict(self, failed: dict[str, tuple[float, int]]) -> tuple[int, str]:
        in_time = sorted(failed.items(), key=lambda item: item[1][0])
        code = exit_codes.first_cause([each for _, (_, each) in in_time])
        if code == exit_codes.DONE:
            return code, ""
        name = next(name for name, (_, each) in in_time if exit_codes.first_cause([each]) == code)
        return code, f"{name} ended with exit code {code}: {exit_codes.meaning(code)}"

    def _kill(self, *, grace: int, final: bool = False) -> bool:
        """Ends the run on all hosts; returns whether nothing runs any more."""
        replies = self._ask("stop", grace=grace, final=final)
        return bool(replies) and all(reply["state"] != "running" for reply in replies)

    def _remake(self) -> bool:
        """Returns True after a new pod was made: the only certain end of what a host runs."""
        if self._pod.state() == "ACTIVE":
            _log("a host does not respond: making the pod again")
            self._pod.delete()
        return self._pod.ensure()


def _log(text: str) -> None:
    print(f"[launch] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    commands.exit_with(main)
