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

GPU. What NVIDIA's JAX-Toolbox (docs/GPU_performance.md) and MaxText set for training. Their gain is
not measured on this hardware yet; a test checks that the installed compiler accepts them.
- Latency-hiding scheduler: the default order of operations leaves collectives next to their use, so
  nothing runs while they do.
- Pipelined collectives: in the loop over layers, gathers move to the iteration before, and sums of
  gradients to the one after. Double buffering unrolls the loop by two, without which a pipelined
  buffer would be copied.
- Combine thresholds: collectives of one layer are merged up to this size. A layer has seven
  matrices and some vectors; with the default (30 MiB), those of a large model stay apart, and each
  of them waits for the network's latency.
- Triton matmuls are off: cuBLAS is at least as fast in bfloat16 at the sizes of training, and
  autotuning of Triton's variants takes minutes, on every host by itself.
- Memory: JAX takes 75 % of a GPU by default. NCCL, cuDNN and the driver need less than the rest.

Other compiler versions may not support an option. It is then dropped with a warning, which costs
time or memory but does not change results.
"""

import os
import re
from collections.abc import MutableMapping
from typing import Any

import jax
from absl import logging

_UNKNOWN = re.compile(r"No such compile option: '([^']+)'")


# Options that were switches in earlier compilers (jax 0.10).
_FORMER = {
    "xla_gpu_pipeline_all_gather": "xla_gpu_enable_pipelined_all_gather",
    "xla_gpu_pipeline_all_reduce": "xla_gpu_enable_pipelined_all_reduce",
    "xla_gpu_pipeline_reduce_scatter": "xla_gpu_enable_pipelined_reduce_scatter",
}
_GPU_MEMORY = "XLA_PYTHON_CLIENT_MEM_FRACTION"
_COMBINED_BYTES = 30 << 20  # XLA's default
Options = dict[str, int | str]


def compile_for(
    platform: str, lowered: Any, more: Options | None = None, *, layer_bytes: int = 0
) -> Any:
    """Returns `lowered.compile()` with the options for `platform`.

    Args:
      more: user options, which are never dropped.
      layer_bytes: size of the weights of one layer, in the dtype of the computation.
    """
    options, more = compiler_options(platform, layer_bytes), more or {}
    while True:
        try:
            return lowered.compile(compiler_options=options | more)
        except jax.errors.JaxRuntimeError as error:
            unknown = _UNKNOWN.search(str(error))
            if unknown is None or unknown[1] not in options:
                raise
            if former := _FORMER.get(unknown[1]):
                del options[unknown[1]]
                options[former] = True
                continue
            logging.warning(
                "this compiler does not support the option %s=%s (see parallel/xla_options.py); "
                "compiling without it: steps may take more time or memory. jax 0.10.2 to 0.12 and "
                "their libtpu support it.",
                unknown[1],
                options.pop(unknown[1]),
            )


def reserve_gpu_memory(environ: MutableMapping[str, str] = os.environ) -> None:
    """Lets JAX take 90 % of a GPU's memory, unless the user has set how much.

    Call it before any device is used. It has no effect on other platforms.
    """
    if not any(environ.get(name) for name in (_GPU_MEMORY, "XLA_PYTHON_CLIENT_PREALLOCATE")):
        environ[_GPU_MEMORY] = "0.9"


def compiler_options(platform: str, layer_bytes: int = 0) -> Options:
    """Returns the compiler options for `platform` ("cpu", "gpu" or "tpu").

    Args:
      layer_bytes: as in compile_for.
    """
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
    if platform == "gpu":
        combined = max(_COMBINED_BYTES, layer_bytes)
        return {
            "xla_gpu_enable_latency_hiding_scheduler": True,
            "xla_gpu_pipeline_all_gather": "COLLECTIVE_PIPELINING_MODE_ON",
            "xla_gpu_pipeline_all_reduce": "COLLECTIVE_PIPELINING_MODE_ON",
            "xla_gpu_pipeline_reduce_scatter": "COLLECTIVE_PIPELINING_MODE_ON",
            "xla_gpu_enable_while_loop_double_buffering": True,
            "xla_gpu_all_gather_combine_threshold_bytes": combined,
            "xla_gpu_all_reduce_combine_threshold_bytes": combined,
            "xla_gpu_reduce_scatter_combine_threshold_bytes": combined,
            "xla_gpu_enable_triton_gemm": False,
        }
    return {}
