"""Starts a run on Kubernetes with JobSet: on GPUs, or on TPUs without XPK.

    python -m launch.jobset --name=run --image=REGISTRY/qwen_jax:gpu --hosts=4 --gpus=8 \\
        --volume=training-data --dry_run -- pretrain --recipe=7b \\
        --run_dir=/data/runs/7b --data.sources=/data/mine/train

There is one pod per host. All pods start and restart together (failurePolicy), after those of the
last attempt are gone. An error that a restart would repeat (qwen_jax/exit_codes.py) fails the job
immediately. What all pods share is --volume or --bucket.

On GKE, TPU slices that DCN connects are --slices jobs of --hosts pods, each on a node pool of its
own; use --mesh.data = a multiple of --slices. A TPU7x VM has two containers of two chips. A pod on
Spot has at most 15 seconds between SIGTERM and SIGKILL, whatever --grace is.
"""

import json
import math
import re
import sys

from qwen_jax import exit_codes

from . import commands, pod_template

SETTINGS = {
    "name": (None, "name of the JobSet"),
    "image": (None, "container with this package (launch/Dockerfile.gpu, Dockerfile.tpu)"),
    "hosts": (1, "number of hosts (of each slice), with one pod each", 1),
    "slices": (1, "number of TPU slices, connected by DCN", 1),
    "gpus": (8, "NVIDIA GPUs per pod; 0 for TPUs"),
    "chips": (0, "TPU chips per pod, instead of GPUs"),
    "topology": ("", "shape of the TPU slice, such as 4x4x4"),
    "accelerator": (
        "",
        "accelerator of the nodes on GKE, such as tpu-v5p-slice, tpu7x or nvidia-h100-80gb",
    ),
    "volume": ("", "persistent volume claim, mounted at /data"),
    "bucket": ([], "bucket that Cloud Storage FUSE mounts at /BUCKET, on GKE"),
    "service_account": ("", "Kubernetes service account of the pods, for access to a bucket"),
    "env": ([], "NAME=VALUE of an environment variable of the run"),
    "annotation": ([], "KEY=VALUE of an annotation of the pods"),
    "toleration": ([], "taint that the pods tolerate: KEY, KEY=VALUE or KEY=VALUE:EFFECT"),
    "gpudirect": ("", "rdma: networks and NCCL of GKE nodes with H200 or B200 GPUs"),
    "queue": ("", "Kueue's local queue, which starts the pods when all of them fit"),
    "priority_class": ("", "priority class of the pods"),
    "spot": (False, "run on Spot nodes of GKE: cheaper, preempted at 15 seconds' notice"),
    "namespace": ("default", "Kubernetes namespace"),
    "max_restarts": (100, "maximum number of restarts"),
    "grace": (120, "seconds to save a checkpoint after SIGTERM", 1),
}
SPOT_SECONDS = 15  # what GKE gives a pod that is not one of the system's
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")


def main(argv: list[str]) -> int:
    options, command = commands.parse(__doc__, "jobset", argv, SETTINGS)
    if wrong := problems(options):
        sys.exit("\n  ".join(["Kubernetes would refuse or never start this:", *wrong]))
    if options.spot and options.grace > SPOT_SECONDS:
        print(
            f"on Spot, GKE ends a pod {SPOT_SECONDS} s after SIGTERM: --grace={options.grace} is "
            f"not reached. A checkpoint that takes longer is lost; lower --train.save_every.",
            file=sys.stderr,
        )
        options.grace = SPOT_SECONDS
    commands.need("kubectl", "https://kubernetes.io/docs/tasks/tools", dry_run=options.dry_run)
    # JSON is valid YAML, so kubectl accepts it, and no YAML quoting is needed.
    text = json.dumps(jobset(options, command), indent=2) + "\n"
    return commands.run(
        ["kubectl", "apply", f"--namespace={options.namespace}", "-f", "-"],
        dry_run=options.dry_run,
        text=text,
    )


def problems(options) -> list[str]:
    """Returns what is wrong with the flags, all of it at once."""
    found = []
    if not _NAME.fullmatch(options.name):
        found.append(
            f"--name={options.name!r}: at most 40 lower-case letters, digits and hyphens, the "
            "first a letter"
        )
    if options.slices > 1 and not options.chips:
        found.append(f"--slices={options.slices} is for TPUs: for GPUs, increase --hosts")
    if options.chips and options.gpudirect:
        found.append("--gpudirect is for GPUs, but --chips is set")
    if options.gpudirect not in ("", "rdma"):
        found.append(
            f"--gpudirect={options.gpudirect}: only rdma; for others, pass --annotation and --env"
        )
    if options.topology:
        if not re.fullmatch(r"\d+(x\d+){1,2}", options.topology):
            found.append(f"--topology={options.topology} is not of the form 4x4 or 4x4x4")
        elif options.chips:
            chips = math.prod(map(int, options.topology.split("x")))
            if chips != options.hosts * options.chips:
                found.append(
                    f"--topology={options.topology} has {chips} chips, but --hosts x --chips = "
                    f"{options.hosts * options.chips}"
                )
    elif options.chips:
        found.append("--topology is missing: GKE schedules TPUs by it, such as 2x2x4")
    if options.chips and not options.accelerator:
        found.append("--accelerator is missing: GKE schedules TPUs by it, such as tpu-v5p-slice")
    found += [
        f"--annotation={pair} is not KEY=VALUE"
        for pair in options.annotation
        if not pair.partition("=")[0] or "=" not in pair
    ]
    found += [
        f"--toleration={text} is not KEY, KEY=VALUE or KEY=VALUE:EFFECT (NoSchedule or NoExecute)"
        for text in options.toleration
        if pod_template.toleration(text) is None
    ]
    return found


def jobset(options, command: list[str]) -> dict:
    """Returns the JobSet manifest."""
    codes = list(exit_codes.NOT_RESTARTED)
    refused = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": codes}}
    job = {
        "completionMode": "Indexed",
        "parallelism": options.hosts,
        "completions": options.hosts,
        "backoffLimit": 0,  # a failed pod fails the job, and the JobSet restarts all pods
        "podFailurePolicy": {"rules": [refused]},
        "template": pod_template.template(options, command),
    }
    reasons = ["PodFailurePolicy"]
    failed = {"name": "refused", "action": "FailJobSet", "onJobFailureReasons": reasons}
    metadata: dict = {"name": options.name}
    if options.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": options.queue}
    if options.chips:  # a node pool is a slice
        topology = "alpha.jobset.sigs.k8s.io/exclusive-topology"
        metadata["annotations"] = {topology: "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True},
            "failurePolicy": {
                "maxRestarts": options.max_restarts,
                # Otherwise two attempts would hold the run folder and the accelerators.
                "restartStrategy": "BlockingRecreate",
                "rules": [failed],
            },
            "replicatedJobs": [
                {"name": "hosts", "replicas": options.slices, "template": {"spec": job}}
            ],
        },
    }


if __name__ == "__main__":
    commands.exit_with(main)
