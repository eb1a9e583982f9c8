"""Peak memory of the loss and its gradient at the report's vocabulary, plain and chunked.

4 x 4096 tokens in BF16, a vocabulary of 151,936: compiled for the CPU of this machine and, ahead of
time, for a TPU that need not be here (where libtpu is installed). Plain is logits in float32 and
optax's cross-entropy, differentiated. The compiler's own plan of the buffers is read; --run also
computes the chunked one on this machine's CPU and reads what the process held at most.

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
    """One loss."""

    rows: int = option(4, "of the batch")
    length: int = option(4096, "tokens of a row")
    vocab_size: int = option(151936, "logits of a token")
    hidden_size: int = option(4096, "2048: the 1.8B model's; 4096: the 7B's")
    topology: str = option("v5p:2x2x1", "of the TPU to compile for; one device of it")
    run: bool = option(False, "also compute the chunked loss on this CPU")


def main(config: Config) -> None:
    """Prints the table."""
    tokens = config.rows * config.length
    print(
        f"jax {jax.__version__}; {config.rows} x {config.length} tokens, V {config.vocab_size}, "
        f"D {config.hidden_size}; all float32 logits are "
        f"{4 * tokens * config.vocab_size / 1e9:.2f} GB, the projection's gradient "
        f"{4 * config.hidden_size * config.vocab_size / 1e9:.2f} GB"
    )
    devices = {"this CPU": jax.devices("cpu")[0]}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=config.topology)
        devices[f"TPU {config.topology.split(':')[0]}"] = found.devices[0]
    except Exception as reason:  # noqa: BLE001  (libtpu raises many kinds; without it we say so)
        print(f"not for a TPU: {str(reason).splitlines()[0]}")
    for name, device in devices.items():
        for form, function in (("plain", plain), ("chunked", cross_entropy)):
            print(f"{name:12} {form:8} {measured(function, config, device)}", flush=True)
    if config.run:
        run(config)


def plain(x_BTD, head_DV, targets_BT, weights_BT):
    """What is written first: all logits, and automatic differentiation."""
    logits = jnp.einsum(
        "BTD,DV->BTV", x_BTD, head_DV.astype(x_BTD.dtype), preferred_element_type=jnp.float32
    )
    total = jnp.sum(
        weights_BT * optax.softmax_cross_entropy_with_integer_labels(logits, targets_BT)
    )
    return total, total


def gradient(function):
    """(sums, (gradient of x, of the projection)), jitted."""
    return jax.jit(
        jax.value_and_grad(lambda *arguments: function(*arguments), (0, 1), has_aux=True)
    )


def shapes(config: Config, place=None) -> list[jax.ShapeDtypeStruct]:
    struct = functools.partial(jax.ShapeDtypeStruct, sharding=place)
    tokens = (config.rows, config.length)
    return [
        struct((*tokens, config.hidden_size), jnp.bfloat16),
        struct((config.hidden_size, config.vocab_size), jnp.float32),
        struct(tokens, jnp.int32),
        struct(tokens, jnp.float32),
    ]


def measured(function, config: Config, device) -> str:
    """What the compiler plans on that device, beside the arguments."""
    mesh = jax.sharding.Mesh(np.asarray([device]), ("x",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    started = time.perf_counter()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = gradient(function).lower(*shapes(config, place))
    plan = compile_for(device.platform, lowered).memory_analysis()
    return (
        f"{plan.temp_size_in_bytes / 1e9:6.2f} GB workspace, "
        f"{plan.output_size_in_bytes / 1e9:5.2f} GB results, "
        f"{plan.argument_size_in_bytes / 1e9:5.2f} GB arguments "
        f"(compiled in {time.perf_counter() - started:.0f} s)"
    )


def run(config: Config) -> None:
    """The chunked loss, computed here once."""
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
        f"{float(loss) / targets.size:.3f}, the process held {from_status('VmHWM') / 1e9:.2f} GB"
    )


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
