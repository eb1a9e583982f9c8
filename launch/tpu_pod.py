"""Creates a Cloud TPU pod, starts a run on all its hosts and restarts it after a preemption.

    python -m launch.tpu_pod --name=run --zone=us-east5-a --type=v5p-256 --spot --dry_run -- \\
        pretrain --recipe=7b --run_dir=gs-mount/runs/7b --data.sources=...

The command after -- runs in Python on every host; JAX detects the other hosts. run_dir and the data
must be on storage that all hosts share. The launcher exits after the run and keeps the pod unless
--delete is set.
"""

import os
import pathlib
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time

from qwen_jax import exit_codes

from . import commands

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
    "version": ("", "runtime image; default: the one for the chips of --type"),
    "project": ("", "Google Cloud project; default: that of gcloud"),
    "spot": (False, "use a spot pod: cheaper, preempted at 30 seconds' notice"),
    "max_restarts": (100, "maximum number of restarts"),
    "delete": (False, "delete the pod after a successful run"),
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
            pod.create()
        code = pod.install() if new or attempt == 0 else 0
        code = code or pod.start(command, attempt)
        if options.dry_run or not exit_codes.restarts(code) and pod.ready():
            break  # success, or an error that a restart would repeat
    if options.delete and (code == 0 or options.dry_run):
        pod.delete()
    return code


def image(accelerator: str) -> str:
    """Returns the runtime image of an accelerator type such as "v5p-256"; exits if unknown."""
    kind = accelerator.partition("-")[0]
    if kind not in IMAGES:
        sys.exit(
            f"no runtime image is known for {accelerator!r} (known: {', '.join(IMAGES)}): check "
            "--type, or set the image with --version."
        )
    return IMAGES[kind]


def pack(folder: pathlib.Path, archive: pathlib.Path) -> None:
    """Writes the files of `folder` that git does not ignore to a .tgz; any name is possible.

    A symbolic link is packed as a link. One that leaves the folder is reported: it points nowhere
    on the pod. Exits if `folder` is not a git checkout.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"],
        cwd=folder,
        stdout=subprocess.PIPE,
        check=False,
    )
    if listed.returncode:
        sys.exit(
            "cannot list the files of this folder: see git's message above. Run the launcher in "
            "the root of a git checkout."
        )
    names = [os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    root = folder.resolve()
    try:
        with tarfile.open(archive, "w:gz") as tar:
            for name in names:
                path = folder / name
                if not os.path.lexists(path):  # deleted, but still in git's index
                    continue
                if path.is_symlink() and not path.resolve().is_relative_to(root):
                    print(f"{name} is a link to a file outside of this folder", file=sys.stderr)
                tar.add(path, arcname=name)
    except OSError as error:
        sys.exit(f"cannot pack the files of this folder: {error}.")


class Pod:
    """A queued resource with one node, managed through gcloud."""

    def __init__(self, options):
        self._options = options
        self._where = [f"--zone={options.zone}"] + (
            [f"--project={options.project}"] if options.project else []
        )

    def ready(self) -> bool:
        """Returns whether the pod exists and is healthy."""
        return self._state() == "ACTIVE"

    def _state(self) -> str:
        """Returns gcloud's state: ACTIVE, WAITING_FOR_RESOURCES, FAILED, SUSPENDED; or ""."""
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

    def create(self) -> None:
        """Deletes an existing pod, requests a new one and waits until it is ready."""
        options = self._options
        if self._state():
            self.delete()
        self._check(
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
                    f"Google Cloud could not create the pod {options.name}: see `gcloud compute "
                    f"tpus queued-resources describe {shlex.join([options.name, *self._where])}`."
                )
            time.sleep(30)

    def install(self) -> int:
        """Copies the files that git does not ignore to every host and installs the package.

        Returns the exit code.
        """
        with tempfile.TemporaryDirectory(prefix="qwen_jax-") as folder:
            packed = pathlib.Path("FOLDER" if self._options.dry_run else folder) / "qwen_jax.tgz"
            if self._options.dry_run:
                print(f"# packs the files of this folder that git does not ignore into {packed}")
            else:
                pack(pathlib.Path(), packed)
            target = f"{self._options.name}:qwen_jax.tgz"
            self._check("tpu-vm", "scp", "--worker=all", *self._where, str(packed), target)
        # The images have Python 3.10, which is too old for JAX; uv installs a newer version.
        return self._ssh(
            "mkdir -p qwen_jax && tar -xzf qwen_jax.tgz -C qwen_jax && cd qwen_jax && "
            "python3 -m pip install --quiet --user uv && export PATH=$HOME/.local/bin:$PATH && "
            "uv venv --quiet --allow-existing --python 3.12 .venv && "
            "uv pip install --quiet --python .venv/bin/python --editable '.[tpu]'"
        )

    def start(self, command: list[str], attempt: int) -> int:
        """Runs the command on all hosts; returns the exit code of the first host that fails."""
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

    def _check(self, *arguments: str) -> None:
        code = self._gcloud(*arguments)
        if code:
            sys.exit(
                f"gcloud {arguments[0]} {arguments[1]} failed with exit code {code}: see its "
                "message above. Run the same command again to continue."
            )

    def _gcloud(self, *arguments: str) -> int:
        return commands.run(
            ["gcloud", "compute", "tpus", *arguments], dry_run=self._options.dry_run
        )


if __name__ == "__main__":
    commands.exit_with(main)
