"""A user's three commands: fine-tune a downloaded model, export it, serve it; time and memory.

    python -m benchmarks.released.three_commands --shared=../shared --data=conversations.jsonl

Makes a folder of Qwen3-0.6B in full size, with random weights, and runs each command in a process
of its own, with adapters and with all weights. Prints JSON.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
import urllib.request

from benchmarks.common.timing import machine
from benchmarks.released import folders

SIZE = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 151936,
}
_LORA = ["--lora.rank=16", "--optimizer.peak_learning_rate=2e-4", "--train.num_steps=20"]
_FULL = ["--train.num_steps=3"]
_PORT = 8731


def measured(command: list[str], until: str | None = None, then=None) -> dict:
    """Runs a command; returns its seconds, largest memory in GiB, exit status and output.

    Args:
      until: stop the command with SIGTERM after a line that contains this.
      then: called without arguments before that; its result is kept as "answer".
    """
    started, lines, found = time.perf_counter(), [], {}
    process = subprocess.Popen(
        [sys.executable, "-m", *command], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    memory = threading.Thread(target=_watch, args=(process.pid, found))
    memory.start()
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.rstrip())
        print(line, end="", file=sys.stderr, flush=True)
        if until is not None and until in line:
            found["ready_seconds"] = round(time.perf_counter() - started, 1)
            found["answer"] = then() if then else None
            process.terminate()
    status = process.wait()
    memory.join()
    seconds = round(time.perf_counter() - started, 1)
    return {"command": command, "status": status, "seconds": seconds, **found, "output": lines}


def _watch(pid: int, found: dict) -> None:
    """Keeps the peak of a process's memory, which is gone when it has ended."""
    while True:
        try:
            status = pathlib.Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return
        if peaks := [line for line in status.splitlines() if line.startswith("VmHWM")]:
            found["peak_gib"] = round(int(peaks[0].split()[1]) / 2**20, 2)
        elif "zombie" in status:
            return
        time.sleep(0.5)


def _ask() -> str:
    body = {
        "model": "served",
        "messages": [{"role": "user", "content": "Name a color."}],
        "max_tokens": 8,
        "temperature": 0,
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{_PORT}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=600) as response:
        return json.load(response)["choices"][0]["message"]["content"]


def commands(model: pathlib.Path, output: pathlib.Path, data: str, kind: str):
    """Yields name -> a measured command."""
    run, exported = output / f"run_{kind}", output / f"export_{kind}"
    train = [
        "experiments.sft", f"--init_from={model}", f"--run_dir={run}",
        f"--data.conversations={data}", "--data.context_length=512", "--train.batch_size=2",
        "--model.compute_dtype=float32", "--train.log_every=1", "--train.eval_every=None",
        "--train.save_every=None", "--optimizer.warmup_steps=2",
        *(_LORA if kind == "lora" else _FULL),
    ]  # fmt: skip
    yield "train", measured(train)
    yield "export", measured(["experiments.convert", f"--input={run}", f"--output={exported}"])
    serve = ["experiments.serve", f"--checkpoint={exported}", f"--port={_PORT}"]
    serve += ["--model_name=served", "--context=1024", "--max_num_seqs=2"]
    yield "serve", measured(serve, until=f":{_PORT}", then=_ask)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=pathlib.Path, default=pathlib.Path("../shared"))
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/three_commands"))
    parser.add_argument("--kinds", default="lora,full")
    arguments = parser.parse_args()
    model = arguments.output / "qwen3-0.6b"
    if not model.is_dir():
        ranks = folders.read_ranks(arguments.shared, None)
        folders.write(model, "Qwen3", "tied", arguments.shared, ranks=ranks, changes=SIZE)
    for kind in arguments.kinds.split(","):
        for name, found in commands(model, arguments.output, arguments.data, kind):
            found = {"kind": kind, "step": name, **found}
            with (arguments.output / "three_commands.jsonl").open("a") as file:
                file.write(json.dumps(found) + "\n")
            if found["status"] not in (0, -15):
                sys.exit(f"{name} failed")
    print(json.dumps(machine()))


if __name__ == "__main__":
    main()
