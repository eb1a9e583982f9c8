"""A run on a Cloud TPU pod: made, filled, started on all hosts, and again after a preemption.

    python -m launch.tpu_pod --name=run --zone=us-east5-a --type=v5p-256 --spot --dry_run -- \\
        pretrain --recipe=7b --run_dir=gs-mount/runs/7b --data.sources=...

What follows -- is given to Python on every host; JAX finds the others by itself. run_dir and the
data are on storage that all hosts share. The command ends when the run has; the pod stays until
`--delete`.
"""

import shlex
import subprocess
import sys
import tempfile
import time

from . import commands

IMAGES = {
    "v4": "tpu-ubuntu2204-base",
    "v5p": "v2-alpha-tpuv5",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v6e": "v2-alpha-tpuv6e",
}
SETTINGS = {
    "name": (None, "name of the pod and of its queued resource"),
    "zone": (None, "zone of Google Cloud, as us-east5-a"),
    "type": (None, "accelerator type, as v5p-256 (counts cores) or v5litepod-16, v6e-256 (chips)"),
    "version": ("", "runtime image; without it, the one for the chips of --type"),
    "project": ("", "project of Google Cloud; without it, gcloud's default"),
    "spot": (False, "cheaper, and taken away at 30 seconds' notice"),
    "max_restarts": (100, "how often it starts again"),
    "delete": (False, "give the pod back when the run is done"),
}


def main(argv: list[str]) -> int:
    options, command = commands.parse(__doc__, "tpu_pod", argv, SETTINGS)
    options.version = options.version or image(options.type)
    commands.need("gcloud", "https://cloud.google.com/sdk/docs/install", dry_run=options.dry_run)
    pod = Pod(options)
    code = 1
    for attempt in range(options.max_restarts + 1):
        new = not pod.ready()
        if new:
            pod.make()
        code = pod.fill() if new or attempt == 0 else 0
        code = code or pod.start(command, attempt)
        if options.dry_run or code in (0, 1) and pod.ready():
            break  # done; or an error that would only come again
    if options.delete and (code == 0 or options.dry_run):
        pod.delete()
    return code


def image(accelerator: str) -> str:
    """The runtime image for the chips of "v5p-256"; ends the program where none is known."""
    kind = accelerator.partition("-")[0]
    if kind not in IMAGES:
        sys.exit(
            f"no runtime image is known for {accelerator!r} (known: {', '.join(IMAGES)}): check "
            "--type, or name the image with --version."
        )
    return IMAGES[kind]


class Pod:
    """One queued resource with one node, through gcloud."""

    def __init__(self, options):
        self._options = options
        self._where = [f"--zone={options.zone}"] + (
            [f"--project={options.project}"] if options.project else []
        )

    def ready(self) -> bool:
        """Whether the pod is there and whole."""
        return self._state() == "ACTIVE"

    def _state(self) -> str:
        """Google's word for it: ACTIVE, WAITING_FOR_RESOURCES, FAILED, SUSPENDED; empty: no pod."""
        if self._options.dry_run:
            return ""
        return subprocess.run(
            [
                "gcloud",
                "compute",
                "tpus",
                "queued-resources",
                "describe",
                self._options.name,
                *self._where,
                "--format=value(state.state)",
            ],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()

    def make(self) -> None:
        """Asks for the pod (after giving back what is left of one) and waits until it is there."""
        options = self._options
        if self._state():
            self.delete()
        self._must(
            "queued-resources",
            "create",
            options.name,
            f"--node-id={options.name}",
            f"--accelerator-type={options.type}",
            f"--runtime-version={options.version}",
            *(["--spot"] if options.spot else []),
            *self._where,
        )
        while not options.dry_run and not self.ready():
            if self._state() == "FAILED":
                sys.exit(
                    f"Google Cloud could not make the pod {options.name}: see `gcloud compute "
                    f"tpus queued-resources describe {shlex.join([options.name, *self._where])}`."
                )
            time.sleep(30)

    def fill(self) -> int:
        """Copies what git does not ignore here to every host and installs it there;
        the exit code."""
        name = self._options.name
        packed = f"{tempfile.gettempdir()}/{name}.tgz"
        if commands.run(
            [
                "sh",
                "-c",
                "files=$(git ls-files --cached --others --exclude-standard) "
                f'&& echo "$files" | tar -czf {shlex.quote(packed)} -T -',
            ],
            dry_run=self._options.dry_run,
        ):
            sys.exit(
                "the files of this folder could not be packed: see the message above. Start "
                "the launcher in the root of a git checkout."
            )
        self._must("tpu-vm", "scp", "--worker=all", *self._where, packed, f"{name}:qwen_jax.tgz")
        # Python 3.10, which the images have, is too old for JAX: uv brings one.
        return self._ssh(
            "mkdir -p qwen_jax && tar -xzf qwen_jax.tgz -C qwen_jax && cd qwen_jax && "
            "python3 -m pip install --quiet --user uv && export PATH=$HOME/.local/bin:$PATH && "
            "uv venv --quiet --allow-existing --python 3.12 .venv && "
            "uv pip install --quiet --python .venv/bin/python --editable '.[tpu]'"
        )

    def start(self, command: list[str], attempt: int) -> int:
        """Runs the command on all hosts at once; the exit code of the first that fails."""
        return self._ssh(
            f"cd qwen_jax && QWEN_JAX_LAUNCHER=tpu_pod QWEN_JAX_ATTEMPT={attempt} "
            f".venv/bin/python {shlex.join(command)}"
        )

    def delete(self) -> None:
        self._gcloud(
            "queued-resources", "delete", self._options.name, "--force", "--quiet", *self._where
        )

    def _ssh(self, command: str) -> int:
        return self._gcloud(
            "tpu-vm",
            "ssh",
            self._options.name,
            "--worker=all",
            *self._where,
            f"--command={command}",
        )

    def _must(self, *arguments: str) -> None:
        code = self._gcloud(*arguments)
        if code:
            sys.exit(
                f"gcloud {arguments[0]} {arguments[1]} failed with exit code {code}: see its "
                "message above. The same command goes on from here."
            )

    def _gcloud(self, *arguments: str) -> int:
        return commands.run(
            ["gcloud", "compute", "tpus", *arguments], dry_run=self._options.dry_run
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
