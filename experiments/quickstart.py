"""Trains and aligns a small model in ten minutes on one CPU, with every step of the report.

Processes the Python documentation and source on this computer with the corpus pipeline (2.1),
trains a vocabulary and extends it for code (2.2), writes token shards and pretrains (2.4). Then it
compares the model with a 3-gram model, samples from it and exports it to the released layouts.
Finally it runs supervised fine-tuning (3.1), a reward model (3.2.1) and PPO (3.2.2), and writes the
report page runs/quickstart/report.html. After an interruption, run it again: it resumes and
produces the same weights.

    python -m experiments.quickstart                          # or: make quickstart
    python -m experiments.quickstart --train.num_steps=4000   # longer training, better model
"""

import dataclasses
import pathlib
import sys
import time

import numpy as np

from qwen_jax.cli import flags
from qwen_jax.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig, option
from qwen_jax.corpus import pipeline
from qwen_jax.corpus.dedup.exact import ExactDedup
from qwen_jax.corpus.dedup.near import NearDedup
from qwen_jax.corpus.filters.ngram import NgramModel
from qwen_jax.corpus.filters.pii import PersonalStage
from qwen_jax.corpus.output.tokenize import source_documents, tokenize
from qwen_jax.corpus.sources.read import Read
from qwen_jax.data import shards
from qwen_jax.data.loader import Loader
from qwen_jax.inference.decode import generate
from qwen_jax.parallel.cpu.features import has_bfloat16_matmul
from qwen_jax.pretrained.huggingface import load_pretrained, save_pretrained
from qwen_jax.ranges import ONE_OR_MORE, ZERO_OR_MORE, Range
from qwen_jax.report import write_report
from qwen_jax.tokenizer import compression, extend
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train.evaluation import make_evaluator
from qwen_jax.train.language_model import make_objective
from qwen_jax.utils.best_effort import keep_going
from qwen_jax.utils.files import read_json, write_json

from . import pretrain, quickstart_alignment

SOURCES = ("docs", "code")
PROMPTS = ("", "class Queue(", "open(file, mode='r'", "    Return the", "def ")


@dataclasses.dataclass(frozen=True)
class Config(pretrain.Config):
    """Settings of the pretraining run, and of the steps before and after it."""

    learned_tokens: int = option(
        1500,
        "size of the vocabulary trained on the documentation, with the 256 bytes",
        Range(256, 10**8),
        alias="learnt_tokens",
    )
    grown_tokens: int = option(
        340,
        "tokens added for source code; with the 208 special tokens: 2,048 in total",
        ZERO_OR_MORE,
    )
    eval_fraction: float = option(
        0.05, "fraction of the documents to hold out", Range(above=0, below=1)
    )
    code_weight: float = option(0.15, "weight of source code in the mixture", ZERO_OR_MORE)
    sample_tokens: int = option(160, "tokens per sample text of the report page", ONE_OR_MORE)
    align: quickstart_alignment.Steps = quickstart_alignment.Steps()  # stages after pretraining


RECIPE = Config(
    model=ModelConfig(  # ours: 2.6M parameters, which two CPU cores train in five minutes
        vocab_size=2048,
        hidden_size=192,
        num_layers=4,
        num_heads=4,
        ffn_size=512,
        context_length=256,
        unroll_layers=4,
        compute_dtype="bfloat16",
    ),  # report 2.4; float32 if the CPU has no bfloat16 matmuls
    optimizer=OptimizerConfig(  # report 2.4, except the learning rate and the warm-up
        peak_learning_rate=4e-3, warmup_steps=100
    ),
    train=TrainConfig(
        num_steps=2400,
        batch_size=4,
        log_every=20,
        eval_every=400,
        eval_batches=16,
        save_every=200,
        keep_checkpoints=2,
    ),
    run_dir="runs/quickstart",
)
SMOKE = dataclasses.replace(
    RECIPE,
    model=dataclasses.replace(
        RECIPE.model,
        hidden_size=32,
        num_layers=2,
        ffn_size=96,
        context_length=96,
        compute_dtype="float32",
    ),
    optimizer=dataclasses.replace(RECIPE.optimizer, warmup_steps=5),
    train=dataclasses.replace(RECIPE.train, num_steps=30, eval_every=15, save_every=10),
    align=quickstart_alignment.Steps(sft=8, pmp=4, reward=4, ppo=4, value_warmup=2),
    sample_tokens=32,
    run_dir="runs/quickstart_smoke",
)


@keep_going()
def main(config: Config) -> None:
    """Runs every step. Each writes its output atomically and is skipped if the output exists."""
    started, folder = time.time(), pathlib.Path(config.run_dir)
    result = gather(folder)
    tokenizer = learn_vocabulary(config, folder, result)
    encode(config, folder, result)
    pretrain.main(pretraining(config, folder))
    model, params = load_pretrained(folder)
    model = dataclasses.replace(model, compute_dtype="float32")  # CPUs decode faster in float32
    evaluate(config, folder, model, params, tokenizer)
    sample(config, folder, model, params, tokenizer)
    export(folder, model, params, tokenizer)
    log("8/10 alignment")
    quickstart_alignment.align(folder, result, config.align, log=lambda line: log(f"     {line}"))
    log(
        f"9/10 {quickstart_alignment.compare(folder, tokenizer)}; chat with the model:\n"
        f"     {pathlib.Path(sys.executable)} -m {__package__}.chat --checkpoint={folder}/ppo"
    )
    page = write_report(folder)
    log(
        f"10/10 finished in {time.time() - started:.0f} s; open {page}; to chat in a browser and "
        f"compare the stages, run `make chat` and open http://127.0.0.1:8000, or\n"
        f"     {pathlib.Path(sys.executable)} -m {__package__}.report --serve={folder}"
    )


def pretraining(config: Config, folder: pathlib.Path) -> Config:
    """Returns the pretraining config: both sources, and a dtype that is fast on this CPU."""
    model = config.model
    if model.compute_dtype == "bfloat16" and not has_bfloat16_matmul():
        model = dataclasses.replace(model, compute_dtype="float32")
    log(f"4/10 pretraining in {model.compute_dtype}; Ctrl-C saves a checkpoint and exits")
    data = DataConfig(
        sources=(
            f"{folder}/shards/docs/train={1 - config.code_weight:g}",
            f"{folder}/shards/code/train={config.code_weight:g}",
        ),
        eval_sources=(f"{folder}/shards/docs/eval", f"{folder}/shards/code/eval"),
    )
    return dataclasses.replace(config, model=model, data=data)


def log(line: str) -> None:
    print(line, flush=True)


def gather(folder: pathlib.Path) -> pipeline.Result:
    """Runs the corpus pipeline (experiments.prepare_data) on Python's documentation and source.

    It runs in this process. Near-duplicates are removed so that the training data contains no
    near-duplicate of a held-out document.
    """
    log("1/10 extracting, deduplicating and masking Python's documentation and source code")
    result = pipeline.run(
        [f"{name}=python:{name}" for name in SOURCES],
        [Read(), ExactDedup(), NearDedup(), PersonalStage()],
        str(folder / "text"),
        workers=0,
    )
    for name, counts in result.counts.items():
        rejected = (
            ", ".join(f"{rule} {found['documents']}" for rule, found in counts["rejected"].items())
            or "none"
        )
        log(f"     {name}: {counts['kept']['documents']} documents kept; removed: {rejected}")
    return result


def learn_vocabulary(config: Config, folder: pathlib.Path, result: pipeline.Result) -> Tokenizer:
    """Trains a vocabulary, extends it for code and measures both compression rates (Figure 3)."""
    path = folder / "tokenizer.tiktoken"
    if not path.exists():
        log("2/10 training a vocabulary on the documentation and extending it for source code")
        docs, code = (
            [document.text for document in source_documents(result, name)] for name in SOURCES
        )
        learned = extend.train(docs, vocab_size=config.learned_tokens)
        grown = Tokenizer(extend.grow(learned, code, num_new=config.grown_tokens))
        table = compression.compression(
            {"learned": Tokenizer(learned), "grown": grown}, {"docs": docs, "code": code}
        )
        log(compression.format_table(table))
        compression.plot(table, folder / "compression.png")
        write_json(folder / "compression.json", [row._asdict() for row in table])
        grown.save(path)
    return Tokenizer.from_file(path)


def encode(config: Config, folder: pathlib.Path, result: pipeline.Result) -> None:
    """Writes the token shards of each source, with some packages held out."""
    log("3/10 writing token shards")
    split = shards.Split(config.eval_fraction, config.train.seed)
    tokenize(
        result,
        str(folder / "shards"),
        str(folder / "tokenizer.tiktoken"),
        split=split,
        shard_tokens=1e8,
        workers=0,
        log=log,
    )
    for name in SOURCES:
        train, held_out = (
            shards.open_shards(folder / "shards" / name / side) for side in ("train", "eval")
        )
        log(
            f"     {name}: {train.tokens:,} training tokens in {train.documents} documents, "
            f"{held_out.tokens:,} held-out tokens in {held_out.documents}"
        )


def evaluate(config: Config, folder: pathlib.Path, model: ModelConfig, params, tokenizer) -> None:
    """Evaluates the model and a 3-gram model on all held-out documentation."""
    if (folder / "evaluation.json").exists():
        return
    log("5/10 evaluating the model and a 3-gram model on the held-out documentation")
    held_out = Loader(
        DataConfig(sources=(f"{folder}/shards/docs/eval",)),
        context_length=model.context_length,
        batch_size=config.train.batch_size,
        end_of_text=tokenizer.end_of_text,
        seed=0,
    )
    tokens = read_tokens(folder / "shards/docs/eval")
    ours = make_evaluator(make_objective(model, training=False), lambda batch: batch)(
        params, held_out.eval_batches(len(tokens)), bytes_per_token=held_out.bytes_per_token
    )
    counted = NgramModel.fit(
        np.concatenate([read_tokens(folder / "shards" / name / "train") for name in SOURCES]),
        vocab_size=model.vocab_size,
    )
    # Neither model has context for the first token.
    nats = -float(np.mean(counted.log_probs(tokens)[1:]))
    ngram = {
        "loss": nats,
        "perplexity": float(np.exp(nats)),
        "bits_per_byte": nats / np.log(2) / held_out.bytes_per_token,
    }
    log(
        f"     perplexity {ours['perplexity']:.2f}, 3-gram {ngram['perplexity']:.2f}; bits per "
        f"byte {ours['bits_per_byte']:.3f}, 3-gram {ngram['bits_per_byte']:.3f}"
    )
    write_json(folder / "evaluation.json", {"model": ours, "ngram": ngram, "tokens": len(tokens)})


def read_tokens(folder: pathlib.Path) -> np.ndarray:
    opened = shards.open_shards(folder)
    return np.concatenate([np.fromfile(file, opened.dtype) for file in opened.files])


def sample(config: Config, folder: pathlib.Path, model: ModelConfig, params, tokenizer) -> None:
    """Writes and prints samples: completions of PROMPTS; the empty one starts a new document."""
    if not (folder / "samples.json").exists():
        settings = {"temperature": 0.7, "top_p": 0.95, "seed": config.train.seed}
        completions = generate(
            params,
            [[tokenizer.end_of_text] + tokenizer.encode(prompt) for prompt in PROMPTS],
            config=model,
            max_new_tokens=config.sample_tokens,
            stop_ids=[tokenizer.end_of_text],
            vocab_size=tokenizer.vocab_size,
            **settings,
        )
        write_json(
            folder / "samples.json",
            [
                {"prompt": prompt, "text": tokenizer.decode(completion), **settings}
                for prompt, completion in zip(PROMPTS, completions, strict=True)
            ],
        )
    log("6/10 samples")
    for each in read_json(folder / "samples.json", kind=list):
        log("-" * 88 + f"\n{each['prompt']}{each['text']}")
    log("-" * 88)


def export(folder: pathlib.Path, model: ModelConfig, params, tokenizer: Tokenizer) -> None:
    """Exports the model to both released layouts, in the dtype of its parameters."""
    for layout in ("qwen2", "qwen"):
        save_pretrained(
            folder / "export" / layout, model, params, layout=layout, tokenizer=tokenizer
        )
    write_json(
        folder / "export.json",
        {"path": str(folder / "export"), "layout": "qwen2 and qwen", "dtype": model.param_dtype},
    )
    log(f"7/10 exported to {folder}/export: qwen2 for transformers, qwen for the Qwen code")


if __name__ == "__main__":
    flags.run(main, __doc__, {"quickstart": RECIPE, "smoke": SMOKE})
