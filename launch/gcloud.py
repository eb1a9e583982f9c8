"""A Cloud TPU pod through gcloud: one queued resource with a node for each slice."""

import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import time

from . import commands, pack

WAIT_SECONDS = 30  # between two looks at a pod that is not ready
_TRIES = 10  # of a call that fails without a reason in the pod
_LOST_SSH = 255
# States of a queued resource and of a node that become another one by themselves.
_PENDING = (
    "ACCEPTED",
    "WAITING_FOR_RESOURCES",
    "PROVISIONING",
    "CREATING",
    "SUSPENDING",
    "DELETING",
)
_NODE_PENDING = ("CREATING", "STARTING", "RESTARTING", "REIMAGING", "REPAIRING", "")
ABSENT = "absent"


class Pod:
    """The pod of a run: created, remade after a preemption, reached by ssh."""

    def __init__(self, options, *, installed: bool):
        self._options, self._installed = options, installed
        self._where = [f"--zone={options.zone}"] + (
            [f"--project={options.project}"] if options.project else []
        )
        # gcloud accepts one of the two flags. A tunnel also reaches internal addresses.
        reach = "--tunnel-through-iap" if options.iap else "--internal-ip"
        self._reach = ["--node=all", "--worker=all", "--batch-size=all", "--quiet"]
        self._reach += [reach] if options.iap or options.internal_ips else []
        self._was_active = False

    def ensure(self) -> bool:
        """Waits until the pod is healthy; creates or remakes it if needed. Returns whether it did.

        Exits if Google Cloud refuses to create it.
        """
        made, shown = False, ""
        while True:
            state = self.state()
            if state == ABSENT:
                self._create()
                made = True
                if self._options.dry_run:
                    return True
            elif state == "ACTIVE":
                self._was_active = True
                return made
            elif state == "FAILED" and not self._was_active:
                sys.exit(
                    f"Google Cloud could not create the pod {self._options.name}: see `gcloud "
                    "compute tpus queued-resources describe "
                    f"{shlex.join([self._options.name, *self._where])}`."
                )
            elif state in _PENDING or state.startswith("node "):
                if state != shown:
                    _log(f"waiting for the pod {self._options.name}: {state}")
                    shown = state
                time.sleep(WAIT_SECONDS)
            else:  # SUSPENDED, FAILED, or a node that is PREEMPTED or STOPPED
                _log(f"the pod {self._options.name} is {state}: deleting it")
                self.delete()

    def state(self) -> str:
        """Returns ACTIVE, another state of the queued resource, "absent", or that of a node.

        A node that becomes READY by itself is "node STATE". Exits if gcloud keeps failing.
        """
        if self._options.dry_run:
            return ABSENT
        state = self._describe("queued-resources", self._options.name, "state.state")
        if state != "ACTIVE":
            return state
        for node in self.nodes():
            found = self._describe("tpu-vm", node, "state")
            if found in _NODE_PENDING:
                return f"node {found or 'without a state'}"
            if found != "READY":
                return found
        return state

    def nodes(self) -> list[str]:
        """Returns the name of each slice."""
        name, slices = self._options.name, self._options.slices
        return [name] if slices == 1 else [f"{name}-{number}" for number in range(slices)]

    def _describe(self, kind: str, name: str, field: str) -> str:
        command = ["gcloud", "compute", "tpus", kind, "describe", name, *self._where]
        message = ""
        for attempt in range(_TRIES):
            done = subprocess.run(
                [*command, f"--format=value({field})"], capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                return done.stdout.strip()
            if re.search(r"NOT_FOUND|not found|does not exist", done.stderr):
                return ABSENT
            message = done.stderr.strip()[-2000:]
            if attempt == 0:
                _log(f"gcloud cannot describe {name}, trying again: {message[-300:]}")
            time.sleep(WAIT_SECONDS)
        sys.exit(f"gcloud cannot describe {name}:\n{message}")

    def _create(self) -> None:
        options = self._options
        several = options.slices > 1
        code = self._gcloud(
            "queued-resources",
            "create",
            options.name,
            *(
                [f"--node-count={options.slices}", f"--node-prefix={options.name}"]
                if several
                else [f"--node-id={options.name}"]
            ),
            f"--accelerator-type={options.type}",
            f"--runtime-version={options.version}",
            *(["--spot"] if options.spot else []),
            *(["--reserved"] if options.reserved else []),
            *(["--internal-ips"] if options.internal_ips else []),
            *([f"--service-account={options.service_account}"] if options.service_account else []),
            *([f"--network={options.network}"] if options.network else []),
            *([f"--subnetwork={options.subnetwork}"] if options.subnetwork else []),
            *self._where,
        )
        # A call that failed may have created it, such as one whose connection was lost.
        if code and self.state() == ABSENT:
            sys.exit(
                f"gcloud queued-resources create failed with exit code {code}: see its message "
                "above. Run the same command again to continue."
            )

    def delete(self) -> None:
        """Deletes the queued resource and its nodes. Exits if gcloud keeps failing."""
        code = 0
        for attempt in range(_TRIES):
            code = self._gcloud(
                "queued-resources", "delete", self._options.name, "--force", "--quiet", *self._where
            )
            if code == 0 or self.state() == ABSENT:
                return
            if attempt + 1 < _TRIES:
                time.sleep(WAIT_SECONDS)
        sys.exit(f"gcloud queued-resources delete failed with exit code {code}: see its message.")

    def install(self) -> int:
        """Copies the files to every host and installs what they need. Returns the exit code."""
        name = self._options.name
        with tempfile.TemporaryDirectory(prefix="qwen_jax-") as folder:
            packed = pathlib.Path("FOLDER" if self._options.dry_run else folder) / "qwen_jax.tgz"
            if self._options.dry_run:
                what = "the installed package" if self._installed else "the files of this folder"
                print(f"# packs {what} that git does not ignore into {packed}")
            else:
                pack.pack(pathlib.Path(), packed, installed=self._installed)
            agent = str(pathlib.Path(__file__).with_name("host.py"))
            copied = self._again("scp", str(packed), agent, f"{name}:")
        if copied:
            return copied
        # The images have Python 3.10, which is too old for JAX; uv installs a newer version.
        return self._again(
            "ssh",
            name,
            "--command=mkdir -p qwen_jax && tar -xzf qwen_jax.tgz -C qwen_jax && cd qwen_jax && "
            "python3 -m pip install --quiet --user uv && export PATH=$HOME/.local/bin:$PATH && "
            "uv venv --quiet --allow-existing --python 3.12 .venv && "
            "uv pip install --quiet --python .venv/bin/python "
            + pack.requirements(self._installed),
        )

    def _again(self, action: str, *arguments: str) -> int:
        """Runs scp or ssh; repeats it after a lost connection while the pod is healthy."""
        code = _LOST_SSH
        for attempt in range(_TRIES):
            code = self._gcloud("queued-resources", action, *arguments, *self._reach, *self._where)
            if code != _LOST_SSH or self._options.dry_run or self.state() != "ACTIVE":
                return code
            if attempt + 1 < _TRIES:
                time.sleep(WAIT_SECONDS)
        return code

    def ssh(self, command: str, *, seconds: float | None) -> tuple[int, str]:
        """Runs a command on all hosts; returns (exit code, output). Prints it in a dry run.

        Args:
          seconds: a connection that takes longer counts as lost; None: no limit.
        """
        words = ["gcloud", "compute", "tpus", "queued-resources", "ssh", self._options.name]
        words += [f"--command={command}", *self._reach, *self._where]
        if self._options.dry_run:
            return commands.run(words, dry_run=True), ""
        try:
            done = subprocess.run(words, capture_output=True, check=False, timeout=seconds)
        except subprocess.TimeoutExpired as error:
            _log(f"gcloud ssh did not return within {seconds:.0f} s")
            return _LOST_SSH, (error.stdout or b"").decode(errors="replace")
        output = done.stdout.decode(errors="replace")
        if done.returncode:
            message = done.stderr.decode(errors="replace").strip()[-1000:]
            _log(f"gcloud ssh failed with exit code {done.returncode}: {message}")
        return done.returncode, output

    def _gcloud(self, *arguments: str) -> int:
        return commands.run(
            ["gcloud", "compute", "tpus", *arguments], dry_run=self._options.dry_run
        )


def _log(text: str) -> None:
    print(f"[launch] {text}", file=sys.stderr, flush=True)
