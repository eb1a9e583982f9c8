"""The phases of a step, with a device and a host whose clock is a number."""

import dataclasses

import jax.numpy as jnp
import pytest

from qwen_jax.train.loop import Hook, fit
from qwen_jax.train.telemetry.phases import PhaseTimer
from qwen_jax.types import TrainState


@dataclasses.dataclass
class Output:
    """What the device works on until `ready`; reading it waits."""

    machine: "Machine"
    ready: float

    def __float__(self) -> float:
        self.machine.now = max(self.machine.now, self.ready)
        return 1.0


class Machine:
    """A host with a clock, and a device that does one thing after another."""

    def __init__(self):
        self.now = self.free = 0.0

    def dispatch(self, seconds: float) -> Output:
        self.free = max(self.now, self.free) + seconds
        return Output(self, self.free)


def split(*, data=0.0, reward=None, saving=0.0, steps=6) -> tuple[list[dict], float]:
    """The phases of every step of THE loop, and the time that they all took.

    Generation takes 5 seconds, scoring 2, an update 3; the host's work is an argument: reading
    pretraining rows, a reward function (None: none), saving after every step.
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
def test_work_of_the_host_that_the_device_does_not_wait_for_is_no_ones(reward, data):
    """With a reward function the host waits for the tokens, without one it runs a step ahead."""
    found, total = split(reward=reward, data=data)
    assert found == [{"generation": 5.0, "scoring": 2.0, "update": 3.0, "data": 0.0}] * 6
    assert total == 60.0


@pytest.mark.parametrize("reward, wait", [(0.0, 4.0), (None, 6.0)])
def test_data_that_the_device_waits_for_are_seen(reward, wait):
    """The host reads for 6 seconds, 2 of them beside scoring; or for longer than a step."""
    found, total = split(reward=reward, data=6.0 if reward is not None else 16.0)
    for phases in found[1:]:
        assert phases == {"generation": 5.0, "scoring": 2.0, "update": 3.0, "data": wait}
    assert sum(sum(phases.values()) for phases in found) == total


def test_a_slow_reward_function_is_scoring():
    found, total = split(reward=4.0, data=1.0)
    assert found == [{"generation": 5.0, "scoring": 4.0, "update": 3.0, "data": 1.0}] * 6
    assert total == 6 * 13.0


@pytest.mark.parametrize("reward", [None, 1.0])
def test_what_hooks_take_is_no_phase(reward):
    found, total = split(reward=reward, saving=7.0)
    assert found == [{"generation": 5.0, "scoring": 2.0, "update": 3.0, "data": 0.0}] * 6
    assert total == 6 * 17.0


def test_a_real_array_is_waited_for_and_nothing_is_timed_outside():
    timer = PhaseTimer()
    timer.host("data")
    timer.device("update", jnp.ones(3))
    assert timer.take("update") == {}
    with timer.running():
        timer.host("data")
        timer.device("update", jnp.ones(3) + 1)
        found = timer.take("update")
    assert set(found) == {"data", "update"} and min(found.values()) >= 0
