"""XLA compiler options of a training step by platform: memory and overlap.

CPU. Not set: xla_cpu_experimental_onednn_custom_call. Alone it has no effect, as YNNPACK takes the
matmuls first. With YNNPACK off (xla_cpu_experimental_ynn_fusion_type= empty), 115 matmuls of the
8M-parameter step go to oneDNN; then the relative error of the loss is 4e-4 and of a gradient 47 %
(FP32, jax 0.11.2 and 0.12.0.1), although each matmul in isolation is right.

TPU. By default XLA turns the matmul with a sharded weight into a loop (a windowed einsum): the next
shard arrives while the last one is multiplied. Under FSDP the shards are of the contracted axis, so
each of 32 thin matmuls reads and writes the full result: by the compiler's cost model this takes
twice as long as gathering the weight (benchmarks/results/plan.md). It is off. A gather or reduction
as one instruction blocks the chip, so these go to the sparse cores (v5p, v6e), which run
concurrently with matmuls. v5e has no sparse cores: by default gathers overlap with its matmuls, and
reductions block. The usual option, xla_tpu_enable_async_collective_fusion, is refused as unsafe by
libtpu 0.0.52 on all but v5e.

GPU. Nothing is set: no option has been tried on one.

A compiler of another version may not know an option. It is then dropped with a warning: that costs
time or memory, but does not change results.
"""

import re
from typing import Any

import jax
from absl import logging

_UNKNOWN = re.compile(r"No such compile option: '([^']+)'")


def compile_for(platform: str, lowered: Any, more: dict[str, int | str] | None = None) -> Any:
    """Returns `lowered.compile()` with the options of `platform`.

    Args:
      more: options of the user, which are never dropped.
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
                "this compiler does not know the option %s=%s (see parallel/xla_options.py) and "
                "compiles without it: steps may take more time or memory. jax 0.10.2 to 0.12 and "
                "their libtpu know it.",
                unknown[1],
                options.pop(unknown[1]),
            )


def compiler_options(platform: str) -> dict[str, int | str]:
    """Returns options for .compile(compiler_options=...) on `platform` ("cpu", "gpu", "tpu")."""
    if platform == "cpu":
        return {
            # The default scheduler runs independent operations concurrently: a third more workspace
            # for no speedup, as each large operation uses all cores (benchmarks/results).
            "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
            "xla_cpu_prefer_vector_width": 512,  # split in two on CPUs with shorter vectors
        }
    if platform == "tpu":
        return {  # no windowed einsums
            "xla_tpu_enable_windowed_einsum_for_all_gather": "false",
            "xla_tpu_enable_windowed_einsum_for_reduce_scatter": "false",
            # Run collectives on the sparse cores.
            "xla_tpu_enable_sparse_core_collective_offload_all_gather": "true",
            "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "true",
            "xla_tpu_enable_sparse_core_collective_offload_all_reduce": "true",
        }
    return {}
