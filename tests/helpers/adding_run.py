"""A run with a step that sums its batches, for tests of runs: it compiles in a moment."""

import contextlib
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from experiments.pretrain import SMOKE
from qwen_jax.checkpoint.checkpointer import Checkpointer
from qwen_jax.config import MeshConfig, TrainConfig
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.train.job import Job, Program
from qwen_jax.train.run import run
from qwen_jax.train.state import for_checkpoint
from qwen_jax.train.step import unless_halted
from qwen_jax.types import TrainState


@jax.jit
def adding_step(state, batch):
    """The loss is the batch's mean; the weights are the sum of all batches."""
    loss = jnp.mean(batch)
    new = state.replace(step=state.step + 1, params={"w": state.params["w"] + batch})
    state = unless_halted(jnp.isfinite(loss), new, state)
    return state, {"train/loss": loss, "train/grad_norm": loss, "train/weight": jnp.float32(1)}


class Adding:
    """A run in `folder` over `values`, one batch each."""

    def __init__(self, folder, values, **settings):
        self.folder, self.values, self.read = folder, values, []
        settings = {"num_steps": 40, "batch_size": 1, "save_every": 10, "log_every": 1} | settings
        self.config = dataclasses.replace(SMOKE, run_dir=str(folder), train=TrainConfig(**settings))
        mesh = make_mesh(MeshConfig(), devices=jax.devices()[:2])
        replicated = NamedSharding(mesh, PartitionSpec())
        sharded = NamedSharding(mesh, PartitionSpec("fsdp"))
        self.batch = jax.ShapeDtypeStruct((4,), jnp.float32, sharding=sharded)
        step, flag = (
            jax.ShapeDtypeStruct((), dtype, sharding=replicated) for dtype in (jnp.int32, jnp.bool_)
        )
        self.state = TrainState(step, {"w": self.batch}, (), flag)
        self.job = Job(
            training_stage="pretrain",
            parameters="params",
            mesh=mesh,
            program=Program(self.state, self.start, adding_step, self.batch),
            batches=self.batches,
        )

    def start(self):
        return jax.tree.map(
            lambda leaf: jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), leaf.sharding),
            self.state,
        )

    @contextlib.contextmanager
    def batches(self, start_step):
        def next_batch(step, state):
            self.read.append(step)
            return jax.device_put(np.full(4, self.values[step], np.float32), self.batch.sharding)

        yield next_batch

    def run(self):
        self.shown = []
        return run(self.config, self.job, log=self.shown.append)

    def events(self):
        lines = (self.folder / "events.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def names(self):
        return [event["event"] for event in self.events()]

    def newest(self):
        return Checkpointer(self.folder / "checkpoints").restore(for_checkpoint(self.state))


def noise(steps=80):
    return list(2.0 + 0.05 * ((np.arange(steps) * 7) % 5 - 2))
