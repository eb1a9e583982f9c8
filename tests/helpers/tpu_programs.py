"""Small workloads to compile for TPUs that are not here, and the mark of tests that do."""

import dataclasses
import importlib.util

import pytest

from experiments import plan
from qwen_jax import sizes
from qwen_jax.config import MeshConfig
from qwen_jax.plan.stages import Workload

libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiling for a TPU needs libtpu: make test-compile",
)


def tiny_workload(stage: str, *, micro_batches: int = 1, tied: bool = False, **mesh) -> Workload:
    workload = plan.workload_of(plan.Config(model="1.8b", training_stage=stage))
    model = dataclasses.replace(
        sizes.TINY,
        hidden_size=256,
        num_heads=2,
        ffn_size=512,
        vocab_size=1024,
        context_length=1024,
        compute_dtype="bfloat16",
        remat="dots",
        tie_embeddings=tied,
    )
    return dataclasses.replace(
        workload,
        model=model,
        mesh=MeshConfig(**mesh),
        train=dataclasses.replace(workload.train, batch_size=8, micro_batches=micro_batches),
    )
