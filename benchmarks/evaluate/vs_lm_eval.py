"""MMLU with 5 shots: seconds of our evaluation against lm-eval with transformers, in the same run.

Both score the same questions with the same checkpoint, a random model of 25M parameters with
Qwen's vocabulary and a context of 4,096, in FP32. lm-eval gets our prompts through a task of its
own, so that its accuracy must be ours. Both processes alternate, because a machine's speed drifts.

    python -m benchmarks.evaluate.vs_lm_eval --data=FOLDER --tokenizer=qwen.tiktoken \\
        --peer_python=.venv-peers/bin/python --questions=1000
"""

import dataclasses
import json
import pathlib
import sys
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks.common import turns
from qwen_jax.cli import flags
from qwen_jax.config import ModelConfig, option
from qwen_jax.errors import ConfigError
from qwen_jax.ranges import ONE_OR_MORE, Checked

MODEL = ModelConfig(  # 24.8M parameters, of which 21.9M are the embedding
    vocab_size=151936,
    hidden_size=144,
    num_layers=8,
    num_heads=2,
    ffn_size=640,
    context_length=4096,
    compute_dtype="float32",
    tie_embeddings=True,
    unroll_layers=4,
    initializer_range=0.05,
)
TASK = "mmlu"
RESULTS = turns.ROOT / "benchmarks" / "results"


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """Settings of the comparison."""

    data: str = option("", "folder with mmlu.zip")
    tokenizer: str = option("", "Qwen's vocabulary, qwen.tiktoken")
    peer_python: str = option(
        "", "Python interpreter with lm-eval, torch and transformers; empty: measure only ours"
    )
    questions: int = option(1000, "questions, spread over all subjects", ONE_OR_MORE)
    rounds: int = option(1, "measurements of ours and of the peer, alternating", ONE_OR_MORE)
    peer_batch: int = option(1, "batch size of transformers; on a CPU, padding costs", ONE_OR_MORE)
    output: str = option(str(RESULTS), "folder for evaluate_vs_lm_eval.md and .json")
    only: str = option("", '"ours": print one measurement as JSON, in this process')
    work: str = option("", "folder with the checkpoint and the questions, for --only")


def main(config: Config) -> None:
    """Prints and writes the table."""
    if config.only:
        print(json.dumps(measure(config)))
        return
    for name in ("data", "tokenizer"):
        if not getattr(config, name):
            raise ConfigError(f"{name} is not set.", f"--{name}", "pass its path; see --help.")
    with tempfile.TemporaryDirectory() as work:
        prepare(config, pathlib.Path(work))
        command = [sys.executable, "-m", "benchmarks.evaluate.vs_lm_eval", "--only=ours"]
        command += [f"--data={config.data}", f"--questions={config.questions}", f"--work={work}"]
        settings = {"work": work, "batch_size": config.peer_batch}
        peer = [config.peer_python, "benchmarks/peers/hf_lm_eval.py", json.dumps(settings)]

        def peers(measured: dict) -> dict[str, turns.Process]:
            return {"lm-eval": (peer, {})} if config.peer_python else {}

        rounds: dict[str, list[dict]] = {}
        for turn, name, measured in turns.take(config.rounds, command, peers):
            print(f"round {turn}, {name}: {measured['seconds']:,.1f} s", flush=True)
            rounds.setdefault(name, []).append(measured)
    report(config, rounds)


def prepare(config: Config, work: pathlib.Path) -> None:
    """Writes the checkpoint, and lm-eval's task with the prompts of ours."""
    import jax

    from qwen_jax.evaluate.data_files import DataFolders
    from qwen_jax.evaluate.prompts import questions
    from qwen_jax.evaluate.tasks import TASKS
    from qwen_jax.model.spec import count, init_params
    from qwen_jax.pretrained.huggingface import save_pretrained
    from qwen_jax.tokenizer.bpe import Tokenizer

    chosen = questions.read(TASKS[TASK], DataFolders([config.data]), config.questions)
    letters = [example.answer for example in chosen.examples]
    rows = [
        {**one, "gold": TASKS[TASK].letters.index(letter)}
        for one, letter in zip(questions.prompts(chosen), letters, strict=True)
    ]
    (work / "questions.json").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    task = {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(work / "questions.json")}},
        "test_split": "test",
        "num_fewshot": 0,  # they are in the prompts
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (work / "task.yaml").write_text(json.dumps(task))
    print(f"{len(rows):,} questions, {count(MODEL):,} parameters", flush=True)
    params = jax.jit(init_params, static_argnums=0)(MODEL, jax.random.key(0))
    tokenizer = Tokenizer.from_file(config.tokenizer)
    save_pretrained(work / "model", MODEL, params, layout="qwen2", tokenizer=tokenizer)


def measure(config: Config) -> dict[str, Any]:
    """Evaluates the checkpoint once; the time has compilation, but not the loading of weights."""
    import jax

    from benchmarks.common.timing import machine
    from qwen_jax import evaluate
    from qwen_jax.evaluate.harness import Model
    from qwen_jax.pretrained.load import load_model

    model = Model(*load_model(str(pathlib.Path(config.work) / "model")))
    jax.block_until_ready(model.params)
    with tempfile.TemporaryDirectory() as output:
        begin = time.perf_counter()
        evaluate.run(
            model,
            [TASK],
            data=[config.data],
            output=output,
            limit=config.questions,
            log=lambda line: None,
        )
        seconds = time.perf_counter() - begin
        lines = (pathlib.Path(output) / "samples" / f"{TASK}.jsonl").read_text("utf-8")
    samples = [json.loads(line) for line in lines.splitlines()]
    return {
        "seconds": seconds,
        "accuracy": 100 * float(np.mean([one["correct"] for one in samples])),
        "logprobs": {one["id"]: one["logprobs"] for one in samples},
        "tokens": sum(one["prompt_tokens"] for one in samples),
        "versions": f"jax {jax.__version__}",
        "machine": machine(),
    }


def report(config: Config, rounds: dict[str, list[dict]]) -> None:
    """Prints the figures, and writes them as Markdown and JSON.

    Raises:
      SystemExit: log-probabilities or accuracies of the two differ.
    """
    ours, peer = rounds["ours"], rounds.get("lm-eval")
    seconds = {name: float(np.median([one["seconds"] for one in r])) for name, r in rounds.items()}
    found: dict[str, Any] = {
        "questions": len(ours[0]["logprobs"]),
        "prompt_tokens": ours[0]["tokens"],
        "seconds": seconds,
        "accuracy": {name: r[0]["accuracy"] for name, r in rounds.items()},
        "peer_batch": config.peer_batch,
        "rounds": {name: [one["seconds"] for one in r] for name, r in rounds.items()},
        "versions": {name: r[0]["versions"] for name, r in rounds.items()},
        "machine": ours[0]["machine"],
    }
    if peer:
        found["ratio"] = seconds["lm-eval"] / seconds["ours"]
        found["largest_difference"] = max(
            abs(one - other)
            for name, values in ours[0]["logprobs"].items()
            for one, other in zip(values, peer[0]["logprobs"][name], strict=True)
        )
    machine = found["machine"]
    lines = [
        "# MMLU, 5 shots: our evaluation and lm-eval with transformers",
        "",
        f"{found['questions']:,} questions with {found['prompt_tokens']:,} tokens of prompts, a "
        "random model of 24.8M parameters with Qwen's vocabulary, context 4,096, FP32. The same "
        "checkpoint and the same prompts, in turn in one run; the time has tokenization and "
        "compilation, but not the loading of weights.",
        "",
        "| | seconds | accuracy |",
        "|---|---|---|",
        *(
            f"| {name} | {seconds[name]:,.1f} | {found['accuracy'][name]:.2f} % |"
            for name in rounds
        ),
        "",
    ]
    if peer:
        lines += [
            f"Ours is {found['ratio']:.2f} times as fast. Log-probabilities of choices differ by "
            f"at most {found['largest_difference']:.1e}. Batch size of transformers: "
            f"{config.peer_batch}.",
            "",
        ]
    lines += [
        f"{machine['date']}, {machine['device']}, {machine['cpus']} cores, Python "
        f"{machine['python']}; " + "; ".join(found["versions"].values()) + ".",
        f"`python -m benchmarks.evaluate.vs_lm_eval --data=FOLDER --tokenizer=qwen.tiktoken "
        f"--peer_python=PYTHON --questions={config.questions} --rounds={config.rounds} "
        f"--peer_batch={config.peer_batch}`",
    ]
    print("\n".join(lines))
    folder = pathlib.Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluate_vs_lm_eval.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "evaluate_vs_lm_eval.json").write_text(json.dumps(found, indent=1) + "\n")
    accuracies = {round(value, 6) for value in found["accuracy"].values()}
    if peer and (found["largest_difference"] > 1e-3 or len(accuracies) > 1):
        raise SystemExit("the two disagree: see the table")


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
