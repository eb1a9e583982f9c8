"""Measures the server's latency for a normal client while another client attacks it.

    python -m benchmarks.serve.attacks [--rounds=3] [--seconds=10] [--attacks=idle,long_prompts]

Starts experiments.serve with a small random model. A normal client sends short requests in a closed
loop; an attacker at another address (127.0.0.2) holds or floods the server. The control burns the
CPU time that the attack took, in the attacker and in the server, without touching the server.
Attack and control alternate, so the load of the machine is the same for both. Writes
benchmarks/results/serve_attacks.md and .json.
"""

import contextlib
import dataclasses
import http.client
import json
import math
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import jax
import numpy as np

from benchmarks.common.timing import machine
from benchmarks.serve.attackers import ATTACKS
from qwen_jax.cli import flags
from qwen_jax.config import ModelConfig, option
from qwen_jax.model.spec import init_params
from qwen_jax.pretrained.huggingface import save_pretrained
from qwen_jax.tokenizer.bpe import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
QUIET = "nothing"
TOKENS = 16  # of a normal completion


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the measurement."""

    rounds: int = option(3, "times that each attack and its control are measured")
    seconds: float = option(10.0, "length of one measurement")
    attacks: str = option(",".join(ATTACKS), "the attacks to measure, separated by commas")
    attacker: str = option("127.0.0.2", "address that attackers connect from")
    output: str = option(str(RESULTS / "serve_attacks"), "path of the results without its ending")


@dataclasses.dataclass
class Measured:
    """What a normal client saw, summed over rounds."""

    seconds: list[float] = dataclasses.field(default_factory=list)  # of successful requests
    failures: int = 0
    attacker_cpu: list[float] = dataclasses.field(default_factory=list)  # share of a core
    server_cpu: list[float] = dataclasses.field(default_factory=list)
    log_bytes: int = 0

    def quantile(self, q: float) -> float:
        """Returns a quantile in milliseconds; a failed request took forever."""
        times = sorted([*self.seconds, *[math.inf] * self.failures])
        return 1000 * times[min(len(times) - 1, int(q * len(times)))]


class Server:
    """A running server: `.port`, `.cpu()`, `.log`."""

    def __init__(self, folder: pathlib.Path):
        write_model(folder / "model")
        self.log = folder / "log"
        command = [sys.executable, "-m", "experiments.serve", f"--checkpoint={folder}/model"]
        command += ["--port=0", "--max_num_seqs=8"]
        cache = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax")}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=cache | os.environ,
            )
        assert self.process.stdout is not None
        self.port = 0
        for line in self.process.stdout:
            if line.startswith("model: http"):
                self.port = int(line.rpartition(":")[2].partition("/")[0])
                break
        if not self.port:
            raise SystemExit(f"the server did not start:\n{self.log.read_text()}")

    def cpu(self) -> float:
        """Returns the CPU seconds that the server has used."""
        fields = (
            pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        )
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


def write_model(folder: pathlib.Path) -> None:
    """Writes a random model whose vocabulary has a token of 128 bytes, as Qwen's has."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    for power in range(1, 8):
        ranks[b" " * 2**power] = len(ranks)
    tokenizer = Tokenizer(ranks)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=256,
        num_layers=2,
        num_heads=4,
        ffn_size=704,
        context_length=1024,
        compute_dtype="float32",
    )
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    save_pretrained(folder, config, params, tokenizer=tokenizer)


def normal_client(port: int, seconds: float, measured: Measured) -> None:
    """Sends requests one after the other, each over a new connection."""
    body = {"model": "model", "prompt": "Once upon", "max_tokens": TOKENS, "temperature": 0}
    raw, until = json.dumps(body).encode(), time.monotonic() + seconds
    while time.monotonic() < until:
        begin = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("POST", "/v1/completions", raw, {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read()
            if response.status == 200:
                measured.seconds.append(time.monotonic() - begin)
            else:
                measured.failures += 1
        except (OSError, http.client.HTTPException):
            measured.failures += 1
        finally:
            connection.close()


@contextlib.contextmanager
def other(name: str, port: int, *arguments: str) -> Iterator[None]:
    """Runs an attacker or a control next to the block."""
    command = [sys.executable, "-m", "benchmarks.serve.attackers", name, str(port), *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()  # it has begun
        yield
    finally:
        process.terminate()
        process.wait()


def measure(server: Server, config: Config, measured: Measured, name: str, *args: str) -> None:
    """Measures once, next to an attacker or a control."""
    log, cpu = server.log.stat().st_size, server.cpu()
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.monotonic()
    with other(name, server.port, *args):
        time.sleep(0.5)  # until the attack is in full swing
        normal_client(server.port, config.seconds, measured)
    took = time.monotonic() - begin
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = (now.ru_utime + now.ru_stime - own.ru_utime - own.ru_stime) / took
    measured.attacker_cpu.append(used)
    measured.server_cpu.append((server.cpu() - cpu) / took)
    measured.log_bytes += server.log.stat().st_size - log
    time.sleep(0.5)


def main(config: Config) -> None:
    """Measures all attacks in turns and writes the table."""
    names = config.attacks.split(",")
    found = {name: (Measured(), Measured()) for name in names}
    quiet = Measured()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(pathlib.Path(folder))
        try:
            normal_client(server.port, 3, Measured())  # warm up
            for turn in range(1, config.rounds + 1):
                measure(server, config, quiet, "burn", "0")
                for name in names:
                    attack, control = found[name]
                    measure(server, config, attack, name, config.attacker)
                    extra = max(0.0, attack.server_cpu[-1] - float(np.mean(quiet.server_cpu)))
                    used = attack.attacker_cpu[-1] + extra
                    measure(server, config, control, "burn", f"{used:.3f}")
                    print(f"round {turn}: {row(name, attack, control)}", flush=True)
        finally:
            server.stop()
        log = server.log.read_text(errors="replace")
    print(log[-2000:])
    save(config, found, quiet)


def row(name: str, attack: Measured, control: Measured) -> str:
    """Returns a line of the table."""
    ratio = attack.quantile(0.99) / control.quantile(0.99)
    cells = [
        name,
        f"{len(attack.seconds) + attack.failures}",
        f"{attack.failures}",
        f"{control.quantile(0.5):.0f}",
        f"{attack.quantile(0.5):.0f}",
        f"{control.quantile(0.99):.0f}",
        f"{attack.quantile(0.99):.0f}",
        f"{ratio:.2f}",
        f"{np.mean(attack.attacker_cpu):.2f}",
        f"{np.mean(attack.server_cpu):.2f}",
        f"{attack.log_bytes}",
    ]
    return "| " + " | ".join(cells) + " |"


HEAD = """# A normal client while another attacks the server

`python -m benchmarks.serve.attacks --rounds={rounds} --seconds={seconds:g}`; {about}.

A small random model (2 layers of width 256, {tokens} tokens per request). The normal client sends
one request after the other, each over a new connection. The control burns the CPU time that the
attack took, in the attacker and in the server beyond what it uses without one, and does not touch
the server. Attack and control alternate over {rounds} rounds; times are in milliseconds over all
requests of all rounds, and a failed request counts as infinitely long. CPU is in cores. Without
anything else, p50 was {p50:.0f} and p99 {p99:.0f}; load of the machine at the end: {load}.

"""
COLUMNS = (
    "attack",
    "requests",
    "failed",
    "p50, control",
    "p50",
    "p99, control",
    "p99",
    "p99 ratio",
    "attacker CPU",
    "server CPU",
    "log bytes",
)


def save(config: Config, found: dict[str, tuple[Measured, Measured]], quiet: Measured) -> None:
    """Writes the table, and the figures as JSON."""
    about = machine()
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    text = HEAD.format(
        rounds=config.rounds,
        seconds=config.seconds,
        about=", ".join(f"{name} {value}" for name, value in about.items() if value != ""),
        tokens=TOKENS,
        p50=quiet.quantile(0.5),
        p99=quiet.quantile(0.99),
        load=load,
    )
    text += "| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|\n"
    text += "\n".join(row(name, *both) for name, both in found.items()) + "\n\n"
    text += "\n".join(f"- {name}: {ATTACKS[name].__doc__}" for name in found) + "\n"
    pathlib.Path(f"{config.output}.md").write_text(text)
    figures = {
        "machine": about,
        "load": load,
        "quiet": dataclasses.asdict(quiet),
        "attacks": {
            name: {"attack": dataclasses.asdict(attack), "control": dataclasses.asdict(control)}
            for name, (attack, control) in found.items()
        },
    }
    rounded = json.loads(json.dumps(figures), parse_float=lambda text: round(float(text), 4))
    pathlib.Path(f"{config.output}.json").write_text(json.dumps(rounded) + "\n")
    print(text)


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
