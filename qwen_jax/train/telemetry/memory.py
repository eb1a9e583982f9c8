"""Computes the memory that a step needs on each device, before the first step runs."""

import dataclasses
import math
import os

import jax

from qwen_jax.errors import TrainingError
from qwen_jax.types import Device
from qwen_jax.utils.format import format_gib


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    parameters: int
    optimizer: int
    frozen: int  # weights that are not trained
    workspace: int  # gradients, activations kept by the remat policy, scratch
    capacity: int | None  # None: the device does not report it

    @property
    def total(self) -> int:
        return self.parameters + self.optimizer + self.frozen + self.workspace

    def __str__(self) -> str:
        text = (
            f"{format_gib(self.total)} per device: parameters {format_gib(self.parameters)}, "
            f"optimizer {format_gib(self.optimizer)}, "
            + (f"frozen weights {format_gib(self.frozen)}, " if self.frozen else "")
            + f"gradients and activations {format_gib(self.workspace)}"
        )
        return text + (f"; {format_gib(self.capacity)} available" if self.capacity else "")


def bytes_per_device(tree) -> int:
    """Returns the bytes of one device's shards, for arrays or ShapeDtypeStructs."""

    def size(leaf) -> int:
        sharding = getattr(leaf, "sharding", None)
        shape = sharding.shard_shape(leaf.shape) if sharding is not None else leaf.shape
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(size(leaf) for leaf in jax.tree.leaves(tree))


def capacity(device: Device, *, override_gib: float | None = None) -> int | None:
    """Returns the bytes that a device may use, or None if unknown.

    This is the limit that the device reports. CPU devices share the host's memory equally.
    """
    if override_gib is not None:
        return int(override_gib * 2**30)
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    if device.platform == "cpu":
        return _host_memory() // len(jax.local_devices())
    return None


def _host_memory() -> int:
    """Returns the bytes available to this process: the lower of the kernel's value and what the
    container's limit leaves."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if os.path.exists("/proc/meminfo"):  # Linux also reports the available memory
        with open("/proc/meminfo", encoding="ascii") as file:
            available = next(
                int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:")
            )
    for limit, used in (("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),):
        try:
            with open(limit, encoding="ascii") as file:
                cap = file.read().strip()
            if cap != "max":
                with open(used, encoding="ascii") as file:
                    available = min(available, int(cap) - int(file.read()))
        except OSError:
            pass
    return available


def check_state(state, *, available: int | None, frozen=None) -> None:
    """Checks that a state can fit, before anything is compiled or allocated.

    A step needs at least the parameters, the optimizer state and one gradient per parameter.

    Args:
      frozen: weights outside the state that are not trained; None if there are none.

    Raises:
      TrainingError: the state, the gradients and the frozen weights do not fit.
    """
    need = bytes_per_device((state, frozen)) + bytes_per_device(state.params)
    if available is not None and need > available:
        raise _too_large(
            f"weights, optimizer state and gradients take at least {format_gib(need)}", available
        )


def measure(
    compiled, state, *, platform: str, available: int | None, frozen=None, others=None, between=()
) -> Memory:
    """Returns the memory of a compiled train step, and raises if it does not fit.

    Args:
      compiled: the ahead-of-time compiled step. Its buffer assignment is exact; the extra fifth
        added on CPUs is an estimate.
      state: the abstract or real TrainState.
      platform: platform of the devices that the step was compiled for.
      frozen: weights in the step's batch; None if there are none.
      others: weights that the step does not use, such as a reward model's; None if there are none.
      between: compiled programs that run between two steps; their workspace counts if it exceeds
        the step's.

    Raises:
      TrainingError: the step does not fit.
    """
    analysis = compiled.memory_analysis()
    parameters = bytes_per_device(state.params)
    workspace = (
        analysis.temp_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.argument_size_in_bytes
        - bytes_per_device((state, frozen))
    )
    for other in (program.memory_analysis() for program in between):
        workspace = max(workspace, other.temp_size_in_bytes + other.output_size_in_bytes)
    if platform == "cpu":
        # The kernel is still reclaiming the workspace of one step when the next one starts. Two
        # measurements found a fifth of it still in use (benchmarks/results).
        workspace += workspace // 5
    memory = Memory(
        parameters=parameters,
        optimizer=bytes_per_device(state) - parameters,
        frozen=bytes_per_device((frozen, others)),
        workspace=workspace,
        capacity=available,
    )
    if available is not None and memory.total > available:
        raise _too_large(f"the compiled step takes {memory}", available)
    return memory


def _too_large(what: str, available: int) -> TrainingError:
    return TrainingError(
        f"{what}; a device has {format_gib(available)}.",
        "memory per device",
        "use more devices (--mesh.fsdp, --mesh.tensor), more --train.micro_batches, "
        "--model.remat=block, --optimizer.moment_dtype=bfloat16, adapters (--lora.rank, not in "
        "pretraining), or a smaller model (in pretraining --recipe or --model: --recipe=smoke fits "
        "any computer); --train.device_memory_gib overrides the memory found.",
    )
