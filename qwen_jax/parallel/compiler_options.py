"""What XLA is told about a training step, by platform."""


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
