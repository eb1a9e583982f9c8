"""The target device of a computation, which may not be a device of this machine."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.core

from qwen_jax.types import Device

_interpret: contextvars.ContextVar[Any] = contextvars.ContextVar("interpret", default=None)


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of device."""

    platform: str  # "cpu", "gpu" or "tpu"
    kind: str  # device.device_kind: "TPU v5", "NVIDIA H200", "cpu"

    @classmethod
    def of(cls, device: Device) -> "Target":
        return cls(_platform(device.platform), device.device_kind)

    def __str__(self) -> str:
        return self.platform if self.kind == self.platform else f"{self.kind} ({self.platform})"


def target_of(x: jax.Array | None = None) -> Target:
    """Returns the target device of a computation on `x`.

    It is, in this order: the device of a concrete array; the mesh of a traced array (a program
    lowered for the topology of a TPU pod targets a TPU, even on a machine without one); the current
    mesh (jax.sharding.use_abstract_mesh, set_mesh); JAX's default device.
    """
    if x is not None and not isinstance(x, jax.core.Tracer) and isinstance(x, jax.Array):
        return Target.of(next(iter(x.sharding.device_set)))
    meshes: list[Any] = [jax.sharding.get_abstract_mesh()]
    if isinstance(x, jax.core.Tracer):
        sharding = getattr(jax.typeof(x), "sharding", None)
        meshes.insert(0, getattr(sharding, "mesh", None))
    for mesh in meshes:
        device = getattr(mesh, "abstract_device", None)
        if device is not None:
            # In jax 0.10 the device has no platform, but the kind of every TPU starts with "TPU".
            platform = getattr(device, "platform", None) or _platform_of_kind(device.device_kind)
            return Target(_platform(platform), device.device_kind)
    default = jax.config.jax_default_device
    if isinstance(default, str):
        default = jax.devices(default)[0]
    return Target.of(default or jax.devices()[0])


def _platform(name: str) -> str:
    return "gpu" if name in ("cuda", "rocm") else name


def _platform_of_kind(kind: str) -> str:
    if kind.startswith("TPU"):
        return "tpu"
    return "cpu" if kind == "cpu" else "gpu"


@contextlib.contextmanager
def interpret_kernels(mode: Any = True) -> Iterator[None]:
    """Interprets the Pallas kernels selected with `implementation=`, slowly, on any device.

    This is for tests and for debugging on a CPU. Functions traced inside the context stay
    interpreted: a jitted function keeps the mode of its first trace.

    Args:
      mode: True (fast), or pltpu.InterpretParams / plgpu.InterpretGPUParams, which simulate the
        memory spaces and can detect races.
    """
    token = _interpret.set(mode)
    try:
        yield
    finally:
        _interpret.reset(token)


def interpret_mode() -> Any:
    """Returns the mode of the innermost `interpret_kernels`; None outside of one."""
    return _interpret.get()
