"""What the filters of self-instruct remove and keep, with a noisy oracle in place of the model.

    python -m benchmarks.agents.noisy_self_instruct --samples=1000 --noise=0.4

A pipeline test and no result of self-instruct: the writer is a program that knows what it spoiled
(qwen_jax/synthetic/tool_use/noisy_writer.py). For each reason of a rejection: its precision, the
share of its rejections that were spoiled. For each kind of noise: its recall, the share that the
filters removed; of kinds that no rule can see, it should be near 0.
"""

import argparse
import collections
import pathlib
import tempfile

from qwen_jax.synthetic.response_cache import ResponseCache
from qwen_jax.synthetic.sample_rules import Rules
from qwen_jax.synthetic.self_instruct import SelfInstruct, Settings
from qwen_jax.synthetic.tool_use.noisy_writer import (
    QUESTION_FAULTS,
    TRANSCRIPT_FAULTS,
    NoisyWriter,
)
from qwen_jax.utils.append_only import AppendOnly


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--noise", type=float, default=0.4)
    parser.add_argument("--novelty", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    writer = NoisyWriter(noise=arguments.noise, seed=arguments.seed)
    settings = Settings(
        samples=arguments.samples, rounds=60, instruction_lists=0, question_lists=16
    )
    rules = Rules(novelty=arguments.novelty)
    with tempfile.TemporaryDirectory() as folder:
        with AppendOnly(pathlib.Path(folder) / "responses.jsonl", {}) as file:
            cache = ResponseCache(file, lambda: writer, seed=arguments.seed)
            generator = SelfInstruct(settings, rules, cache, [], writer.seeds, writer.tools)
            for _ in generator.rounds():
                pass
    report(generator, writer)


def report(generator: SelfInstruct, writer: NoisyWriter) -> None:
    """Prints tables in Markdown."""
    kept = {sample.question for sample in generator.samples}
    reasons: dict[tuple[str, str], collections.Counter] = {}
    rejected = set()
    for one in generator.rejected:
        stage = one["location"].split(", ")[1].split()[0]
        text = one["text"].partition(" (Rouge-L")[0]
        question = text.partition(" -> ")[0] if stage == "transcripts" else text
        counter = reasons.setdefault((stage, one["reason"]), collections.Counter())
        counter[writer.is_spoiled(question)] += 1
        rejected.add(question)
    print("| stage | rule | rejected | of these spoiled | precision |\n|---|---|---|---|---|")
    for (stage, reason), counter in sorted(reasons.items(), key=lambda pair: -pair[1].total()):
        share = counter[True] / counter.total()
        print(f"| {stage} | {reason} | {counter.total()} | {counter[True]} | {share:.3f} |")
    print("\n| stage | spoiled by | a rule can see it | spoiled | removed | recall |")
    print("|---|---|---|---|---|---|")
    for stage, visible, faults in (
        ("questions", QUESTION_FAULTS, writer.question_faults),
        ("transcripts", TRANSCRIPT_FAULTS, writer.transcript_faults),
    ):
        for fault, can_see in visible.items():
            own = [question for question, found in faults.items() if found == fault]
            gone = sum(question in rejected for question in own)
            recall = f"{gone / len(own):.3f}" if own else "-"
            sees = "yes" if can_see else "no"
            print(f"| {stage} | {fault} | {sees} | {len(own)} | {gone} | {recall} |")
    spoiled = sum(map(writer.is_spoiled, kept))
    asked = len(writer.question_faults)
    print(f"\n{asked} questions, {len(kept)} samples kept ({len(kept) / asked:.1%}),", end=" ")
    print(f"{spoiled} of them spoiled ({spoiled / len(kept):.1%}).")


if __name__ == "__main__":
    main()
