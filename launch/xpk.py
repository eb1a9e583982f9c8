"""Starts a run on a GKE cluster of TPUs through XPK, which creates and queues the JobSet.

    python -m launch.xpk --cluster=pods --name=run --type=v5p-256 --image=REGISTRY/qwen_jax:tpu \\
        --dry_run -- pretrain --recipe=7b --run_dir=/data/runs/7b ...

Requires `pip install xpk` and an image built from launch/Dockerfile.tpu. The cluster restarts
preempted and failed hosts, and the run resumes from its latest valid checkpoint.
"""

import shlex

from qwen_jax import exit_codes

from . import commands

SETTINGS = {
    "cluster": (None, "name of the cluster, created by `xpk cluster create`"),
    "name": (None, "name of the workload"),
    "type": (None, "kind and size of one slice, such as v5p-256"),
    "slices": (1, "number of slices, connected by DCN; --mesh.data is a multiple of it"),
    "image": (None, "container with this package (launch/Dockerfile.tpu)"),
    "priority": ("medium", "priority in the cluster's queue"),
    "max_restarts": (100, "maximum number of restarts"),
    "grace": (120, "seconds to save a checkpoint after SIGTERM"),
}


def main(argv: list[str]) -> int:
    options, command = commands.parse(__doc__, "xpk", argv, SETTINGS)
    commands.need("xpk", "pip install xpk", dry_run=options.dry_run)
    inside = shlex.join(["env", "QWEN_JAX_LAUNCHER=xpk", "python", *command])
    return commands.run(
        [
            "xpk",
            "workload",
            "create",
            f"--cluster={options.cluster}",
            f"--workload={options.name}",
            f"--tpu-type={options.type}",
            f"--num-slices={options.slices}",
            f"--docker-image={options.image}",
            f"--priority={options.priority}",
            f"--max-restarts={options.max_restarts}",
            # XPK restarts only after 42 and 127 to 255 by itself.
            f"--restart-on-exit-codes={','.join(map(str, exit_codes.RESTARTED))}",
            f"--termination-grace-period-seconds={options.grace}",
            f"--command={inside}",
        ],
        dry_run=options.dry_run,
    )


if __name__ == "__main__":
    commands.exit_with(main)
