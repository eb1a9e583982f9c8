"""Makes the archives: an earlier version's runs, stopped half-way, with the inputs to resume them.

    git worktree add OLD 85fc48dbfa6c46f5ba480efea4a21b7cdd802bd7
    PYTHONPATH=OLD python tests/archives/make.py WORK

OLD is a checkout of the version to archive. WORK is a new folder, whose name must not reveal
anything about the machine. Commands run in WORK/NAME with relative paths; the archives are
WORK/NAME.tar.gz. See README.md.
"""

import datetime
import getpass
import gzip
import io
import json
import os
import pathlib
import platform
import random
import re
import shutil
import socket
import subprocess
import sys
import tarfile

STEPS, HALF = 12, 6
# Two ways to stop. A killed run has saved step 6 in the background and loses steps 7 and 8.
STOP = {
    "SIGTERM": f"term step={HALF}",
    "SIGKILL": f"delay step={HALF + 2} seconds=3; kill step={HALF + 3}",
}
SIZES = (
    "--model.vocab_size=464",
    "--model.hidden_size=16",
    "--model.num_heads=2",
    "--model.ffn_size=32",
    "--model.context_length=64",
)
EVERY = (
    f"--train.num_steps={STEPS}",
    "--train.batch_size=8",
    "--train.log_every=1",
    "--train.save_every=3",
    "--train.keep_checkpoints=1",
)
TIMES = ("perf/", "time", "host/")  # metrics that differ from run to run


def cpu() -> dict[str, object]:
    """Returns what XLA:CPU selects instructions by: vendor, family, model, vector extensions."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""

    def line(name):
        found = re.search(rf"^{name}\s*:[ \t]*(.*)$", text, re.MULTILINE)
        return found[1].strip() if found else ""

    names = ("vendor_id", "cpu family", "model", "model name")
    return {
        "architecture": platform.machine(),
        **{name: line(name) for name in names},
        "vectors": [
            flag
            for flag in line("(?:flags|Features)").split()
            if re.match(r"avx|amx|fma|f16c|sse|ssse|asimd|sve|bf16", flag)
        ],
    }


def records(metrics: pathlib.Path, after: int = 0) -> list[dict]:
    """Returns the metrics of the steps after `after`, without times."""
    found = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
    return [
        {name: value for name, value in record.items() if not name.startswith(TIMES)}
        for record in found
        if record["step"] > after
    ]


def environment(**changes: str) -> dict[str, str]:
    """Returns an environment with one CPU device and only the paths of this shell."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ}
    return kept | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "TQDM_DISABLE": "1"} | changes


def run(
    folder: pathlib.Path,
    module: str,
    *flags: str,
    stopped_by: str | None = None,
    typed: str | None = None,
) -> str:
    """Runs one command with `typed` as its input, and returns its output."""
    env = environment(**({"QWEN_JAX_FAULTS": STOP[stopped_by]} if stopped_by else {}))
    done = subprocess.run(
        [sys.executable, "-m", module, *flags],
        cwd=folder,
        env=env,
        text=True,
        input=typed,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == (-9 if stopped_by == "SIGKILL" else 0), done.stdout[-3000:]
    return done.stdout


def write_data(folder: pathlib.Path) -> None:
    """Writes text, conversations, pairs and prompts about sums, and a byte tokenizer."""
    from qwen_jax.data import shards
    from qwen_jax.data.sources import Document
    from qwen_jax.tokenizer.bpe import Tokenizer

    rng = random.Random(0)
    sums = [(rng.randrange(5), rng.randrange(5)) for _ in range(40)]
    (folder / "data").mkdir(parents=True)
    shards.write(
        [
            Document(str(i), f"{a} and {b} are {a + b}. " * 8)
            for i, (a, b) in enumerate(sorted(set(sums)))
        ],
        folder / "data" / "text",
        Tokenizer({bytes([byte]): byte for byte in range(256)}),
        eval_fraction=0.2,
    )
    conversations = [
        [
            {"role": "system", "content": "Add."},
            {"role": "user", "content": f"{a}+{b}"},
            {"role": "assistant", "content": str(a + b)},
        ]
        for a, b in sums
    ]
    for name, rows in (
        ("conversations", [{"messages": turns} for turns in conversations]),
        (
            "pairs",
            [
                {"messages": turns[:2], "chosen": turns[2]["content"], "rejected": "no"}
                for turns in conversations
            ],
        ),
        ("prompts", [{"messages": turns[:2]} for turns in conversations]),
    ):
        for part, chosen in (("", rows[:32]), ("_held", rows[32:])):
            (folder / "data" / f"{name}{part}.jsonl").write_text(
                "".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8"
            )


def weights(run_dir: pathlib.Path) -> dict[str, list]:
    """Returns the shape, sum and sum of squares of every weight of the model in a run."""
    import jax
    import numpy as np

    from qwen_jax import load_pretrained

    def moments(value):
        value = np.asarray(value, np.float64)
        return [list(value.shape), float(value.sum()), float(np.square(value).sum())]

    _, params = load_pretrained(run_dir)
    return {
        jax.tree_util.keystr(path).lstrip("."): moments(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def half(
    work: pathlib.Path,
    name: str,
    module: str,
    *flags: str,
    stopped_by: str,
    chat: tuple[str, ...] | None,
    keep: tuple[str, ...],
) -> None:
    """Runs a command in WORK/NAME, stops it half-way and packs it; also runs it uninterrupted.

    Args:
      chat: the prompt and the flags of the chat; None: the run is not a language model's.
      keep: files and folders of WORK/inputs that the command reads.
    """
    folder, uninterrupted = work / name, work / f"{name}_uninterrupted"
    folder.mkdir()
    for path in keep:
        source, target = work / "inputs" / path, folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
    shutil.copytree(folder, uninterrupted)
    run_dir = f"runs/{name}"
    flags = (*flags, f"--run_dir={run_dir}")
    run(folder, module, *flags, stopped_by=stopped_by)
    run(uninterrupted, module, *flags)
    steps = [int(path.name) for path in (folder / run_dir / "checkpoints").iterdir()]
    assert steps == [HALF], steps
    make_neutral(folder)
    base = folder / run_dir / "base.json"
    if base.exists():  # has an absolute path; edited as its error message suggests
        record = json.loads(base.read_text(encoding="utf-8"))
        record["folder"] = os.path.relpath(record["folder"], folder.resolve())
        base.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    commands = {
        "run_dir": run_dir,
        "stopped_after": HALF,
        "stopped_by": stopped_by,
        "num_steps": STEPS,
        "resume": ["python", "-m", module, *flags],
    }
    expected = {}
    if chat is not None:
        prompt, *settings = chat
        arguments = [f"--checkpoint={run_dir}", "--temperature=0", "--max_new_tokens=8", *settings]
        commands |= {"chat": ["python", "-m", "experiments.chat", *arguments], "question": prompt}
        commands["export"] = [
            "python",
            "-m",
            "experiments.convert",
            f"--input={run_dir}",
            "--output=exported",
            "--layout=qwen2",
        ]
        output = run(folder, "experiments.chat", *arguments, typed=prompt + "\n")
        expected["answer"] = response(output)
        os.chdir(folder)
        expected["weights"] = weights(pathlib.Path(run_dir))
        os.chdir(work)
    versions = json.loads((folder / run_dir / "versions.json").read_text(encoding="utf-8"))
    made = {"date": datetime.date.today().isoformat(), "versions": versions, "cpu": cpu()}
    for file, content in (("COMMANDS", commands), ("expected", expected), ("made", made)):
        (folder / f"{file}.json").write_text(
            json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    (folder / "expected.jsonl").write_text(
        "".join(
            json.dumps(record) + "\n"
            for record in records(uninterrupted / run_dir / "metrics.jsonl", HALF)
        ),
        encoding="utf-8",
    )
    pack(folder, work / f"{name}.tar.gz")


def make_neutral(folder: pathlib.Path) -> None:
    """Removes the kernel's name from versions.json, and the TensorBoard files, which have the
    host's name and are not needed."""
    for path in folder.glob("runs/*/versions.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        record["machine"] = record["machine"].replace(platform.release(), "0")
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for board in folder.glob("runs/*/tensorboard"):
        shutil.rmtree(board)


def response(output: str) -> str:
    """Extracts the only response from the output of the chat."""
    return re.search(r"/help for (?:help|commands\.)\n> (.*)\n\(\d+ tokens", output, re.DOTALL)[1]


def pack(folder: pathlib.Path, archive: pathlib.Path) -> None:
    """Packs only names and bytes into a .tar.gz, which reveals nothing about the machine."""
    secrets = [
        str(pathlib.Path.home()),
        socket.gethostname(),
        getpass.getuser(),
        str(pathlib.Path(__file__).resolve().parents[2]),
        *os.environ.get("PYTHONPATH", "").split(":"),
        "/tmp",
        "/home/",
        "/root",
    ]
    with open(archive, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed:
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for path in sorted(folder.rglob("*")):
                inside = path.relative_to(folder)
                if not path.is_file():
                    continue
                content = path.read_bytes()
                for secret in filter(None, secrets):
                    # Short names occur in any binary file, so they are only searched in text.
                    if len(secret) > 4 or _is_text(content):
                        assert not re.search(rf"\b{re.escape(secret)}\b".encode(), content) and (
                            secret[0] != "/" or secret.encode() not in content
                        ), f"{inside} contains {secret}"
                entry = tarfile.TarInfo(inside.as_posix())
                entry.size, entry.mode = len(content), 0o644  # owner 0, time 0
                tar.addfile(entry, io.BytesIO(content))


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def main(work: pathlib.Path) -> None:
    work.mkdir(parents=True)
    work = work.resolve()
    inputs = work / "inputs"
    write_data(inputs)
    text = ("--data.sources=data/text/train", "--data.eval_sources=data/text/eval")
    quick = ("--optimizer.warmup_steps=2",)

    half(
        work,
        "pretrain",
        "experiments.pretrain",
        "--recipe=smoke",
        *text,
        *SIZES,
        *EVERY,
        *quick,
        "--train.eval_every=4",
        stopped_by="SIGTERM",
        chat=("2 and 3", "--plain"),
        keep=("data/text",),
    )

    run(
        inputs,
        "experiments.pretrain",
        "--recipe=smoke",
        *text,
        *SIZES,
        *quick,
        "--train.num_steps=100",
        "--train.keep_checkpoints=1",
        "--run_dir=runs/base",
    )
    half(
        work,
        "sft_lora",
        "experiments.sft",
        "--recipe=smoke",
        "--init_from=runs/base",
        "--data.conversations=data/conversations.jsonl",
        "--lora.rank=4",
        "--lora.alpha=8",
        "--optimizer.peak_learning_rate=1e-2",
        *quick,
        *EVERY,
        "--train.eval_every=none",
        stopped_by="SIGKILL",
        chat=("2+3", "--system=Add."),
        keep=("data/conversations.jsonl", "runs/base"),
    )

    pairs = ("--data.pairs=data/pairs.jsonl", "--data.eval_pairs=data/pairs_held.jsonl")
    half(
        work,
        "reward_model",
        "experiments.reward_model",
        "--recipe=smoke",
        "--init_from=runs/base",
        *pairs,
        *EVERY,
        "--train.eval_every=4",
        stopped_by="SIGTERM",
        chat=None,
        keep=("data/pairs.jsonl", "data/pairs_held.jsonl", "runs/base"),
    )

    # PPO: from a released folder, which has only weights, and a reward model trained from it.
    run(
        inputs,
        "experiments.sft",
        "--recipe=smoke",
        "--init_from=runs/base",
        *quick,
        "--data.conversations=data/conversations.jsonl",
        "--run_dir=runs/chat",
        "--train.keep_checkpoints=1",
    )
    run(inputs, "experiments.convert", "--input=runs/chat", "--output=models/chat", "--layout=qwen")
    run(
        inputs,
        "experiments.reward_model",
        "--recipe=smoke",
        "--init_from=models/chat",
        *pairs,
        "--run_dir=runs/reward",
        "--train.keep_checkpoints=1",
    )
    half(
        work,
        "ppo",
        "experiments.ppo",
        "--recipe=smoke",
        "--init_from=models/chat",
        "--reward_model=runs/reward",
        "--reward_functions=experiments.rewards:arithmetic",
        "--data.prompts=data/prompts.jsonl",
        *EVERY,
        stopped_by="SIGKILL",
        chat=("2+3", "--system=Add."),
        keep=("data/prompts.jsonl", "models/chat", "runs/reward"),
    )
    for archive in sorted(work.glob("*.tar.gz")):
        print(f"{archive.name}: {archive.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
