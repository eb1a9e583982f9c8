"""The phases of a step, on a simulated device and host."""

import dataclasses

import jax.numpy as jnp
import pytest

from qwen_jax.train.loop import Hook, fit
from qwen_jax.train.telemetry.phases import PhaseTimer
from qwen_jax.types import TrainState


@dataclasses.dataclass
class Output:
    """An output that the device computes until `ready`; reading it waits."""

    machine: "Machine"
    ready: float

    def __float__(self) -> float:
        self.machine.now = max(self.machine.now, self.ready)
        return 1.0


class Machine:
    """A host with a clock, and a device that runs one program at a time."""

    def __init__(self):
        self.now = self.free = 0.0

    def dispatch(self, seconds: float) -> Output:
        self.free = max(self.now, self.free) + seconds
        return Output(self, self.free)


def split(*, data=0.0, reward=None, saving=0.0, steps=6) -> tuple[list[dict], float]:
    """Runs THE loop; returns the phases of every step, and the total time.

    Generation takes 5 seconds, scoring 2, an update 3. The arguments are the host's work: reading
    pretraining data, a reward function (None: none), saving after every step.
    """
    machine, found = Machine(), []
    timer = PhaseTimer(clock=lambda: machine.now, ready_at=lambda output: output.ready)

    def next_batch(step, state):  # as align/train_ppo.py and align/rollout.py
        timer.host(None)
        timer.host("data")
        new = machine.dispatch(5.0)
        timer.device("generation", new)
        timer.device("scoring", machine.dispatch(2.0))
        if reward is not None:
            float(new)
            machine.now += reward
            timer.host("scoring")
        machine.now += data
        timer.host("data")

    def train_step(state, batch):
        return state, {"train/loss": machine.dispatch(3.0)}

    def save(done, state):
        machine.now += saving

    with timer.running():
        fit(
            TrainState(step=jnp.int32(0), params=(), opt_state=()),
            next_batch,
            timer.timed(train_step),
            start_step=0,
            num_steps=steps,
            report=lambda report: found.append(timer.take("update")),
            hooks=(Hook(1, save),) if saving else (),
        )
    assert len(found) == steps
    return found, machine.now


@pytest.mark.parametrize(
    "reward, data", [(None, 0.0), (None, 3.0), (0.0, 0.0), (0.0, 2.0), (1.0, 0.5), (2.0, 0.0)]
)
def test_phase_timer_ignores_host_work_while_the_device_is_busy(reward, data):
    """With a reward function the host waits for the tokens; without one it runs a step ahead."""
    found, total = split(reward=reward, data=data)
    assert found == [{"generation": 5.0, "scoring": 2.0, "update": 3.0, "data": 0.0}] * 6
    assert total == 60.0


@pytest.mark.parametrize("reward, wait", [(0.0, 4.0), (None, 6.0)])
def test_phase_timer_counts_data_the_device_waits_for(reward, wait):
    """The host reads for 6 seconds, 2 of them during scoring; or for longer than a step."""
    found, total = split(reward=reward, data=6.0 if reward is not None else 16.0)
    for phases in found[1:]:
        assert phases == {"generation": 5.0, "scoring": 2.0, "update": 3.0, "data": wait}
    assert sum(sum(phases.values()) for phases in found) == total


def test_phase_timer_counts_a_slow_reward_function_as_scoring():
    found, total = split(reward=4.0, data=1.0)
    assert found == [{"generation": 5.0, "scoring": 4.0, "update": 3.0, "data": 1.0}] * 6
    assert total == 6 * 13.0


@pytest.mark.parametrize("reward", [None, 1.0])
def test_phase_timer_excludes_hooks(reward):
    found, total = split(reward=reward, saving=7.0)
    assert found == [{"generation": 5.0, "scoring": 2.0, "update": 3.0, "data": 0.0}] * 6
    assert total == 6 * 17.0


def test_phase_timer_waits_for_arrays_and_times_only_while_running():
    timer = PhaseTimer()
    timer.host("data")
    timer.device("update", jnp.ones(3))
    assert timer.take("update") == {}
    with timer.running():
        timer.host("data")
        timer.device("update", jnp.ones(3) + 1)
        found = timer.take("update")
    assert set(found) == {"data", "update"} and min(found.values()) >= 0
