"""Runs on a host of a TPU pod: starts a run detached from ssh, reports about it and stops it.

    python3 host.py start|poll|stop|setup JSON

Each action prints lines that start with QWEN_JAX_HOST, followed by JSON. The files are in
~/.qwen_jax_run: attempt.json (which attempt, its pid), log, and exit-ID.json (exit code, time of
the end). Every action may be repeated after a lost connection: nothing is started twice.

It imports the standard library only, and works with the Python of the images (3.10).
"""

import contextlib
import fcntl
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

REPLY = "QWEN_JAX_HOST "
FOLDER = pathlib.Path.home() / ".qwen_jax_run"
_ATTEMPT, _LOG, _SETUP = FOLDER / "attempt.json", FOLDER / "log", FOLDER / "setup.json"
_FINAL = FOLDER / "final.json"  # the attempt that --stop has ended
_LINE = 500  # bytes of the log in a line: a short one is written at once, whatever others write
_LOG_BYTES = 1 << 16  # of the log in one reply; the next one continues
_KILLED = 137


def main(argv: list[str]) -> int:
    action, given = argv[0], json.loads(argv[1])
    FOLDER.mkdir(exist_ok=True)
    if action == "supervise":
        return supervise(given)
    with open(FOLDER / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return {"start": start, "poll": poll, "stop": stop, "setup": setup}[action](given)


def start(given: dict) -> int:
    """Starts an attempt, unless it has been started before or another one is running.

    Args:
      given: id and number of the attempt, command, its digest, folder, env.
    """
    found = _status()
    if found["state"] != "running" and found.get("id") != given["id"]:
        _kill_rest(found)
        with open(_LOG, "ab") as log:
            child = subprocess.Popen(
                [sys.executable, os.path.abspath(__file__), "supervise", json.dumps(given)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # survives the connection
            )
        record = {
            "id": given["id"],
            "number": given["number"],
            "digest": given["digest"],
            "shown": " ".join(given["command"])[:300],
            "pid": child.pid,
            "started": _started(child.pid),
        }
        _write(_ATTEMPT, record)
        found = _status()
    _reply(found)
    return 0


def supervise(given: dict) -> int:
    """Runs the command, and records its exit code. It is the leader of the process group."""
    # A handler and not SIG_IGN, which the command would inherit: the signal is for the command.
    signal.signal(signal.SIGTERM, lambda *_: None)
    child = subprocess.Popen(
        given["command"],
        cwd=os.path.expanduser(given["folder"]),
        env={**os.environ, **given["env"]},
        stdin=subprocess.DEVNULL,
    )
    while True:
        with contextlib.suppress(InterruptedError):
            code = child.wait()
            break
    _write(_exit_file(given["id"]), {"code": code, "time": time.time()})
    return 0


def poll(given: dict) -> int:
    """Reports the state of the last attempt, and the log after an offset.

    Args:
      given: offsets by host; without one, the log's last lines are sent.
    """
    found = _status()
    size = _LOG.stat().st_size if _LOG.exists() else 0
    offset = given["offsets"].get(_name(), max(0, size - 2000))
    end = min(size, offset + _LOG_BYTES)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(open(_LOG, "rb")) if size else None
        while log is not None and offset < end:
            log.seek(offset)
            data = log.read(min(_LINE, end - offset))
            # Split after a line, or anywhere in one that is longer.
            data = data[: data.rfind(b"\n") + 1] or data
            text = data.decode("utf-8", "replace")
            _reply({"offset": offset, "next": offset + len(data), "log": text})
            offset += len(data)
    _reply(found | {"offset": offset})
    return 0


def stop(given: dict) -> int:
    """Ends the last attempt: SIGTERM, and SIGKILL after some seconds. Returns when it is gone.

    Args:
      given: grace, in seconds; final, if no launcher may restart the run.
    """
    found = _status()
    if given["final"] and "id" in found:
        _write(_FINAL, found["id"])  # first, as another launcher may be watching
    if found["state"] == "running":
        for number, seconds in ((signal.SIGTERM, given["grace"]), (signal.SIGKILL, 60)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(found["pid"], number)
            deadline = time.monotonic() + seconds
            while _status()["state"] == "running" and time.monotonic() < deadline:
                time.sleep(0.05)
        found = _status()
    _kill_rest(found)
    if found["state"] == "lost":
        _write(_exit_file(found["id"]), {"code": _KILLED, "time": time.time()})
        found = _status()
    _reply(found)
    return 0 if found["state"] != "running" else 1


def setup(given: dict) -> int:
    """Runs a shell command once after each boot of the host, such as one that mounts a bucket."""
    wanted = {"command": given["command"], "boot": _boot()}
    code = 0
    if _read(_SETUP) != wanted:
        code = subprocess.run(["bash", "-c", given["command"]], check=False).returncode
        if code == 0:
            _write(_SETUP, wanted)
    _reply({"state": "setup", "code": code})
    return code


def _status() -> dict:
    """Returns the last attempt with its state: none, running, exited or lost (no exit code)."""
    found = _read(_ATTEMPT)
    if found is None:
        return {"state": "none"}
    found["final"] = _read(_FINAL) == found["id"]
    ended = _read(_exit_file(found["id"]))
    if ended is not None and _started(found["pid"]) != found["started"]:
        return {**found, "state": "exited", **ended}
    alive = found["started"] is not None and _started(found["pid"]) == found["started"]
    return {**found, "state": "running" if alive else "lost"}


def _kill_rest(found: dict) -> None:
    """Kills what an attempt whose leader is gone has left running."""
    if found["state"] in ("lost", "exited"):
        for path in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, IndexError):
                session = (path / "stat").read_text().rpartition(")")[2].split()[3]
                # The number alone may by now be that of another session.
                if session == str(found["pid"]) and (
                    b"QWEN_JAX_LAUNCHER=tpu_pod" in (path / "environ").read_bytes()
                ):
                    os.kill(int(path.name), signal.SIGKILL)


def _started(pid: int):
    """Returns what tells a process from a later one with its number; None if it has ended."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else f"{_boot()} {fields[19]}"


def _boot() -> str:
    return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _name() -> str:
    return os.environ.get("HOSTNAME") or socket.gethostname()


def _exit_file(attempt: str) -> pathlib.Path:
    return FOLDER / f"exit-{attempt}.json"


def _read(path: pathlib.Path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _write(path: pathlib.Path, value) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(value))
    temporary.replace(path)


def _reply(value: dict) -> None:
    os.write(1, (REPLY + json.dumps({"host": _name(), **value}) + "\n").encode())


if __name__ == "__main__" and sys.argv[1:]:  # not a program that people type
    sys.exit(main(sys.argv[1:]))
