"""Peak memory of the loss and its gradient at the report's vocabulary, plain and chunked.

The input has 4 x 4096 tokens in BF16 and a vocabulary of 151,936. The loss is compiled for the CPU
of this machine and, if libtpu is installed, ahead of time for a TPU, which need not be present.
"plain" differentiates optax's cross-entropy of float32 logits. The memory comes from the compiler's
buffer assignment. --run also computes the chunked loss on this CPU and reports the peak memory of
the process.

    python -m benchmarks.train.loss_memory
    python -m benchmarks.train.loss_memory --hidden_size=2048 --run
"""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies

from benchmarks.train.train_step import from_status
from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.model.lm_loss import cross_entropy
from qwen_jax.parallel.xla_options import compile_for


@dataclasses.dataclass(frozen=True)
class Config:
    """Shapes of the loss, and the targets to compile for."""

    batch_size: int = option(4, "sequences per batch", alias="rows")
    length: int = option(4096, "tokens per sequence")
    vocab_size: int = option(151936, "vocabulary size in tokens")
    hidden_size: int = option(4096, "hidden size; 2048 as in the 1.8B model, 4096 as in the 7B")
    topology: str = option("v5p:2x2x1", "TPU topology to compile for; uses one of its devices")
    run: bool = option(False, "also compute the chunked loss on this CPU")


def main(config: Config) -> None:
    """Prints the table."""
    tokens = config.batch_size * config.length
    print(
        f"jax {jax.__version__}; {config.batch_size} x {config.length} tokens, "
        f"V {config.vocab_size}, D {config.hidden_size}; all float32 logits are "
        f"{4 * tokens * config.vocab_size / 1e9:.2f} GB, the projection's gradient "
        f"{4 * config.hidden_size * config.vocab_size / 1e9:.2f} GB"
    )
    devices = {"this CPU": jax.devices("cpu")[0]}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=config.topology)
        devices[f"TPU {config.topology.split(':')[0]}"] = found.devices[0]
    except Exception as reason:  # noqa: BLE001  (libtpu raises many types of errors)
        print(f"no TPU results: {str(reason).splitlines()[0]}")
    for name, device in devices.items():
        for form, function in (("plain", plain), ("chunked", cross_entropy)):
            print(f"{name:12} {form:8} {measured(function, config, device)}", flush=True)
    if config.run:
        run(config)


def plain(x_BTD, head_DV, targets_BT, weights_BT):
    """The straightforward loss: full logits and automatic differentiation."""
    logits = jnp.einsum(
        "BTD,DV->BTV", x_BTD, head_DV.astype(x_BTD.dtype), preferred_element_type=jnp.float32
    )
    total = jnp.sum(
        weights_BT * optax.softmax_cross_entropy_with_integer_labels(logits, targets_BT)
    )
    return total, total


def gradient(function):
    """Returns a jitted function that returns sums and gradients (of x, of the projection)."""
    return jax.jit(
        jax.value_and_grad(lambda *arguments: function(*arguments), (0, 1), has_aux=True)
    )


def shapes(config: Config, sharding=None) -> list[jax.ShapeDtypeStruct]:
    struct = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
    tokens = (config.batch_size, config.length)
    return [
        struct((*tokens, config.hidden_size), jnp.bfloat16),
        struct((config.hidden_size, config.vocab_size), jnp.float32),
        struct(tokens, jnp.int32),
        struct(tokens, jnp.float32),
    ]


def measured(function, config: Config, device) -> str:
    """Returns the memory of the loss compiled for a device, as text."""
    mesh = jax.sharding.Mesh(np.asarray([device]), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    started = time.perf_counter()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = gradient(function).lower(*shapes(config, sharding))
    analysis = compile_for(device.platform, lowered).memory_analysis()
    return (
        f"{analysis.temp_size_in_bytes / 1e9:6.2f} GB workspace, "
        f"{analysis.output_size_in_bytes / 1e9:5.2f} GB results, "
        f"{analysis.argument_size_in_bytes / 1e9:5.2f} GB arguments "
        f"(compiled in {time.perf_counter() - started:.0f} s)"
    )


def run(config: Config) -> None:
    """Computes the chunked loss once on this CPU; prints time, loss and peak memory."""
    keys = iter(jax.random.split(jax.random.key(0), 3))
    x, head, targets, weights = shapes(config)
    x = jax.random.normal(next(keys), x.shape, jnp.float32).astype(x.dtype)
    head = 0.02 * jax.random.normal(next(keys), head.shape, jnp.float32)
    targets = jax.random.randint(next(keys), targets.shape, 0, config.vocab_size, jnp.int32)
    started = time.perf_counter()
    (loss, _), _ = jax.block_until_ready(
        gradient(cross_entropy)(x, head, targets, jnp.ones(weights.shape))
    )
    print(
        f"this CPU     chunked  computed in {time.perf_counter() - started:.0f} s, mean loss "
        f"{float(loss) / targets.size:.3f}, process peak {from_status('VmHWM') / 1e9:.2f} GB"
    )


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
