"""What XLA is told about a training step, by platform: memory, and what runs beside what.

CPU. Not told: xla_cpu_experimental_onednn_custom_call. By itself it changes nothing, as YNNPACK
takes the products first; with YNNPACK's off (xla_cpu_experimental_ynn_fusion_type= empty), 115
products of the 8M-parameter step go to oneDNN, the loss is off by 4e-4 of itself and a gradient by
47 % (FP32, jax 0.11.2 and 0.12.0.1), though each product by itself is right.
A wrong gradient at any speed is no gain.

TPU. Collectives are left to XLA, which by default turns the product with a weight that lies in
pieces into a loop: the next piece arrives while the last one is multiplied. Under FSDP the pieces
are of the axis that is summed over, so that each of 32 thin products reads and writes the whole
result: by the compiler's own cost model twice the time of gathering the weight
(benchmarks/results/plan.md). A gather or a sum that is one instruction makes the chip wait, so
these go to the sparse cores (v5p, v6e), which run them beside products. v5e has no such cores: by
default its products carry gathers on in the background, and sums are waited for. What others set
for that, xla_tpu_enable_async_collective_fusion, libtpu 0.0.52 refuses on all but v5e, as unsafe.

GPU. Nothing yet: no setting was tried on one.

Other versions of a compiler may not know one of these. It is then left out, with a warning: it
costs time or memory, never a result.
"""

import re
from typing import Any

import jax
from absl import logging

_UNKNOWN = re.compile(r"No such compile option: '([^']+)'")


def compile_for(platform: str, lowered: Any, more: dict[str, int | str] | None = None) -> Any:
    """`lowered.compile()` with the options of `platform`.

    Args:
      more: a person's own, which are not left out.
    """
    options, more = compiler_options(platform), more or {}
    while True:
        try:
            return lowered.compile(compiler_options=options | more)
        except jax.errors.JaxRuntimeError as error:
            unknown = _UNKNOWN.search(str(error))
            if unknown is None or unknown[1] not in options:
                raise
            logging.warning(
                "this compiler does not know %s=%s (parallel/xla_options.py says what for): "
                "compiled without it; steps may take longer or more memory. jax 0.10.2 to 0.12 "
                "and their libtpu know it.",
                unknown[1],
                options.pop(unknown[1]),
            )


def compiler_options(platform: str) -> dict[str, int | str]:
    """For .compile(compiler_options=...), on devices of `platform` ("cpu", "gpu", "tpu")."""
    if platform == "cpu":
        return {
            # The default runs independent operations side by side: a third more workspace, and no
            # time won, as each of the large ones fills all cores (benchmarks/results).
            "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
            "xla_cpu_prefer_vector_width": 512,  # halves vectors where the CPU has shorter ones
        }
    if platform == "tpu":
        return {  # no loops of thin products
            "xla_tpu_enable_windowed_einsum_for_all_gather": "false",
            "xla_tpu_enable_windowed_einsum_for_reduce_scatter": "false",
            # Collectives on the sparse cores.
            "xla_tpu_enable_sparse_core_collective_offload_all_gather": "true",
            "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "true",
            "xla_tpu_enable_sparse_core_collective_offload_all_reduce": "true",
        }
    return {}
