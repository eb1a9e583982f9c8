"""The wall time of a run and its breakdown, over several attempts: both add up to the same."""

import re

import pytest

from qwen_jax.report.records import Curves
from qwen_jax.report.sections import event_table, tiles, time_table
from qwen_jax.report.times import attempts, breakdown, wall_seconds


def record(step: int, time: float, **seconds: float) -> dict:
    """A logged step; seconds of this attempt by kind."""
    return {"step": step, "time": time} | {f"time/{k}": v for k, v in seconds.items()}


def event(time: float, name: str, **details) -> dict:
    return {"time": time, "event": name, **details}


START = [event(1004.0, "start", step=0)]  # the attempt began at 1000, and compiled
FIRST = [
    record(1, 1010.0, train=4.0, compile=4.0, other=2.0),
    record(5, 1050.0, train=40.0, compile=4.0, other=6.0),
]


def shown(records, events) -> tuple[str, str]:
    """Returns the wall time of the tile, and the text of the table."""
    found = attempts(records, events)
    tile = re.search(r"wall time</span><b>(.*?)</b>", tiles(Curves(records), found, None))
    return tile[1] if tile else "", re.sub(r"<[^>]+>", " ", time_table(found))


def check(records, events, *, wall: float, **kinds: float) -> None:
    found = attempts(records, events)
    total = breakdown(found)
    assert total == pytest.approx(kinds)
    assert wall_seconds(found) == pytest.approx(wall)
    assert sum(total.values()) - total.get("down", 0.0) == pytest.approx(wall)
    assert sum(total.values()) == pytest.approx(found[-1].end - found[0].start)


def test_one_attempt():
    check(FIRST, START, wall=50, train=40, compile=4, other=6)


def test_events_have_the_clock_of_the_wall_time():
    """The start is logged after compilation, 4 s after the attempt began; the run took 50 s."""
    events = [*START, event(1050.0, "end", step=5)]
    shown = re.sub(r"<[^>]+>", " ", event_table(events, attempts(FIRST, events)))
    assert re.findall(r"\+(\w+) +(\w+)", shown) == [("4s", "start"), ("50s", "end")]


def test_evaluation_after_the_last_step_is_part_of_its_attempt():
    """The stop was logged 60 s after the last step's record, a resume an hour later."""
    events = [*START, event(1110.0, "stop", step=5), event(4714.0, "resume", step=5)]
    records = [*FIRST, {"step": 5, "time": 1100.0, "eval/docs/loss": 2.0}]
    later = record(9, 4750.0, train=30.0, restore=10.0)
    check(
        [*records, later],
        events,
        wall=110 + 40,
        train=70,
        compile=4,
        restore=10,
        other=6 + 60,
        down=4710 - 1110,
    )
    tile, table = shown([*records, later], events)
    assert tile == "2m30s" and "2 attempts took 2m30s" in table
    assert "1h00m passed between them" in table and "between attempts" in table
    assert "Goodput 1.9 %" in table  # 70 of 3750 s


def test_evaluation_of_the_restored_step_does_not_hide_the_time_of_the_earlier_attempt():
    """It has the step of the earlier attempt's last record."""
    events = [*START, event(1050.0, "stop", step=5), event(2004.0, "resume", step=5)]
    evaluated = {"step": 5, "time": 2020.0, "eval/docs/loss": 2.0}
    records = [*FIRST, evaluated, record(6, 2030.0, train=10.0, evaluate=16.0, restore=4.0)]
    check(
        records,
        events,
        wall=50 + 30,
        train=50,
        evaluate=16,
        restore=4,
        compile=4,
        other=6,
        down=950,
    )


def test_steps_that_a_kill_has_lost_are_part_of_its_attempt():
    """Steps 6 to 9 ran until 1090; the next attempt deleted their records."""
    events = [
        *START,
        event(1052.0, "saved", step=5),
        event(1900.0, "killed", last_event="saved", last_seen=1090.0),
        event(1900.0, "restart", attempt=1, reason="process 0 was killed by SIGKILL"),
        event(1904.0, "resume", step=5),
    ]
    records = [*FIRST, record(9, 1960.0, train=50.0, restore=10.0)]
    check(
        records,
        events,
        wall=90 + 60,
        train=90,
        compile=4,
        restore=10,
        other=6,
        lost=40,
        down=1900 - 1090,
    )
    assert "steps after the last checkpoint" in shown(records, events)[1]


def test_attempt_that_was_killed_before_its_first_record_is_no_downtime():
    events = [
        *START,
        event(1050.0, "stop", step=5),
        event(1104.0, "resume", step=5),
        event(1200.0, "killed", last_event="resume", last_seen=1124.0),
        event(1204.0, "resume", step=5),
    ]
    records = [*FIRST, record(6, 1220.0, train=16.0, restore=4.0)]
    check(
        records,
        events,
        wall=50 + 20 + 20,
        train=56,
        compile=4,
        restore=4,
        other=6,
        lost=20,
        down=54 + 76,
    )


def test_attempt_that_failed_before_it_resumed_is_downtime():
    events = [
        *START,
        event(1050.0, "stop", step=5),
        event(1100.0, "error", kind="CheckpointError", what="unreadable"),
        event(1204.0, "resume", step=5),
    ]
    records = [*FIRST, record(6, 1220.0, train=16.0, restore=4.0)]
    check(records, events, wall=50 + 20, train=56, compile=4, restore=4, other=6, down=150)


def test_records_of_earlier_versions_have_a_wall_time_and_no_breakdown():
    records = [{"step": step, "time": 1010.0 + 10 * step} for step in (1, 2, 3)]
    events = [*START, event(1031.0, "stop"), event(1038.0, "resume")]
    assert shown(records, events) == ("29s", "")  # 1004 to 1031, and 1038 to 1040


def test_records_without_events_have_a_wall_time():
    assert shown(FIRST, [])[0] == "50s"
    assert attempts([], []) == [] and wall_seconds([]) is None
