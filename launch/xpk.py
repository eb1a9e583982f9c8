"""Starts a run on a GKE cluster of TPUs through XPK, which creates and queues the JobSet.

    python -m launch.xpk --cluster=pods --name=run --type=v5p-256 --image=REGISTRY/qwen_jax:tpu \\
        --zone=us-east5-a --storage=bucket --dry_run -- pretrain --recipe=7b \\
        --run_dir=/bucket/runs/7b ...

Requires `pip install xpk` and an image built from launch/Dockerfile.tpu. The cluster restarts
preempted and failed hosts, and the run resumes from its latest valid checkpoint. --storage names a
volume of `xpk storage create` or `attach` that all hosts mount: run_dir and the data are in it. On
tpu7x, XPK starts two containers on every VM, one process each.
"""

import re
import shlex
import sys

from qwen_jax import exit_codes

from . import commands, pod_template

SETTINGS = {
    "cluster": (None, "name of the cluster, created by `xpk cluster create`"),
    "name": (None, "name of the workload"),
    "type": (None, "kind and size of one slice, such as v5p-256"),
    "slices": (1, "number of slices, connected by DCN; --mesh.data is a multiple of it", 1),
    "image": (None, "container with this package (launch/Dockerfile.tpu)"),
    "project": ("", "Google Cloud project; default: that of gcloud"),
    "zone": ("", "Google Cloud zone of the cluster; default: that of gcloud"),
    "storage": ([], "name of a storage of the cluster that the workload mounts"),
    "env": ([], "NAME=VALUE of an environment variable of the run"),
    "priority": ("medium", "priority in the cluster's queue: very-low to very-high"),
    "max_restarts": (100, "maximum number of restarts"),
    "grace": (120, "seconds to save a checkpoint after SIGTERM; on Spot, GKE gives at most 15", 1),
}
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
_PRIORITIES = ("very-low", "low", "medium", "high", "very-high")


def main(argv: list[str]) -> int:
    options, command = commands.parse(__doc__, "xpk", argv, SETTINGS)
    if wrong := problems(options, command):
        sys.exit("\n  ".join(["xpk would refuse this:", *wrong]))
    commands.need("xpk", "pip install xpk", dry_run=options.dry_run)
    return commands.run(workload(options, command), dry_run=options.dry_run)


def problems(options, command: list[str]) -> list[str]:
    """Returns what XPK or its YAML template does not accept."""
    found = [
        f"--{name}={value!r}: a name has at most 40 lower-case letters, digits and hyphens, and "
        "starts with a letter"
        for name, value in (("cluster", options.cluster), ("name", options.name))
        if not _NAME.fullmatch(value)
    ]
    if options.priority not in _PRIORITIES:
        found.append(f"--priority={options.priority}: use one of {', '.join(_PRIORITIES)}")
    if any("\n" in text for text in (*command, *options.env.values())):
        found.append("a line break in the command or in --env: XPK puts them in lines of YAML")
    return found


def workload(options, command: list[str]) -> list[str]:
    """Returns the command of XPK."""
    environment = {"QWEN_JAX_LAUNCHER": "xpk"} | options.env
    # XPK runs a shell script, which sends SIGTERM to what `exec` has made Python.
    inside = "exec " + pod_template.literal(shlex.join(["python", *command]))
    return [
        "xpk",
        "workload",
        "create",
        f"--cluster={options.cluster}",
        f"--workload={options.name}",
        f"--tpu-type={options.type}",
        f"--num-slices={options.slices}",
        f"--docker-image={options.image}",
        *([f"--project={options.project}"] if options.project else []),
        *([f"--zone={options.zone}"] if options.zone else []),
        *(f"--storage={name}" for name in options.storage),
        *(f"--env={name}={pod_template.literal(value)}" for name, value in environment.items()),
        f"--priority={options.priority}",
        f"--max-restarts={options.max_restarts}",
        # XPK restarts only after 42 and 127 to 255 by itself.
        f"--restart-on-exit-codes={','.join(map(str, exit_codes.RESTARTED))}",
        f"--termination-grace-period-seconds={options.grace}",
        f"--command={inside}",
    ]


if __name__ == "__main__":
    commands.exit_with(main)
