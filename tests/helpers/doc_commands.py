"""The shell commands of README.md, docs/ and launch/README.md, and what their placeholders become.

RULES changes a command before it runs: it shrinks sizes, names files of the test, and replaces
what needs a cluster by its dry run. EXEMPT lists what is not run, with the reason. Everything else
runs as it is written. tests/test_docs_commands.py fails if an entry of either has no use.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "launch/README.md"]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = ("", "sh", "bash", "shell", "console")
OTHER = ("json", "python", "text", "yaml")
PROGRAMS = r"python -m|pip|make|git|docker|sbatch|qwen-jax|curl"
_INLINE = re.compile(rf"(?<!`)`((?:{PROGRAMS}) [^`]+)`(?!`)")


@dataclasses.dataclass(frozen=True)
class Rule:
    """A change of the commands that a regular expression matches."""

    pattern: str
    text: str  # of re.sub
    why: str


_STEPS = "--train.num_steps=12"  # more than the warm-up of the smoke recipes
_SMOKE = rf"\1 --recipe=smoke {_STEPS}"
_WHY = {
    "here": "the repository is here",
    "size": "smaller or fewer, to take seconds",
    "named": "a placeholder of the reader's own name",
    "pattern": "a pattern, not a command",
    "cluster": "needs a cluster",
    "environment": "needs another environment than that of the tests",
}
RULES = tuple(
    Rule(pattern, text, _WHY[why])
    for pattern, text, why in (
        (r"^git clone <this repository>", f"git clone --quiet {ROOT} qwen_jax", "here"),
        (
            r"^make quickstart$",  # a test compares this with the Makefile
            "python -m experiments.quickstart --recipe=smoke --model.hidden_size=16 "
            "--model.ffn_size=32 --model.num_layers=1 --align.sft=4 --align.pmp=1 --align.reward=1",
            "size",
        ),
        (r"^make (\S+(?: \w+=\S+)*)$", rf"make -C {ROOT} -n \1", "environment"),
        (
            r"^(python -m experiments.pretrain) --recipe=1.8b",
            r"\1 --recipe=smoke --model.vocab_size=32976",
            "size",
        ),
        (r"^(python -m experiments.pretrain --recipe=smoke.*)", rf"\1 {_STEPS}", "size"),
        (r"^(python -m experiments.sft)", _SMOKE, "size"),
        (r"^(python -m experiments.(reward_model|dpo))", _SMOKE, "size"),
        (r"^(python -m experiments.(ppo|grpo|self_instruct))", r"\1 --recipe=smoke", "size"),
        (r"^(python -m experiments.(code_qwen|code_chat|math_qwen)) --recipe=7b", r"\1", "size"),
        (r"^(python -m experiments.(code_qwen|code_chat|math_qwen))", _SMOKE, "size"),
        (r"^(python -m experiments.augment_math)", r"\1 --recipe=smoke", "size"),
        (r"--choose=2000", "--choose=2", "size"),
        (r"^(python -m launch.local .*--recipe=smoke.*)", rf"\1 {_STEPS}", "size"),
        (
            r"^(python -m experiments.(?:compare_models|collect_preferences) .*--prompts=)\S+(.*)",
            r"\1prompts.jsonl\2 --settings.max_new_tokens=4",
            "size",
        ),
        (r"--port=8000", "--port=0", "environment"),
        (r"--peer_python=\S+", "--rounds=1 --steps=2", "environment"),
        (r"--topology=v5p-256", "--topology=h100-64", "environment"),  # needs libtpu
        (r"--checkpoint=FOLDER", "--checkpoint=runs/chat", "named"),
        (r"--model=FOLDER", "--model=runs/base", "named"),
        (r"--data=SHARDS", "--data=data/mine/shards/mine/eval", "named"),
        (
            r"^(python -m experiments.faults) --flip_bit=RUN_DIR$",  # others need runs/base
            r"cp -r runs/base runs/damaged && \1 --flip_bit=runs/damaged",
            "named",
        ),
        (r"\bRUN_DIR\b", "runs/base", "named"),
        (r"^(python -m experiments.pretrain --recipe=7b)$", r"\1 --help", "pattern"),
        (r"(qwen-jax |python -m )launch([ .])NAME", r"\1launch\2local --help", "pattern"),
        (r"^((?:qwen-jax|python -m) [\w.]+) \.\.\.$", r"\1 --help", "pattern"),
        (
            r"^(python -m launch.\w+ .*)-- pretrain(.*) \.\.\.$",
            r"\1--dry_run -- pretrain\2",
            "cluster",
        ),
        (
            r"^sbatch .*?launch/slurm.sbatch (.*) \.\.\.$",
            rf"bash {ROOT}/launch/slurm.sbatch --dry_run \1",
            "cluster",
        ),
    )
)
EXEMPT = {
    r"(^|&& )pip install ": "installs software",
    r"^docker build ": "needs Docker, and installs software",
    r"--votes=": "needs people's votes",
    r"--judge_server=": "needs a judge model; tests/evaluate/pairwise has a scripted one",
    r"experiments\.evaluate .*--(data|compare)=": "needs the files of benchmarks; "
    "tests/experiments/test_evaluate.py and tests/evaluate run it",
    r"lm.eval": "needs lm-eval; tests/evaluate/test_lm_eval.py runs it in test-peers",
    r"^curl ": "needs a running server; tests/test_docs_server.py runs it",
    r"(gs|s3)://": "needs a bucket; tests/train/test_bucket_runs.py runs it in test-storage",
    r" --verify$": "needs PyTorch; tests/experiments/test_convert.py runs it in test-peers",
}


@dataclasses.dataclass(frozen=True)
class Command:
    """A command as a page has it."""

    page: pathlib.Path
    text: str  # one line

    @property
    def exempt(self) -> str | None:
        """The pattern of EXEMPT that matches."""
        return next((pattern for pattern in EXEMPT if re.search(pattern, self.text)), None)

    @property
    def rules(self) -> list[Rule]:
        """The rules that change this command, each applied after the ones before it."""
        return self._apply()[1]

    @property
    def runs(self) -> str:
        """The command that stands for this one."""
        return self._apply()[0]

    def _apply(self) -> tuple[str, list[Rule]]:
        text, used = self.text, []
        for rule in RULES:
            text, count = re.subn(rule.pattern, rule.text, text)
            used += [rule] * bool(count)
        return text, used


def blocks(page: pathlib.Path) -> list[tuple[str, str]]:
    """The (language, text) pairs of the code blocks of a page."""
    return FENCE.findall(page.read_text(encoding="utf-8"))


def commands(page: pathlib.Path) -> Iterator[Command]:
    """Yields the commands of a page: the lines of its shell blocks, then those within its text."""
    for language, body in blocks(page):
        if language in SHELL:
            for line in body.replace("\\\n", " ").splitlines():
                if text := " ".join(re.sub(r"(^|\s)#.*", "", line).split()):
                    yield Command(page, text)
    for text in _INLINE.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        yield Command(page, " ".join(text.split()))
