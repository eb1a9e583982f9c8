"""From what the loop knows of a step to what people and files are told of it."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from qwen_jax.config import ModelConfig, TrainConfig
from qwen_jax.train.loop import StepReport
from qwen_jax.train.resilience import sdc_check
from qwen_jax.train.resilience.spikes import LossSpike, SpikeWatch
from qwen_jax.train.run_folder import TrainingStage
from qwen_jax.train.telemetry.events import Events
from qwen_jax.train.telemetry.goodput import Goodput
from qwen_jax.train.telemetry.host_times import HostTimes
from qwen_jax.train.telemetry.metrics import (
    MetricsLog,
    NoLog,
    flops_per_token,
    format_line,
)


class Reporter:
    """Called with every StepReport: one line and one record every log_every, a watch on spikes, on
    corruption and on slow hosts.

    Raises:
      LossSpike: where train.on_spike says to go back.
      SilentCorruption: a step that was computed twice gave two results.
    """

    def __init__(
        self,
        folder: Path,
        model: ModelConfig,
        train: TrainConfig,
        *,
        training_stage: TrainingStage,
        schedule: Callable[[int], jax.Array],
        total_peak_flops: float,
        adapters: int | None = None,
        resume_step: int | None,
        events: Events,
        goodput: Goodput,
        emit: Callable[[str], None],
    ):
        """
        Args:
          schedule: learning rate by step.
          total_peak_flops: of all devices together, the denominator of MFU.
          adapters: parameters that are trained beside frozen weights; None: the weights are.
          emit: prints a line; called in process 0 alone.
        """
        self._events, self._train, self._emit = events, train, emit
        self._stage: TrainingStage = training_stage
        self.goodput, self.spikes = goodput, SpikeWatch()
        self._hosts = HostTimes()
        # Computed now: beside a running step, a CPU would do it only when the step is done.
        self._rates = np.asarray(schedule(np.arange(train.num_steps)))
        self._writes = jax.process_index() == 0
        self.log = MetricsLog(folder, resume_step=resume_step) if self._writes else NoLog()
        self._tokens_per_step = train.batch_size * model.context_length
        flops_a, flops_b = flops_per_token(model, adapters=adapters)
        self._mfu_a, self._mfu_b = flops_a / total_peak_flops, flops_b / total_peak_flops
        self._seconds: list[float] = []
        self._waits: list[float] = []
        self._started = time.perf_counter()
        self._first = True

    def __call__(self, report: StepReport) -> None:
        samples = self._stage == "ppo"  # then a step has tokens and work of its own
        if report.seconds is not None:
            self._seconds.append(report.seconds)
            self._waits.append(report.data_wait_seconds)
            self._hosts.add(report.seconds, report.device_wait_seconds)
            self.goodput.add("train", max(report.seconds - report.data_wait_seconds, 0.0))
            self.goodput.add("sample" if samples else "wait", report.data_wait_seconds)
        sdc_check.check(report.step, report.metrics)
        spike = self.spikes.see(report.metrics["train/loss"])
        if spike is not None:
            self._events.tell("spike", step=report.step, message=spike)
            self.emit(f"step {report.step}: {spike}")
            if self._train.on_spike == "skip":
                raise LossSpike(report.step, spike)
        bad = not all(map(math.isfinite, report.metrics.values()))
        if not (
            self._first
            or bad
            or report.step % self._train.log_every == 0
            or report.step == self._train.num_steps
        ):
            return
        values = dict(report.metrics)
        values["train/learning_rate"] = float(self._rates[report.step - 1])
        if not samples:
            values["train/tokens"] = report.step * self._tokens_per_step
        eta = math.inf
        if self._seconds:
            mean = sum(self._seconds) / len(self._seconds)
            rate = self._tokens_per_step / mean
            waited = "perf/sample_seconds" if samples else "perf/data_wait_seconds"
            values |= {"perf/step_seconds": mean, waited: sum(self._waits) / len(self._waits)}
            if not samples:
                values |= {
                    "perf/tokens_per_second": rate,
                    "perf/mfu_a": rate * self._mfu_a,
                    "perf/mfu_b": rate * self._mfu_b,
                }
            eta = (self._train.num_steps - report.step) * mean
            self._seconds.clear()
            self._waits.clear()
        values |= self.goodput.record()
        times = self._hosts.exchange()
        values |= {f"host/{process}/own_seconds": seconds for process, seconds in times.items()}
        if slow := self._hosts.slow(times):
            self._events.tell("slow_host", step=report.step, message=slow)
            self.emit(f"step {report.step}: {slow}")
        self.log.write(report.step, values)
        line = format_line(self._stage, report.step, self._train.num_steps, values, eta)
        if self._first:
            line += f"  (first loss after {time.perf_counter() - self._started:.1f} s)"
        self._first = False
        self.emit(line)

    def emit(self, line: str) -> None:
        """Shows a line, in process 0."""
        if self._writes:
            self._emit(line)
