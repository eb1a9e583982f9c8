"""Converts the loop's StepReports to log lines, metrics and events."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import optax

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
from qwen_jax.train.telemetry.phases import PHASES, PhaseTimer

# Phase of a step -> kind of time in goodput.py.
_KIND_OF = {"data": "wait", "generation": "sample", "scoring": "sample", "update": "train"}


class Reporter:
    """Receives every StepReport; detects loss spikes, silent data corruption and slow hosts.

    Every log_every steps, it logs a line and writes a metrics record.

    Raises:
      LossSpike: the loss spiked and train.on_spike=skip.
      SilentCorruption: two computations of a step differ.
    """

    def __init__(
        self,
        folder: Path,
        model: ModelConfig,
        train: TrainConfig,
        *,
        training_stage: TrainingStage,
        phases: PhaseTimer | None = None,
        schedule: optax.Schedule,
        total_peak_flops: float,
        adapters: int | None = None,
        resume_step: int | None,
        events: Events,
        goodput: Goodput,
        log: Callable[[str], None],
    ):
        """
        Args:
          phases: times the phases of a step; None: a step consists of a wait for data and an
            update.
          schedule: step -> learning rate.
          total_peak_flops: peak FLOP/s of all devices, the denominator of MFU.
          adapters: number of trained parameters on top of frozen weights; None: all are trained.
          log: receives each line; called only in process 0.
        """
        self._events, self._train, self._log = events, train, log
        self._stage: TrainingStage = training_stage
        self.goodput, self.spikes = goodput, SpikeWatch()
        self._hosts = HostTimes()
        # Computed in advance: a CPU that is running a step would compute it only after the step.
        self._rates = np.asarray(schedule(np.arange(train.num_steps)))
        self._writes = jax.process_index() == 0
        self.metrics = NoLog()
        if self._writes:
            self.metrics = MetricsLog(
                folder,
                resume_step=resume_step,
                losses=events.losses,
                wandb_project=train.wandb_project,
            )
        self._tokens_per_step = train.batch_size * model.context_length
        causal, noncausal = flops_per_token(model, adapters=adapters)
        self._mfu, self._mfu_noncausal = causal / total_peak_flops, noncausal / total_peak_flops
        self._timer = phases
        self._seconds: list[float] = []  # of the steps since the last record
        self._phases: list[dict[str, float]] = []
        self._started = time.perf_counter()
        self._first = True

    def __call__(self, report: StepReport) -> None:
        self._add_times(report)
        sdc_check.check(report.step, report.metrics)
        spike = self.spikes.see(report.metrics["train/loss"])
        if spike is not None:
            self._events.log("spike", step=report.step, message=spike)
            self.log(f"step {report.step}: {spike}")
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
        if self._timer is None:
            values["train/tokens"] = report.step * self._tokens_per_step
        eta = math.inf
        if self._seconds:
            values |= self._speeds()
            eta = (self._train.num_steps - report.step) * values["perf/step_seconds"]
        values |= self.goodput.record()
        times = self._hosts.exchange()
        values |= {f"host/{process}/host_seconds": seconds for process, seconds in times.items()}
        if slow := self._hosts.slow(times):
            self._events.log("slow_host", step=report.step, message=slow)
            self.log(f"step {report.step}: {slow}")
        self.metrics.write(report.step, values)
        line = format_line(self._stage, report.step, self._train.num_steps, values, eta)
        if self._first:
            line += f"  (first loss after {time.perf_counter() - self._started:.1f} s)"
        self._first = False
        self.log(line)

    def _add_times(self, report: StepReport) -> None:
        """Adds the times of a step. The first one is excluded: it also fills the data pipeline."""
        if self._timer is not None:
            phases = self._timer.take("update")
        else:
            wait = report.data_wait_seconds
            phases = {"data": wait, "update": max((report.seconds or 0.0) - wait, 0.0)}
        if report.seconds is None:
            return
        # Phases belong to this step; the loop's seconds include the dispatch of the next one.
        self._seconds.append(report.seconds if self._timer is None else sum(phases.values()))
        self._phases.append(phases)
        self._hosts.add(report.seconds, report.device_wait_seconds)
        for phase, seconds in phases.items():
            self.goodput.add(_KIND_OF[phase], seconds)

    def _speeds(self) -> dict[str, float]:
        """Returns the mean times and rates of the steps since the last record."""
        steps = len(self._seconds)
        seconds = sum(self._seconds) / steps
        phases = {name: sum(of.get(name, 0.0) for of in self._phases) / steps for name in PHASES}
        self._seconds.clear()
        self._phases.clear()
        values = {"perf/step_seconds": seconds}
        if self._timer is not None:
            return values | {f"perf/{name}_seconds": mean for name, mean in phases.items()}
        rate = self._tokens_per_step / seconds
        return values | {
            "perf/data_wait_seconds": phases["data"],
            "perf/tokens_per_second": rate,
            "perf/mfu": rate * self._mfu,
            "perf/mfu_noncausal": rate * self._mfu_noncausal,
        }

    def log(self, line: str) -> None:
        """Logs a line in process 0."""
        if self._writes:
            self._log(line)
