"""The second half of the quickstart: from a language model to one that answers. Report: 3.1, 3.2.

Fine-tunes on questions whose answers are known (sums in English and Chinese, and what functions of
this computer's documentation do), learns a reward from pairs of a right and a wrong answer, and
reinforces with PPO. The fine-tuning is kept short, so that there is something left to reinforce.
A part of another page:

    python -m experiments.quickstart --align.ppo=240
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from qwen_jax.align import rewards
from qwen_jax.config import DataConfig, OptimizerConfig, TrainConfig, option
from qwen_jax.corpus.output.tokenize import source_documents
from qwen_jax.corpus.pipeline import Result
from qwen_jax.inference.decode import generate
from qwen_jax.pretrained.huggingface import load_pretrained
from qwen_jax.synthetic import arithmetic
from qwen_jax.tokenizer import chatml
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.utils.files import write_json

from . import ppo, reward_model, sft

ASKED = (
    "What is 7 + 2?",
    "8 + 9 等于多少？",
    "Compute 9 - 6.",
    "请计算 4 * 3。",
    "What does get of queue do?",
    "What does abs of operator do?",
)
MODEL = dataclasses.replace(sft.SMOKE.model, dropout=0.0, unroll_layers=4)  # its own stage's alone


@dataclasses.dataclass(frozen=True)
class Steps:
    """How long each stage is, and the learning rate it takes. Ours:
    what two CPU cores do in minutes."""

    sft: int = option(260, "steps of fine-tuning")
    pmp: int = option(40, "steps of preference model pretraining")
    reward: int = option(40, "steps of the reward model")
    ppo: int = option(120, "steps of PPO")
    value_warmup: int = option(10, "of them, for the value model alone")
    sft_rate: float = option(3e-3, "learning rate at its peak")
    reward_rate: float = option(5e-4, "of both stages of the reward model")
    ppo_rate: float = option(2e-4, "of the policy")


def align(
    folder: pathlib.Path, result: Result, steps: Steps, *, log: Callable[[str], None]
) -> None:
    """Runs every stage that is not done, each in its own folder below `folder`.

    Args:
      result: of the data plan; questions are about its documentation.
    """
    data = folder / "questions"
    if not data.exists():
        ask(result, data)
    old = (data / "sums/talks.jsonl").exists()  # of runs before the file was renamed
    file = "talks.jsonl" if old else "conversations.jsonl"
    log("fine-tuning on questions with their answers")
    sft.main(
        sft.Config(
            model=MODEL,
            train=trained(steps.sft, 4),
            init_from=str(folder),
            run_dir=f"{folder}/sft",
            optimizer=OptimizerConfig(
                peak_learning_rate=steps.sft_rate, warmup_steps=steps.sft // 15, weight_decay=0.0
            ),
            data=sft.SFTData(
                conversations=(f"{data}/sums/{file}", f"{data}/docs/{file}"),
                eval_conversations=(f"{data}/held_out/sums/{file}",),
            ),
        )
    )
    log("preference model pretraining, on pairs of both kinds")
    pairs = reward_model.Config(
        model=MODEL,
        train=trained(steps.pmp, 16),
        init_from=f"{folder}/sft",
        run_dir=f"{folder}/pmp",
        optimizer=at(steps.reward_rate, warmup_steps=steps.reward // 8),
        data=reward_model.PairData(
            pairs=(f"{data}/docs/pairs.jsonl", f"{data}/sums/pairs.jsonl"),
            epochs=None,
            context_length=96,
            eval_pairs=(f"{data}/held_out/sums/pairs.jsonl", f"{data}/held_out/docs/pairs.jsonl"),
        ),
    )
    reward_model.main(pairs)
    log("the reward model, fine-tuned on sums")
    reward_model.main(
        dataclasses.replace(
            pairs,
            train=trained(steps.reward, 16),
            init_from=f"{folder}/pmp",
            run_dir=f"{folder}/reward",
            data=dataclasses.replace(
                pairs.data,
                pairs=(f"{data}/sums/pairs.jsonl",),
                context_length=64,
                eval_pairs=(f"{data}/held_out/sums/pairs.jsonl",),
            ),
        )
    )
    log("PPO: a reward of 1 for a sum that is right")
    ppo.main(ppo_config(folder, steps=steps.ppo, warmup=steps.value_warmup, rate=steps.ppo_rate))


def trained(num_steps: int, batch_size: int) -> TrainConfig:
    """A run that is looked at and saved four times."""
    every = max(1, num_steps // 4)
    return TrainConfig(
        num_steps=num_steps,
        batch_size=batch_size,
        log_every=10,
        eval_every=every,
        eval_batches=8,
        save_every=every,
    )


def at(rate: float, **changes) -> OptimizerConfig:
    """AdamW as everywhere in the report, at a constant rate."""
    return OptimizerConfig(
        peak_learning_rate=rate, schedule="constant", weight_decay=0.0, **changes
    )


def ppo_config(
    folder: pathlib.Path, *, steps: int, warmup: int, rate: float, batch_size: int = 32
) -> ppo.Config:
    """PPO on sums, from the fine-tuned model, with the reward that can be checked.

    Ours: the small reward model, right in 7 of 10 held-out pairs, was tried as well, added to it;
    PPO then found what it likes, and fewer sums were right than before.
    """
    return ppo.Config(
        model=MODEL,
        train=dataclasses.replace(trained(steps, batch_size), eval_every=None, log_every=2),
        init_from=f"{folder}/sft",
        run_dir=f"{folder}/ppo",
        reward_functions=("qwen_jax.align.rewards:arithmetic",),
        optimizer=at(rate),
        value_optimizer=at(5 * rate),  # report 3.2.2: five times the policy's
        ppo=dataclasses.replace(
            ppo.SMOKE.ppo,
            value_warmup_steps=warmup,
            max_new_tokens=16,
            # ours: 0.1 brings the loss on documentation from 5.4 back to 4.2 at about the same
            # reward (benchmarks/results/ppo_ablations.md); other values were not compared.
            pretrain_coefficient=0.1,
            pretrain_ratio=0.125,  # ours: 4 rows a step, for two CPU cores
        ),
        data=ppo.PPOData(
            prompts=(f"{folder}/questions/sums/prompts.jsonl",),
            max_prompt_tokens=56,
            pretrain=DataConfig(sources=(f"{folder}/shards/docs/train",)),
        ),
    )


def ask(result: Result, output: pathlib.Path) -> None:
    """Writes questions and what is held out of them."""
    documented = arithmetic.documented(source_documents(result, "docs"))[
        :300
    ]  # ours: what minutes suffice for
    for name, found in (("sums", arithmetic.sums()), ("docs", documented)):
        learned, held_out = arithmetic.split(found, 0.1)
        arithmetic.write(held_out, output / "held_out" / name)
        arithmetic.write(learned, output / name)


def compare(folder: pathlib.Path, tokenizer: Tokenizer) -> str:
    """Answers of each stage to some questions, in answers.json. Returns a sentence: the shares of
    sums that each gets right, greedily, of those that PPO was asked and of those held out."""
    shown, asked, held_out = [{"question": text} for text in ASKED], [], []
    for stage in ("sft", "ppo"):
        model, params = load_pretrained(folder / stage)
        for row, answer in zip(shown, complete(model, params, tokenizer, ASKED), strict=True):
            row[f"after {stage.upper()}"] = answer
        asked.append(share_right(model, params, tokenizer, held_out=False))
        held_out.append(share_right(model, params, tokenizer))
    write_json(folder / "answers.json", shown)
    return (
        "sums that are right, before and after PPO: {:.1%} and {:.1%} of those it was asked, "
        "{:.1%} and {:.1%} of those held out".format(*asked, *held_out)
    )


def share_right(
    model, params, tokenizer: Tokenizer, *, held_out: bool = True, number: int = 256
) -> float:
    """The share of sums, held out or not, whose most probable answer is right."""
    asked = [q.text for q in arithmetic.split(arithmetic.sums(), 0.1)[held_out][:number]]
    return float(np.mean(rewards.arithmetic(asked, complete(model, params, tokenizer, asked))))


def complete(model, params, tokenizer: Tokenizer, asked: Sequence[str]) -> list[str]:
    """The most probable answer to each question."""
    prompts = [chatml.prompt([("user", text)], tokenizer) for text in asked]
    rows = generate(
        params,
        prompts,
        config=model,
        max_new_tokens=32,
        temperature=0.0,
        stop_ids=list(chatml.stop_ids(tokenizer)),
        vocab_size=tokenizer.vocab_size,
    )
    return [tokenizer.decode(row) for row in rows]
