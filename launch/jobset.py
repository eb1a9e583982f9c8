"""Starts a run on Kubernetes with JobSet: on GPUs, or on TPUs without XPK.

    python -m launch.jobset --name=run --image=REGISTRY/qwen_jax:gpu --hosts=4 --gpus=8 \\
        --volume=training-data --dry_run -- pretrain --recipe=7b \\
        --run_dir=/data/runs/7b --data.sources=/data/mine/train

There is one pod per host. All pods start and restart together (failurePolicy). An error that a
restart would repeat (qwen_jax/exit_codes.py) fails the job immediately. --volume is a persistent
volume claim that all pods can write to.
"""

import json

from qwen_jax import exit_codes

from . import commands

_PORT = 8476
SETTINGS = {
    "name": (None, "name of the JobSet"),
    "image": (None, "container with this package (launch/Dockerfile.gpu, Dockerfile.tpu)"),
    "hosts": (1, "number of hosts, with one pod each"),
    "gpus": (8, "NVIDIA GPUs per pod; 0 for TPUs"),
    "chips": (0, "TPU chips per pod, instead of GPUs"),
    "topology": ("", "shape of the TPU slice, such as 4x4x4"),
    "accelerator": (
        "",
        "accelerator of the nodes on GKE, such as tpu-v5p-slice or nvidia-h100-80gb",
    ),
    "volume": ("", "persistent volume claim, mounted at /data"),
    "namespace": ("default", "Kubernetes namespace"),
    "max_restarts": (100, "maximum number of restarts"),
    "grace": (120, "seconds to save a checkpoint after SIGTERM"),
}


def main(argv: list[str]) -> int:
    options, command = commands.parse(__doc__, "jobset", argv, SETTINGS)
    commands.need("kubectl", "https://kubernetes.io/docs/tasks/tools", dry_run=options.dry_run)
    # JSON is valid YAML, so kubectl accepts it, and no YAML quoting is needed.
    text = json.dumps(jobset(options, command), indent=2) + "\n"
    return commands.run(
        ["kubectl", "apply", f"--namespace={options.namespace}", "-f", "-"],
        dry_run=options.dry_run,
        text=text,
    )


def jobset(options, command: list[str]) -> dict:
    """Returns the JobSet manifest."""
    # Address of the pod of process 0; the headless service has the name of the JobSet.
    address = f"{options.name}-hosts-0-0.{options.name}:{_PORT}"
    environment = {"QWEN_JAX_LAUNCHER": "jobset"}
    if not options.chips:  # on TPUs, GKE sets the host names
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
    volumes = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]  # for NCCL's buffers
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
                # Kubernetes replaces $(NAME), and reduces $$ to $.
                "command": ["python", *(part.replace("$", "$$") for part in command)],
                "env": [{"name": name, "value": value} for name, value in environment.items()],
                "ports": [{"containerPort": _PORT}],
                "resources": {"limits": resources},
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    codes = list(exit_codes.NOT_RESTARTED)
    refused = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": codes}}
    job = {
        "completionMode": "Indexed",
        "parallelism": options.hosts,
        "completions": options.hosts,
        "backoffLimit": 0,  # a failed pod fails the job, and the JobSet restarts all pods
        "podFailurePolicy": {"rules": [refused]},
        "template": {"spec": pod},
    }
    reasons = ["PodFailurePolicy"]
    failed = {"name": "refused", "action": "FailJobSet", "onJobFailureReasons": reasons}
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
    commands.exit_with(main)
