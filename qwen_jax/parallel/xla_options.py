"""XLA compiler options for the training step on each platform, to save memory and overlap work.

CPU. xla_cpu_experimental_onednn_custom_call is not set. By default it has no effect, because
YNNPACK takes the matmuls first. With YNNPACK disabled (xla_cpu_experimental_ynn_fusion_type set to
empty), oneDNN computes 115 matmuls of the 8M-parameter step. The relative error of the loss is then
4e-4, and that of a gradient 47 % (FP32, jax 0.11.2 and 0.12.0.1), although each matmul in isolation
is correct.

TPU. By default, XLA converts a matmul with a sharded weight to a loop (a windowed einsum), which
fetches the next shard while it multiplies the current one. Under FSDP, the contracted axis is
sharded, so each of 32 thin matmuls reads and writes the full result. By the compiler's cost model,
this takes twice as long as gathering the weight (benchmarks/results/plan.md), so it is disabled. A
gather or reduction in one instruction blocks the chip. These therefore run on the sparse cores
(v5p, v6e), concurrently with matmuls. v5e has no sparse cores: by default, gathers overlap with its
matmuls, and reductions block. libtpu 0.0.52 rejects the usual option,
xla_tpu_enable_async_collective_fusion, as unsafe on all chips but v5e.

GPU. No options are set, because none have been tried on a GPU.

Other compiler versions may not support an option. It is then dropped with a warning, which costs
time or memory but does not change results.
"""

import re
from typing import Any

import jax
from absl import logging

_UNKNOWN = re.compile(r"No such compile option: '([^']+)'")


def compile_for(platform: str, lowered: Any, more: dict[str, int | str] | None = None) -> Any:
    """Returns `lowered.compile()` with the options for `platform`.

    Args:
      more: user options, which are never dropped.
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
                "this compiler does not support the option %s=%s (see parallel/xla_options.py); "
                "compiling without it: steps may take more time or memory. jax 0.10.2 to 0.12 and "
                "their libtpu support it.",
                unknown[1],
                options.pop(unknown[1]),
            )


def compiler_options(platform: str) -> dict[str, int | str]:
    """Returns the compiler options for `platform` ("cpu", "gpu" or "tpu")."""
    if platform == "cpu":
        return {
            # The default scheduler runs independent operations concurrently. This takes a third
            # more workspace and is no faster, because each large operation uses all cores
            # (benchmarks/results).
            "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
            "xla_cpu_prefer_vector_width": 512,  # split in two on CPUs with shorter vectors
        }
    if platform == "tpu":
        return {
            # Disable windowed einsums.
            "xla_tpu_enable_windowed_einsum_for_all_gather": "false",
            "xla_tpu_enable_windowed_einsum_for_reduce_scatter": "false",
            # Run collectives on the sparse cores.
            "xla_tpu_enable_sparse_core_collective_offload_all_gather": "true",
            "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "true",
            "xla_tpu_enable_sparse_core_collective_offload_all_reduce": "true",
        }
    return {}
