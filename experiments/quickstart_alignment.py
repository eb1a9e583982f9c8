"""The second half of the quickstart: aligns the language model. Report: 3.1, 3.2.

Fine-tunes on questions with known answers: arithmetic in English and Chinese, and what documented
functions do. Then it trains a reward model on pairs of a correct and a wrong answer, and runs PPO.
Fine-tuning is deliberately short to leave room for PPO to improve. experiments.quickstart runs this
module:

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
from qwen_jax.ranges import ABOVE_ZERO, ONE_OR_MORE, ZERO_OR_MORE, Checked
from qwen_jax.synthetic import arithmetic
from qwen_jax.tokenizer import chatml
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.utils.files import write_json

from . import ppo, reward_model, sft

QUESTIONS = (
    "What is 7 + 2?",
    "8 + 9 等于多少？",
    "Compute 9 - 6.",
    "请计算 4 * 3。",
    "What does get of queue do?",
    "What does abs of operator do?",
)
# Model settings that a stage may change; the architecture comes from init_from.
MODEL = dataclasses.replace(sft.SMOKE.model, dropout=0.0, unroll_layers=4)


@dataclasses.dataclass(frozen=True)
class Steps(Checked, where="--align.{}"):
    """Length and learning rate of each stage. Ours: chosen to take minutes on two CPU cores."""

    sft: int = option(260, "training steps of SFT", ONE_OR_MORE)
    pmp: int = option(40, "training steps of preference model pretraining (PMP)", ONE_OR_MORE)
    reward: int = option(40, "training steps of the reward model", ONE_OR_MORE)
    ppo: int = option(120, "training steps of PPO", ONE_OR_MORE)
    value_warmup: int = option(
        10, "first steps of PPO, which train only the value model", ZERO_OR_MORE
    )
    sft_rate: float = option(3e-3, "peak learning rate of SFT", ABOVE_ZERO)
    reward_rate: float = option(5e-4, "learning rate of PMP and of the reward model", ABOVE_ZERO)
    ppo_rate: float = option(2e-4, "learning rate of the policy in PPO", ABOVE_ZERO)


def align(
    folder: pathlib.Path, result: Result, steps: Steps, *, log: Callable[[str], None]
) -> None:
    """Runs every unfinished stage, each in its own subfolder of `folder`.

    Args:
      result: result of the corpus pipeline; the questions are about its documentation.
    """
    data = folder / "questions"
    if not data.exists():
        write_questions(result, data)
    old = (data / "sums/talks.jsonl").exists()  # former name of the file
    file = "talks.jsonl" if old else "conversations.jsonl"
    log("fine-tuning on questions and answers")
    sft.main(
        sft.Config(
            model=MODEL,
            train=train_config(steps.sft, 4),
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
    log("preference model pretraining (PMP) on all pairs")
    pairs = reward_model.Config(
        model=MODEL,
        train=train_config(steps.pmp, 16),
        init_from=f"{folder}/sft",
        run_dir=f"{folder}/pmp",
        optimizer=constant_rate(steps.reward_rate, warmup_steps=steps.reward // 8),
        data=reward_model.PairData(
            pairs=(f"{data}/docs/pairs.jsonl", f"{data}/sums/pairs.jsonl"),
            epochs=None,
            context_length=96,
            eval_pairs=(f"{data}/held_out/sums/pairs.jsonl", f"{data}/held_out/docs/pairs.jsonl"),
        ),
    )
    reward_model.main(pairs)
    log("fine-tuning the reward model on sums")
    reward_model.main(
        dataclasses.replace(
            pairs,
            train=train_config(steps.reward, 16),
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
    log("PPO, with a reward of 1 for a correct sum")
    ppo.main(ppo_config(folder, steps=steps.ppo, warmup=steps.value_warmup, rate=steps.ppo_rate))


def train_config(num_steps: int, batch_size: int) -> TrainConfig:
    """Returns the config of a run with four evaluations and four checkpoints."""
    every = max(1, num_steps // 4)
    return TrainConfig(
        num_steps=num_steps,
        batch_size=batch_size,
        log_every=10,
        eval_every=every,
        eval_batches=8,
        save_every=every,
    )


def constant_rate(rate: float, **changes) -> OptimizerConfig:
    """Returns the report's AdamW with a constant learning rate and no weight decay."""
    return OptimizerConfig(
        peak_learning_rate=rate, schedule="constant", weight_decay=0.0, **changes
    )


def ppo_config(
    folder: pathlib.Path, *, steps: int, warmup: int, rate: float, batch_size: int = 32
) -> ppo.Config:
    """Returns the config of PPO on sums, from the fine-tuned model, with a verifiable reward.

    Ours: the reward model is not used. It is right on 6 of 10 held-out pairs. When it was added to
    the verifiable reward, PPO exploited it and fewer sums were correct than before.
    """
    return ppo.Config(
        model=MODEL,
        train=dataclasses.replace(train_config(steps, batch_size), eval_every=None, log_every=2),
        init_from=f"{folder}/sft",
        run_dir=f"{folder}/ppo",
        reward_functions=("qwen_jax.align.rewards:arithmetic",),
        optimizer=constant_rate(rate),
        value_optimizer=constant_rate(5 * rate),  # report 3.2.2: five times the policy's
        ppo=dataclasses.replace(
            ppo.SMOKE.ppo,
            value_warmup_steps=warmup,
            max_new_tokens=16,
            # ours: 0.1 lowers the loss on documentation from 5.4 to 4.2 at about the same
            # reward (benchmarks/results/ppo_ablations.md); other values were not compared.
            pretrain_coefficient=0.1,
            pretrain_ratio=0.125,  # ours: 4 sequences per step, for two CPU cores
        ),
        data=ppo.PPOData(
            prompts=(f"{folder}/questions/sums/prompts.jsonl",),
            max_prompt_tokens=56,
            pretrain=DataConfig(sources=(f"{folder}/shards/docs/train",)),
        ),
    )


def write_questions(result: Result, output: pathlib.Path) -> None:
    """Writes 90 % of the questions to `output`, and the held-out 10 % to `output`/held_out."""
    documented = arithmetic.documented(source_documents(result, "docs"))
    documented = documented[:300]  # ours: to train in minutes
    for name, found in (("sums", arithmetic.sums()), ("docs", documented)):
        learned, held_out = arithmetic.split(found, 0.1)
        arithmetic.write(held_out, output / "held_out" / name)
        arithmetic.write(learned, output / name)


def compare(folder: pathlib.Path, tokenizer: Tokenizer) -> str:
    """Writes each stage's responses to QUESTIONS to answers.json.

    Returns:
      A summary of the accuracy on sums before and after PPO, on PPO's prompts and held-out ones.
    """
    trained, held_out = sum_prompts(held_out=False), sum_prompts()
    records, accuracies = [{"question": text} for text in QUESTIONS], []
    for stage in ("sft", "ppo"):
        model, params = load_pretrained(folder / stage)
        # In one batch, since every batch size compiles another program.
        answers = complete(model, params, tokenizer, [*QUESTIONS, *trained, *held_out])
        for record, answer in zip(records, answers, strict=False):  # the first are theirs
            record[f"after {stage.upper()}"] = answer
        rights = rewards.arithmetic([*trained, *held_out], answers[len(QUESTIONS) :])
        accuracies.append([np.mean(rights[: len(trained)]), np.mean(rights[len(trained) :])])
    shares = np.transpose(accuracies)
    for name, (before, after) in zip(("PPO's", "held-out"), shares, strict=True):
        row = {"question": f"correct sums of {len(trained)} {name} prompts"}
        records.append(row | {"after SFT": f"{before:.1%}", "after PPO": f"{after:.1%}"})
    write_json(folder / "answers.json", records)
    return (
        "correct sums before and after PPO: {:.1%} and {:.1%} of PPO's prompts, "
        "{:.1%} and {:.1%} of the held-out prompts".format(*shares.flat)
    )


def sum_prompts(*, held_out: bool = True, number: int = 256) -> list[str]:
    """Returns `number` held-out sums, or sums of PPO's prompts."""
    return [q.text for q in arithmetic.split(arithmetic.sums(), 0.1)[held_out][:number]]


def sum_accuracy(model, params, tokenizer: Tokenizer, *, held_out: bool = True) -> float:
    """Returns the accuracy of greedy decoding on held-out sums, or on PPO's prompts."""
    prompts = sum_prompts(held_out=held_out)
    return float(np.mean(rewards.arithmetic(prompts, complete(model, params, tokenizer, prompts))))


def complete(model, params, tokenizer: Tokenizer, questions: Sequence[str]) -> list[str]:
    """Returns a greedy completion for each question."""
    prompts = [chatml.prompt([("user", text)], tokenizer) for text in questions]
    completions = generate(
        params,
        prompts,
        config=model,
        max_new_tokens=32,
        temperature=0.0,
        stop_ids=list(chatml.stop_ids(tokenizer)),
        vocab_size=tokenizer.vocab_size,
    )
    return [tokenizer.decode(completion) for completion in completions]
