"""The pods of a JobSet: containers, volumes, node labels, networks and environment."""

import json
import re
import shlex

PORT = 8476
# Where GKE puts the driver; device plugins of other clusters ignore the variable.
_DRIVER = "/usr/local/nvidia"
_GIB = "/usr/local/gib"  # GKE's NCCL with GPUDirect RDMA
_EFFECTS = ("NoSchedule", "NoExecute", "PreferNoSchedule")


def template(options, command: list[str]) -> dict:
    """Returns the template of the pods: metadata and spec."""
    annotations = dict(pair.split("=", 1) for pair in options.annotation)
    volumes: list[dict] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]  # for NCCL's buffers
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    if options.volume:
        mounts.append({"name": "data", "mountPath": "/data"})
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": options.volume}})
    for number, bucket in enumerate(options.bucket):
        annotations["gke-gcsfuse/volumes"] = "true"
        mounts.append({"name": f"bucket-{number}", "mountPath": f"/{bucket}"})
        attributes = {"bucketName": bucket, "mountOptions": "implicit-dirs"}
        driver = {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}
        volumes.append({"name": f"bucket-{number}", "csi": driver})
    if options.gpudirect:
        annotations |= _rdma_networks()
        for name, path in (("driver", _DRIVER), ("gib", _GIB)):
            mounts.append({"name": name, "mountPath": path})
            folder = "nvidia" if name == "driver" else name
            host = {"path": f"/home/kubernetes/bin/{folder}"}
            volumes.append({"name": name, "hostPath": host})
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": options.grace,
        "nodeSelector": _node_labels(options),
        "tolerations": _tolerations(options),
        "containers": _containers(options, command, mounts),
        "volumes": volumes,
    }
    if options.service_account:
        pod["serviceAccountName"] = options.service_account
    if options.priority_class:
        pod["priorityClassName"] = options.priority_class
    found: dict = {"spec": pod}
    if annotations:
        found["metadata"] = {"annotations": annotations}
    return found


def toleration(text: str) -> dict | None:
    """Returns the toleration of KEY, KEY=VALUE or KEY=VALUE:EFFECT; None if it is none of them."""
    matched = re.fullmatch(r"([^=:\s]+)(?:=([^=:\s]*))?(?::(\w+))?", text)
    if matched is None or matched[3] not in (None, *_EFFECTS):
        return None
    found = {"key": matched[1], "operator": "Exists" if matched[2] is None else "Equal"}
    if matched[2] is not None:
        found["value"] = matched[2]
    return found | ({"effect": matched[3]} if matched[3] else {})


def literal(text: str) -> str:
    """Returns `text` for a command or a variable: Kubernetes replaces $(NAME), and makes $$ a $."""
    return text.replace("$", "$$")


def _containers(options, command: list[str], mounts: list[dict]) -> list[dict]:
    """Returns the containers of a pod: one, or two on TPU7x, one for each half of the VM."""
    words = ["python", *map(literal, command)]
    if options.gpudirect:  # `exec`: Python itself receives SIGTERM
        run = literal(shlex.join(["python", *command]))
        words = ["bash", "-c", f". {_GIB}/scripts/set_nccl_env.sh && exec {run}"]
    environment = {"QWEN_JAX_LAUNCHER": "jobset"} | _addresses(options) | options.env
    count = 2 if options.chips == 4 and options.accelerator == "tpu7x" else 1
    limits = {}
    if options.chips:
        limits = {"google.com/tpu": options.chips // count}
    elif options.gpus:
        limits = {"nvidia.com/gpu": options.gpus}
    return [
        {
            "name": "run" if count == 1 else f"run-{number + 1}",
            "image": options.image,
            "command": words,
            "env": [{"name": name, "value": literal(value)} for name, value in environment.items()],
            "ports": [{"containerPort": PORT}] if number == 0 else [],
            "resources": {"limits": limits},
            "volumeMounts": mounts,
        }
        for number in range(count)
    ]


def _addresses(options) -> dict[str, str]:
    if options.chips:  # GKE sets the addresses of TPU hosts and slices
        return {}
    # Address of the pod of process 0; the headless service has the name of the JobSet.
    found = {
        "JAX_COORDINATOR_ADDRESS": f"{options.name}-hosts-0-0.{options.name}:{PORT}",
        "JAX_NUM_PROCESSES": str(options.hosts),
    }
    return found | ({"LD_LIBRARY_PATH": f"{_DRIVER}/lib64"} if options.gpus else {})


def _node_labels(options) -> dict[str, str]:
    labels = {}
    if options.topology:
        labels["cloud.google.com/gke-tpu-topology"] = options.topology
    if options.accelerator:
        kind = "gke-tpu-accelerator" if options.chips else "gke-accelerator"
        labels[f"cloud.google.com/{kind}"] = options.accelerator
    if options.spot:
        labels["cloud.google.com/gke-spot"] = "true"
    return labels


def _tolerations(options) -> list[dict]:
    resource = "google.com/tpu" if options.chips else "nvidia.com/gpu" if options.gpus else ""
    found = [{"key": resource, "operator": "Exists", "effect": "NoSchedule"}] if resource else []
    if options.spot:
        found.append(toleration("cloud.google.com/gke-spot=true:NoSchedule") or {})
    return found + [each for text in options.toleration if (each := toleration(text))]


def _rdma_networks() -> dict[str, str]:
    """Returns annotations that attach the networks of a GKE node with eight RDMA cards to a pod.

    The names of the networks are those of Google's guide to A3 Ultra and A4 clusters.
    """
    names = ["default", "gvnic-1", *(f"rdma-{number}" for number in range(8))]
    interfaces = [
        {"interfaceName": f"eth{number}", "network": name} for number, name in enumerate(names)
    ]
    return {
        "networking.gke.io/default-interface": "eth0",
        "networking.gke.io/interfaces": json.dumps(interfaces),
    }
