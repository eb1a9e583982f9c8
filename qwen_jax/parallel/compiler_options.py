"""What XLA is told about a training step, by platform.

Not told: xla_cpu_experimental_onednn_custom_call. By itself it changes nothing, as YNNPACK takes the
products first; with YNNPACK's off (xla_cpu_experimental_ynn_fusion_type= empty), 115 products of the
8M-parameter step go to oneDNN, the loss is off by 4e-4 of itself and a gradient by 47 % (FP32, jax
0.11.2 and 0.12.0.1), though each product by itself is right. A wrong gradient at any speed is no gain.
"""


def compiler_options(platform: str) -> dict[str, int | str]:
    """For .compile(compiler_options=...), on devices of `platform` ("cpu", "gpu", "tpu")."""
    if platform == "cpu":
        return {
            # The default runs independent operations side by side: a third more workspace, and no
            # time won, as each of the large ones fills all cores (benchmarks/results).
            "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
            "xla_cpu_prefer_vector_width": 512,  # halves vectors where the CPU has shorter ones
        }
    return {}
