"""A run on Kubernetes with JobSet: GPUs, or TPUs without XPK.

    python -m launch.jobset --name=run --image=REGISTRY/qwen_jax:gpu --hosts=4 --gpus=8 \\
        --volume=training-data --dry_run -- pretrain --recipe=7b \\
        --run_dir=/data/runs/7b --data.sources=/data/mine/train

One pod per host, all started together and again together (failurePolicy); an error of the settings
or the data (exit code 1) ends the job at once. --volume is a claim that all pods may write to.
"""

import json
import sys

from . import commands

_PORT = 8476
SETTINGS = {
    "name": (None, "name of the JobSet"),
    "image": (None, "container with this package (launch/Dockerfile.gpu, Dockerfile.tpu)"),
    "hosts": (1, "machines, one pod on each"),
    "gpus": (8, "NVIDIA GPUs of each pod; 0 for TPUs"),
    "chips": (0, "TPU chips of each pod, instead of GPUs"),
    "topology": ("", "shape of the TPU slice, as 4x4x4"),
    "accelerator": ("", "kind of node on GKE, as tpu-v5p-slice or nvidia-h100-80gb"),
    "volume": ("", "persistent volume claim, mounted at /data"),
    "namespace": ("default", "namespace of Kubernetes"),
    "max_restarts": (100, "how often all pods start again"),
    "grace": (120, "seconds to save in, after SIGTERM"),
}


def main(argv: list[str]) -> int:
    options, command = commands.parse(__doc__, "jobset", argv, SETTINGS)
    commands.need("kubectl", "https://kubernetes.io/docs/tasks/tools", dry_run=options.dry_run)
    # JSON is YAML: kubectl takes it, and nothing has to be quoted by hand.
    text = json.dumps(jobset(options, command), indent=2) + "\n"
    return commands.run(
        ["kubectl", "apply", f"--namespace={options.namespace}", "-f", "-"],
        dry_run=options.dry_run,
        text=text,
    )


def jobset(options, command: list[str]) -> dict:
    """The JobSet, as Kubernetes reads it."""
    # Process 0's pod by its name; JobSet's headless service carries the JobSet's own.
    address = f"{options.name}-hosts-0-0.{options.name}:{_PORT}"
    environment = {"QWEN_JAX_LAUNCHER": "jobset"}
    if not options.chips:  # on TPUs GKE leaves word of the hosts itself
        environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(options.hosts)}
    resources = (
        {"google.com/tpu": options.chips}
        if options.chips
        else ({"nvidia.com/gpu": options.gpus} if options.gpus else {})
    )
    labels = {"cloud.google.com/gke-tpu-topology": options.topology} if options.topology else {}
    if options.accelerator:
        kind = "gke-tpu-accelerator" if options.chips else "gke-accelerator"
        labels[f"cloud.google.com/{kind}"] = options.accelerator
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    volumes = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]  # NCCL's buffers
    if options.volume:
        mounts.append({"name": "data", "mountPath": "/data"})
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": options.volume}})
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": options.grace,
        "nodeSelector": labels,
        "containers": [
            {
                "name": "run",
                "image": options.image,
                "command": ["python", *command],
                "env": [{"name": name, "value": value} for name, value in environment.items()],
                "ports": [{"containerPort": _PORT}],
                "resources": {"limits": resources},
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    refused = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1]}}
    job = {
        "completionMode": "Indexed",
        "parallelism": options.hosts,
        "completions": options.hosts,
        "backoffLimit": 0,  # one dead pod ends the job, and the JobSet starts all again
        "podFailurePolicy": {"rules": [refused]},
        "template": {"spec": pod},
    }
    failed = {
        "name": "refused",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": options.name},
        "spec": {
            "network": {"enableDNSHostnames": True},
            "failurePolicy": {"maxRestarts": options.max_restarts, "rules": [failed]},
            "replicatedJobs": [{"name": "hosts", "replicas": 1, "template": {"spec": job}}],
        },
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
