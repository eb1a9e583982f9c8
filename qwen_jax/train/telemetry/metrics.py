"""Metrics of a run: FLOPs and MFU, metrics.jsonl, TensorBoard, W&B, the progress line."""

import functools
import math
import os
import pathlib
import time

import jax
import jax.numpy as jnp

from qwen_jax.config import ModelConfig
from qwen_jax.errors import DataError
from qwen_jax.model import spec
from qwen_jax.train.run_folder import TrainingStage
from qwen_jax.train.telemetry.phases import PHASES
from qwen_jax.train.telemetry.tensorboard import EventFiles
from qwen_jax.train.telemetry.wandb_run import WandbRun
from qwen_jax.types import Device
from qwen_jax.utils.best_effort import Losses, RecordFile
from qwen_jax.utils.format import format_seconds
from qwen_jax.utils.jsonl import as_line, read_rows, write_rows

# Substring of jax.Device.device_kind -> dense BF16 FLOP/s, from the vendors' data sheets. JAX
# counts a v4 or v5p chip as one device and a v7 chip as two.
PEAK_FLOPS = {
    "H100": 989.4e12,
    "H200": 989.4e12,
    "A100": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 1153.5e12,
}


def flops_per_token(config: ModelConfig, *, adapters: int | None = None) -> tuple[float, float]:
    """Returns model FLOPs per token, forward and backward, by the two common formulas.

    The first, 6 N + 6 L T N_heads H, counts causal attention once (Megatron-Bridge, current
    MaxText; perf/mfu). The second, 6 N + 12 L T N_heads H, counts the full square (PaLM, OLMo;
    perf/mfu_noncausal). N is the number of parameters in matmuls: with the output projection,
    without the embedding. In a layer with a sliding window, T counts the keys that a query sees, so
    that full windows give the same.

    Args:
      adapters: number of trained parameters on top of frozen weights. Weight gradients of frozen
        weights are not computed: 4 N + 6 adapters instead of 6 N. None: all weights are trained.
    """
    N = spec.count(config)
    if not config.tie_embeddings:
        N -= config.vocab_size * config.hidden_size
    square = sum(_span(config, layer) for layer in range(config.num_layers))
    square *= config.num_heads * config.head_dim
    matmuls = 6.0 * N if adapters is None else 4.0 * N + 6.0 * adapters
    return matmuls + 6.0 * square, matmuls + 12.0 * square


def _span(config: ModelConfig, layer: int) -> float:
    """Returns twice the mean number of keys that a query of a layer sees; T for full attention."""
    T = config.context_length
    window = min(config.variant.window(layer) or T, T)
    return window * (2 * T - window) / T


_PEAK_SECONDS = 0.3  # long enough for a moment in which nothing else uses the CPU


@functools.cache  # a second measurement would give another value
def peak_flops(device: Device) -> tuple[float, str]:
    """Returns the peak FLOP/s of a device and its source; measures unknown devices, in 0.3 s
    on a CPU. Where other programs use the CPU too, the result is too low."""
    kind = device.device_kind
    for name, peak in PEAK_FLOPS.items():
        if name in kind:
            return peak, f"{kind}, {peak / 1e12:.0f} TFLOP/s"
    size = 1024
    x = jnp.ones((size, size), jnp.float32)
    matmul = jax.jit(jnp.matmul)
    matmul(x, x).block_until_ready()
    best, began = math.inf, time.perf_counter()
    while time.perf_counter() - began < _PEAK_SECONDS:
        start = time.perf_counter()
        matmul(x, x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    peak = 2.0 * size**3 / best
    return peak, f"{kind}, float32 matmul measured at {peak / 1e9:.0f} GFLOP/s"


class MetricsLog:
    """Writes metrics.jsonl and TensorBoard events to a run folder, and to W&B if a project is set.

    Only process 0 uses it.

    What cannot be written is counted in `losses`, and the run goes on.

    Attributes:
      evaluated: the steps whose evaluation is in metrics.jsonl.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        resume_step: int | None,
        losses: Losses,
        wandb_project: str | None = None,
    ):
        """Deletes the records that an interrupted run wrote after `resume_step`."""
        self._path = folder / "metrics.jsonl"
        self.evaluated: set[int] = set()
        try:
            self._keep_until(resume_step or 0)
        except (OSError, DataError) as error:
            losses.warn(f"{self._path} may keep records after step {resume_step}: {error}")
        self._file = RecordFile(self._path, losses)
        self._boards: list[EventFiles | WandbRun] = [
            EventFiles(folder / "tensorboard", losses, purge_step=resume_step)
        ]
        if wandb_project is not None:
            self._boards.append(WandbRun(folder, losses, project=wandb_project))

    def _keep_until(self, step: int) -> None:
        if not self._path.exists():
            return
        records = [row for _, row in read_rows(self._path, bad=[])]
        kept = [record for record in records if not _is_later(record, step)]
        self.evaluated = {
            record["step"]
            for record in kept
            if "step" in record and any(map(_is_evaluation, record))
        }
        if len(kept) < len(records) or not _ends_with_newline(self._path):
            write_rows(self._path, kept)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes one record: step, time (seconds since the epoch) and the values."""
        record = {"step": step, "time": round(time.time(), 3), **values}
        if self._file.append(as_line(record)) and any(map(_is_evaluation, values)):
            self.evaluated.add(step)
        for board in self._boards:
            board.write(step, values)

    def close(self) -> None:
        self._file.close()
        for board in self._boards:
            board.close()


def _is_later(record: dict, step: int) -> bool:
    return isinstance(record.get("step"), int) and record["step"] > step


def _ends_with_newline(path: pathlib.Path) -> bool:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        return file.read() in (b"", b"\n")


def _is_evaluation(name: str) -> bool:
    return name.startswith("eval/")


class NoLog:
    """The metrics log of processes that do not write."""

    evaluated = frozenset()

    def write(self, step: int, values: dict[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


def format_line(
    training_stage: TrainingStage,
    step: int,
    num_steps: int,
    values: dict[str, float],
    eta_seconds: float,
) -> str:
    """Returns the progress line of a step."""
    parts = [
        f"step {step}/{num_steps}",
        f"loss {values['train/loss']:.4f}",
        f"grad {values['train/grad_norm']:.2f}",
        f"lr {values['train/learning_rate']:.2e}",
    ]
    if training_stage in ("ppo", "grpo"):
        parts += [f"{name} {values[f'rollout/{name}']:.3f}" for name in ("reward", "kl", "length")]
    if "perf/tokens_per_second" in values:
        parts += [
            f"{values['perf/tokens_per_second']:,.0f} tok/s",
            _shown_mfu(values["perf/mfu"], values["perf/mfu_noncausal"]),
        ]
    if "perf/data_wait_seconds" in values:
        parts.append(f"wait {values['perf/data_wait_seconds'] * 1e3:.1f} ms")
    if "perf/generation_seconds" in values:
        split = ", ".join(f"{name} {values[f'perf/{name}_seconds']:.2f}" for name in PHASES)
        parts.append(f"step {values['perf/step_seconds']:.2f} s ({split})")
    if "perf/step_seconds" in values:
        parts += [f"goodput {values['perf/goodput']:.0%}", f"ETA {format_seconds(eta_seconds)}"]
    return "  ".join(parts)


def _shown_mfu(mfu: float, noncausal: float) -> str:
    if mfu > 1:  # only a peak that was measured while the CPU was busy
        return "MFU above 100% (the peak was measured too low)"
    return f"MFU {mfu:.1%} (noncausal {noncausal:.1%})"
