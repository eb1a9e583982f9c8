"""The JobSet: against its own schema, that of Kubernetes, and what a restart needs."""

import gzip
import json
import re

import pytest

from launch import jobset
from qwen_jax import exit_codes

COMMAND = ["-m", "experiments.pretrain", "--recipe=7b", "--run_dir=$(HOME)/$$/$a b"]
GPU = ["--name=r", "--image=i", "--hosts=4"]
TPU = ["--name=r", "--image=i", "--hosts=4", "--chips=4", "--topology=2x2x4"]
V5P = [*TPU, "--accelerator=tpu-v5p-slice"]
ALL = [
    "--volume=v",
    "--bucket=b",
    "--bucket=c",
    "--service_account=s",
    "--env=A=b=$c",
    "--annotation=k=v=w",
    "--toleration=t",
    "--toleration=a=b:NoSchedule",
    "--queue=q",
    "--priority_class=p",
    "--spot",
]
MANIFESTS = {
    "gpu": GPU,
    "gpu, all": [*GPU, *ALL, "--gpudirect=rdma", "--accelerator=nvidia-h200-141gb"],
    "tpu": V5P,
    "tpu, all": [*V5P, *ALL, "--slices=2"],
    "tpu7x": [*TPU, "--accelerator=tpu7x"],
    "cpu": [*GPU, "--gpus=0"],
}


def manifest(capsys, *options: str) -> dict:
    assert jobset.main([*options, "--dry_run", "--", *COMMAND]) == 0
    shown = capsys.readouterr()
    first, rest = shown.out.split("\n", 1)
    assert first.startswith("kubectl apply --namespace=default")
    return json.loads(rest.rpartition("END")[0])


def job_of(found: dict) -> dict:
    return found["spec"]["replicatedJobs"][0]["template"]["spec"]


def pod_of(found: dict) -> dict:
    return job_of(found)["template"]["spec"]


@pytest.fixture(scope="module")
def schema(shared):
    """JobSet's own schema, which also holds that of the pods."""
    pytest.importorskip("jsonschema")
    import yaml

    packed = shared / "reference/jobset_crd.yaml.gz"
    crd = yaml.load(gzip.decompress(packed.read_bytes()), yaml.CSafeLoader)
    (version,) = [each for each in crd["spec"]["versions"] if each["name"] == "v1alpha2"]
    return closed(version["schema"]["openAPIV3Schema"])


@pytest.mark.parametrize("name", MANIFESTS)
def test_jobset_is_valid_by_its_own_schema(capsys, schema, name):
    import jsonschema

    jsonschema.validate(manifest(capsys, *MANIFESTS[name]), schema)


def closed(schema):
    """Returns a schema that refuses unknown fields, as the API server does with strict checks."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(each) for key, each in schema.items()}
    if found.get("x-kubernetes-int-or-string"):
        found.pop("type", None)
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    if isinstance(found.get("properties"), dict) and "additionalProperties" not in found:
        found["additionalProperties"] = False
    return found


@pytest.mark.parametrize("name", MANIFESTS)
def test_jobset_has_pods_that_kubernetes_accepts(capsys, name):
    """`make test-launch` installs kubernetes-validate."""
    validate = pytest.importorskip("kubernetes_validate")
    pod = job_of(manifest(capsys, *MANIFESTS[name]))["template"]
    found = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "r"}} | {"spec": pod["spec"]}
    validate.validate(found, "1.30", strict=True)


@pytest.mark.parametrize("options", [GPU, V5P])
def test_jobset_starts_and_restarts_all_hosts_together(capsys, options):
    spec = manifest(capsys, *options)["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (4, 4, "Indexed")
    assert spec["failurePolicy"]["rules"][0]["action"] == "FailJobSet"
    assert spec["failurePolicy"]["restartStrategy"] == "BlockingRecreate"
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [
        row.code for row in exit_codes.TABLE if row.code and not row.restart
    ]


def test_jobset_on_gpus_has_the_addresses_and_the_driver(capsys):
    (container,) = pod_of(manifest(capsys, *GPU))["containers"]
    names = {item["name"]: item["value"] for item in container["env"]}
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert names["JAX_COORDINATOR_ADDRESS"] == "r-hosts-0-0.r:8476"
    assert names["JAX_NUM_PROCESSES"] == "4"
    assert names["LD_LIBRARY_PATH"] == "/usr/local/nvidia/lib64"


def test_jobset_gives_every_slice_a_node_pool(capsys):
    found = manifest(capsys, *V5P, "--slices=2")
    key = "alpha.jobset.sigs.k8s.io/exclusive-topology"
    assert found["metadata"]["annotations"] == {key: "cloud.google.com/gke-nodepool"}
    assert found["spec"]["replicatedJobs"][0]["replicas"] == 2
    (container,) = pod_of(found)["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert "JAX_COORDINATOR_ADDRESS" not in str(container["env"])


def test_jobset_splits_a_tpu7x_host(capsys):
    containers = pod_of(manifest(capsys, *MANIFESTS["tpu7x"]))["containers"]
    assert [each["name"] for each in containers] == ["run-1", "run-2"]
    assert {each["resources"]["limits"]["google.com/tpu"] for each in containers} == {2}


def test_jobset_passes_everything_that_is_set(capsys):
    found = manifest(capsys, *GPU, *ALL, "--gpudirect=rdma", "--max_restarts=3")
    job, pod = job_of(found), pod_of(found)
    assert found["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "q"}
    annotations = job["template"]["metadata"]["annotations"]
    assert annotations["k"] == "v=w" and annotations["gke-gcsfuse/volumes"] == "true"
    networks = json.loads(annotations["networking.gke.io/interfaces"])
    assert [each["network"] for each in networks][-1] == "rdma-7"
    assert {"key": "t", "operator": "Exists"} in pod["tolerations"]
    chosen = {"key": "a", "operator": "Equal", "value": "b", "effect": "NoSchedule"}
    assert chosen in pod["tolerations"]
    assert (pod["serviceAccountName"], pod["priorityClassName"]) == ("s", "p")
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    mounts = {each["mountPath"] for each in pod["containers"][0]["volumeMounts"]}
    assert {"/data", "/b", "/c", "/dev/shm", "/usr/local/gib"} <= mounts
    assert {"name": "A", "value": "b=$$c"} in pod["containers"][0]["env"]
    script = pod["containers"][0]["command"]
    assert script[:2] == ["bash", "-c"] and "&& exec python -m experiments.pretrain" in script[2]
    assert found["spec"]["failurePolicy"]["maxRestarts"] == 3


def test_jobset_says_what_spot_leaves_of_the_grace_period(capsys):
    assert jobset.main([*GPU, "--spot", "--dry_run", "--", *COMMAND]) == 0
    shown = capsys.readouterr()
    assert "ends a pod 15 s after SIGTERM: --grace=120 is not reached" in shown.err
    assert '"terminationGracePeriodSeconds": 15' in shown.out


def test_jobset_keeps_dollar_signs_of_a_command(capsys):
    """Kubernetes replaces $(NAME) in a command, and reduces $$ to $."""
    (container,) = pod_of(manifest(capsys, *GPU))["containers"]
    assert container["command"] == ["python", *COMMAND[:-1], "--run_dir=$$(HOME)/$$$$/$$a b"]


@pytest.mark.parametrize(
    "options, what",
    [
        ([*GPU, "--slices=2"], "--slices=2 is for TPUs"),
        ([*V5P, "--gpudirect=rdma"], "--gpudirect is for GPUs"),
        ([*GPU, "--gpudirect=tcpx"], "only rdma"),
        ([*V5P, "--hosts=3"], "--topology=2x2x4 has 16 chips, but --hosts x --chips = 12"),
        ([*GPU, "--chips=4", "--accelerator=x"], "--topology is missing"),
        (TPU, "--accelerator is missing"),
        ([*GPU, "--topology=2x"], "not of the form"),
        ([*GPU, "--annotation=a"], "--annotation=a is not KEY=VALUE"),
        ([*GPU, "--toleration=a:Sometimes"], "--toleration=a:Sometimes is not KEY"),
        ([*GPU, "--name=Run_1"], "--name='Run_1'"),
    ],
)
def test_problems_names_what_kubernetes_refuses(options, what):
    with pytest.raises(SystemExit, match=re.escape(what)):
        jobset.main([*options, "--dry_run", "--", *COMMAND])
