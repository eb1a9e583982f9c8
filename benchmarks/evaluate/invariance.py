"""The same results for any batch, order, device and process: writes evaluate_invariance.md.

A tiny random model is evaluated on a CPU, each time in another way, and every sample is compared
with that of one device. Without --data the questions are ours (choices of several tokens, and
completions in ChatML); with the folder of the benchmarks' files, also MMLU, C-Eval, GSM8K and
HumanEval, whose programs run in the sandbox.

    python -m benchmarks.evaluate.invariance --data=FOLDER --tokenizer=qwen.tiktoken
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

from qwen_jax.cli import flags
from qwen_jax.config import ModelConfig, option
from qwen_jax.errors import unknown_name
from qwen_jax.evaluate.task import Example, Questions, Task
from qwen_jax.ranges import ONE_OR_MORE, Checked

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ModelConfig(
    vocab_size=151936,
    hidden_size=64,
    num_layers=2,
    num_heads=4,
    ffn_size=96,
    context_length=4096,
    compute_dtype="float32",
    initializer_range=0.3,
)
WITH_DATA = ("mmlu", "ceval", "gsm8k_chat", "humaneval")
NEW_TOKENS = 64
SECONDS = 1800  # of a case
_CASE = "QWEN_JAX_INVARIANCE_CASE"


@dataclasses.dataclass(frozen=True)
class Case:
    """A way to evaluate the same questions.

    Attributes:
      bound: maximum difference of log-probabilities, in nats; None: every byte is the same.
      devices: virtual devices of each process.
      half: whether every second example is left out.
    """

    bound: float | None = None
    batch: int = 16
    devices: int = 1
    processes: int = 1
    tensor: int = 1
    shuffle: bool = False
    share: bool = True
    half: bool = False
    kill: bool = False
    engine: bool = False
    dtype: str = "float32"


BASE = "one device, batch 16"
CASES = {
    BASE: Case(),
    "batch 1": Case(batch=1),
    "batch 7": Case(batch=7),
    "batch 32": Case(batch=32),
    "shuffled order": Case(shuffle=True),
    "every second example": Case(half=True),
    "without shared prefixes": Case(share=False),
    "killed (SIGKILL) and resumed": Case(kill=True),
    "an engine instead of a checkpoint": Case(engine=True),
    "2 devices, rows split": Case(devices=2),
    "4 devices, rows split": Case(devices=4),
    "8 devices, rows split": Case(devices=8),
    "2 processes, rows split": Case(processes=2),
    "2 processes of 2 devices, rows split": Case(processes=2, devices=2),
    "2 devices, weights sharded": Case(bound=1e-4, devices=2, tensor=2),
    "4 devices, rows split and weights sharded": Case(bound=1e-4, devices=4, tensor=2),
    "bfloat16": Case(bound=1.0, dtype="bfloat16"),
}


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """Settings of the comparison."""

    data: tuple[str, ...] = option((), "folders with the files of the benchmarks")
    tokenizer: str = option("", "a .tiktoken file; empty: every byte is a token")
    limit: int = option(12, "examples of each task", ONE_OR_MORE)
    cases: tuple[str, ...] = option((), "cases to run; empty: all")
    output: str = option(str(ROOT / "benchmarks/results"), "folder for evaluate_invariance.md")
    keep: str = option("", "folder for the evaluations, to resume this comparison; empty: none")
    work: str = option("", "folder of one case; set by this program")


class Difference(NamedTuple):
    """How the samples of a case differ from those of one device.

    Attributes:
      same: whether all bytes of the samples are equal.
      logprob: maximum difference of a log-probability of choices, in nats.
      argmax: examples with the same chosen answer.
      text: examples with the same completion.
    """

    same: bool
    logprob: float
    argmax: tuple[int, int]
    text: tuple[int, int]


def words(data) -> Questions:
    """Questions of ours, whose choices have several tokens."""
    things = ("river", "mountain lake", "small red house", "winter", "two old friends")
    examples = [
        Example(
            i,
            {letter: things[(i + j) % 5] + " and " * (j % 2) for j, letter in enumerate("ABCD")},
            "ABCD"[i * 7 % 4],
            f"s{i % 3}",
        )
        for i in range(40)
    ]
    return Questions(tuple(examples), {f"s{i}": tuple(examples[i : i + 3]) for i in range(3)})


def shown(example: Example, shots) -> str:
    text = "".join(f"Picture {one.index} of {one.subject} shows a {one.answer}.\n" for one in shots)
    return f"{text}Picture {example.index} of {example.subject} shows a"


WORDS = Task(
    name="words",
    protocol="qwen",
    read=words,
    template=shown,
    files=(),
    counts=40,
    source="none",
    num_shots=3,
    choices=lambda example: tuple(" " + example.fields[letter] for letter in "ABCD"),
)


def main(config: Config) -> None:
    """Prints and writes the table."""
    if config.work:
        evaluate(config, CASES[os.environ[_CASE]])
        return
    for name in config.cases:
        if name not in CASES:
            raise unknown_name("case", name, CASES, "--cases")
    chosen = {name: CASES[name] for name in (BASE, *(config.cases or CASES))}
    found: dict[str, Difference] = {}
    with contextlib.ExitStack() as opened:
        work = pathlib.Path(config.keep or opened.enter_context(tempfile.TemporaryDirectory()))
        if not (work / "model").exists():
            write_model(config, work / "model")
        for name, case in chosen.items():
            begin = time.monotonic()
            folder = work / str(list(CASES).index(name))
            if not (folder / "results.json").exists():
                run_case(config, name, case, folder)
            samples = read(folder)
            if name == BASE:
                base = samples
            found[name] = compare(base, samples, half=case.half)
            print(f"{name}: {found[name]} in {time.monotonic() - begin:.0f} s", flush=True)
    report(config, chosen, found, base)


def write_model(config: Config, folder: pathlib.Path) -> None:
    """Writes a model with random weights."""
    import jax

    from qwen_jax.model.spec import init_params
    from qwen_jax.pretrained.huggingface import save_pretrained
    from qwen_jax.tokenizer.bpe import Tokenizer

    bytes_only = Tokenizer({bytes([byte]): byte for byte in range(256)})
    tokenizer = Tokenizer.from_file(config.tokenizer) if config.tokenizer else bytes_only
    model = MODEL if config.tokenizer else dataclasses.replace(MODEL, vocab_size=512)
    params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))
    save_pretrained(folder, model, params, tokenizer=tokenizer)


def run_case(config: Config, name: str, case: Case, folder: pathlib.Path) -> None:
    """Evaluates in processes of its own.

    Raises:
      RuntimeError: it failed; has the end of its output.
    """
    own = [f"--work={folder}", f"--data={','.join(config.data)}", f"--limit={config.limit}"]
    module = ["-m", "benchmarks.evaluate.invariance", *own]
    command = [sys.executable, *module]
    if case.processes > 1:
        launcher = [f"--processes={case.processes}", f"--devices={case.devices}"]
        launcher += ["--max_restarts=0", "--heartbeat=600"]
        command = [sys.executable, "-m", "launch.local", *launcher, "--", *module]
    devices = f"--xla_force_host_platform_device_count={case.devices}"
    environment = {**os.environ, "XLA_FLAGS": devices, "JAX_PLATFORMS": "cpu", _CASE: name}
    with tempfile.TemporaryFile() as output:
        start = functools.partial(
            subprocess.Popen, command, cwd=ROOT, env=environment, stdout=output, stderr=output
        )
        process = start()
        if case.kill:
            while process.poll() is None:
                if any(lines_of(path) for path in folder.glob("samples/*.partial")):
                    break  # in the middle of the first task
                time.sleep(0.005)
            process.kill()
            process.wait()
            if (folder / "results.json").exists():
                raise RuntimeError("the evaluation ended before it was killed")
            process = start()
        try:
            code = process.wait(SECONDS)
        except subprocess.TimeoutExpired as error:
            process.terminate()
            process.wait()
            text = f"{name}: not done in {SECONDS} s; with --keep, the same command goes on"
            raise RuntimeError(text) from error
        if code:
            output.seek(0)
            raise RuntimeError(f"{name}: exit code {code}\n{output.read()[-4000:].decode()}")


def lines_of(path: pathlib.Path) -> int:
    with contextlib.suppress(FileNotFoundError):  # deleted when the task is complete
        return path.read_bytes().count(b"\n")
    return 0


def evaluate(config: Config, case: Case) -> None:
    """Evaluates the questions in this way, in this process."""
    from qwen_jax.evaluate import harness
    from qwen_jax.evaluate.data_files import DataFolders
    from qwen_jax.evaluate.prompts import questions
    from qwen_jax.evaluate.tasks import TASKS
    from qwen_jax.inference.engine import Engine
    from qwen_jax.inference.scoring import Scorer
    from qwen_jax.inference.warmup import mesh_over_all
    from qwen_jax.pretrained.load import load_model

    folder = pathlib.Path(config.work)
    names = ("unanswerable", *(WITH_DATA if any(config.data) else ()))
    data = DataFolders([one for one in config.data if one])
    chosen = [WORDS, *(shorter(TASKS[name]) for name in names)]
    work = questions.read_all(chosen, data, config.limit)
    if case.half:
        work = [one._replace(examples=one.examples[::2]) for one in work]
    if case.shuffle:
        work = [
            one._replace(examples=tuple(random.Random(0).sample(one.examples, len(one.examples))))
            for one in work
        ]
    mesh = mesh_over_all(case.tensor)
    model = harness.Model(*load_model(str(folder.parent / "model"), mesh=mesh), mesh)
    model = model._replace(config=dataclasses.replace(model.config, compute_dtype=case.dtype))
    source = model
    if case.engine:
        source = Engine(model.params, model.config, tokenizer=model.tokenizer, max_num_seqs=16)
    loaded = harness.LoadedModel(source, batch_size=case.batch, max_length=None)
    if not case.share:
        loaded.scorer = Scorer(model.params, model.config, mesh=mesh, share_prefixes=False)
    harness.run(loaded, work, data, folder, identity={"case": "invariance"})


def shorter(task: Task) -> Task:
    """Returns a task whose completions end after NEW_TOKENS."""
    if task.generation is None:
        return task
    generation = dataclasses.replace(task.generation, max_new_tokens=NEW_TOKENS)
    return dataclasses.replace(task, generation=generation)


def read(folder: pathlib.Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Returns the samples of a case by task and id."""
    found = {}
    for path in sorted(folder.glob("samples/*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            sample = json.loads(line)
            found[path.stem, sample["id"]] = sample
    return found


def compare(base: dict, samples: dict, *, half: bool) -> Difference:
    """Compares the samples of two cases, of which the second may have only every second one.

    Raises:
      ValueError: examples are missing.
    """
    if not half and base.keys() != samples.keys() or not samples.keys() <= base.keys():
        raise ValueError("the cases have different examples")
    pairs = [(base[key], one) for key, one in samples.items()]
    choices = [(a, b) for a, b in pairs if "logprobs" in a]
    texts = [(a, b) for a, b in pairs if "completion" in a]
    return Difference(
        all(json.dumps(a) == json.dumps(b) for a, b in pairs),
        max(
            abs(p - q)
            for a, b in choices
            for p, q in zip(a["logprobs"], b["logprobs"], strict=True)
        ),
        (sum(a["extracted"] == b["extracted"] for a, b in choices), len(choices)),
        (sum(a["completion"] == b["completion"] for a, b in texts), len(texts)),
    )


def report(
    config: Config, cases: dict[str, Case], found: dict[str, Difference], base: dict
) -> None:
    """Prints the table, and writes it as Markdown.

    Raises:
      SystemExit: a case differs by more than its bound.
    """
    import jax

    from benchmarks.common.timing import machine

    here, counts = machine(), {}
    for task, _ in base:
        counts[task] = counts.get(task, 0) + 1
    rows, wrong = [], []
    for name, one in found.items():
        case = cases[name]
        chosen, text = (f"{same} of {n}" for same, n in (one.argmax, one.text))
        bound = "0" if case.bound is None else f"{case.bound:g}"
        rows.append(
            f"| {name} | {'yes' if one.same else 'no'} | {one.logprob:.1e} | {bound} | {chosen} | "
            f"{text} |"
        )
        exact = case.dtype == "float32"
        same = one.argmax[0] == one.argmax[1] and one.text[0] == one.text[1]
        if one.logprob > (case.bound or 0) or case.bound is None and not one.same:
            wrong.append(name)
        elif exact and not same:
            wrong.append(name)
    size = "Qwen's vocabulary" if config.tokenizer else "a token for each byte"
    data = " --data=FOLDER" if any(config.data) else ""
    command = f"python -m benchmarks.evaluate.invariance{data}"
    command += " --tokenizer=qwen.tiktoken" if config.tokenizer else ""
    lines = [
        "# The same results for any batch, order, device and process",
        "",
        f"A random model with {MODEL.num_layers} layers and {size}, FP32 on a CPU; examples: "
        + ", ".join(f"{task} {n}" for task, n in counts.items())
        + f". Each row is compared with `{BASE}`, sample by sample: every byte of the records, "
        "log-probabilities of choices (nats), the chosen letter, and completions of "
        f"{NEW_TOKENS} tokens.",
        "",
        "| case | same bytes | max. difference | bound | same choice | same completion |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        "Rows are split: every device computes its own prompts with all weights, so it rounds as "
        "one device does. Sharded weights are summed in another order. A CPU scores one prompt and "
        "samples 16 completions at a time, for any batch size.",
        "",
        *(
            [f"Not run: {'; '.join(name for name in CASES if name not in found)}.", ""]
            if len(found) < len(CASES)
            else []
        ),
        f"{here['date']}, {here['device']}, {here['cpus']} cores, Python {here['python']}, jax "
        f"{jax.__version__}. `{command} --limit={config.limit}`",
    ]
    print("\n".join(lines))
    folder = pathlib.Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluate_invariance.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if wrong:
        raise SystemExit(f"differs by more than its bound: {', '.join(wrong)}")


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
