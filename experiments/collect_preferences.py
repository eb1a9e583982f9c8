"""Collects preference pairs on responses of our own models. Report: 3.2.1.

    python -m experiments.collect_preferences --models=runs/small,runs/large --prompts=p.jsonl \\
        --temperatures=0.7,1.0 --output=runs/preferences

Each model responds to each prompt at each temperature, --settings.n times. The responses are
ranked in one of three ways:
- by people, on OUTPUT/page.html; then run the same command with --votes=FILES,
- by a program, --reward_functions=MODULE:NAME as in experiments.ppo: the higher reward is better,
- by a judge model, --judge_server=URL --judge_model=NAME, on every two responses.

Every two responses in a clear order become a pair; ties are counted and left out. Pairs are split
by prompt into OUTPUT/pairs.jsonl and OUTPUT/pairs_eval.jsonl. With --held_out_models, pairs with
their responses, on held-out prompts, are in OUTPUT/pairs_other_models.jsonl. Each row has the
model and the sampling settings of both responses. They train and evaluate a reward model:
    python -m experiments.reward_model --data.pairs=OUTPUT/pairs.jsonl \\
        --data.eval_pairs=OUTPUT/pairs_eval.jsonl,OUTPUT/pairs_other_models.jsonl ...

The report uses prompts that its tags balance (experiments.tag_prompts) and models of several sizes
and sampling strategies. A killed run resumes with the same command.
"""

import dataclasses
import pathlib
import sys

from qwen_jax import exit_codes
from qwen_jax.align.rewards import RewardFunction, columns_of, load_function
from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.data.chat.rows import Counts
from qwen_jax.errors import ConfigError, unknown_name
from qwen_jax.evaluate.pairwise.generate import answers_of, name_sources
from qwen_jax.evaluate.pairwise.judge import FLAGS, judge
from qwen_jax.evaluate.pairwise.page import compare_page
from qwen_jax.evaluate.pairwise.preferences import (
    Dropped,
    PairSplit,
    distinct,
    preferences,
    rank_by_rewards,
    split_by_prompt,
)
from qwen_jax.evaluate.pairwise.questions import Question, read_questions
from qwen_jax.evaluate.pairwise.sheet import Answer, Sheet, make_sheet, read_sheet, write_sheet
from qwen_jax.evaluate.pairwise.votes import Vote, read_votes, vote_row
from qwen_jax.evaluate.server.client import Server
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.ranges import ONE_OR_MORE, SEED, ZERO_OR_MORE, Checked, Range
from qwen_jax.utils.best_effort import keep_going
from qwen_jax.utils.files import write_text
from qwen_jax.utils.jsonl import write_rows
from qwen_jax.utils.output import print_error


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """The models, how they sample, and who ranks their responses."""

    models: tuple[str, ...] = option(
        (), "model folders, .jsonl files of responses, or URL#MODEL of servers", kind="url"
    )
    names: tuple[str, ...] = option((), "names of the models; empty: from their paths")
    prompts: str = option("", "file of prompts, or chinese300 or english300")
    output: str = option("runs/preferences", "folder for the responses, the page and the pairs")
    settings: SamplingParams = SamplingParams(max_new_tokens=512, top_p=0.9)  # report 3.2.2: top_p
    temperatures: tuple[float, ...] = option(
        (0.7, 1.0), "each model responds at each of these temperatures", ZERO_OR_MORE
    )
    max_num_seqs: int = option(
        8, "completions decoded, or requests sent to a server, at once", ONE_OR_MORE
    )
    server_key_variable: str = option(
        "OPENAI_API_KEY", "environment variable with the API key of the models' servers"
    )
    context: int | None = option(
        None, "maximum tokens of a prompt and its response; None: the longest", ONE_OR_MORE
    )
    votes: tuple[str, ...] = option((), ".jsonl files of votes that the page saved")
    reward_functions: tuple[str, ...] = option(
        (), "module:function, which ranks the responses; the rewards of several are added"
    )
    judge_server: str = option("", "OpenAI-compatible server of a judge model", kind="url")
    judge_model: str = option("", "name of the judge model; empty: the server's only one")
    judge_key_variable: str = option(
        "OPENAI_API_KEY", "environment variable with the judge server's API key"
    )
    judge_max_tokens: int = option(1024, "maximum tokens of a judge's response", ONE_OR_MORE)
    eval_fraction: float = option(
        0.1, "share of the prompts whose pairs are held out", Range(0, below=1)
    )
    held_out_models: tuple[str, ...] = option(
        (), "names of models whose responses are not in the pairs for training", kind="url"
    )
    seed: int = option(0, "random seed of the page's orders and of the split", SEED)

    def __post_init__(self):
        super().__post_init__()
        ways = [bool(self.votes), bool(self.reward_functions), bool(self.judge_server)]
        if sum(ways) > 1:
            raise ConfigError(
                "the responses are ranked in more than one way.",
                "--votes, --reward_functions, --judge_server",
                "set one of them.",
            )


@keep_going()
def main(config: Config) -> None:
    """Writes responses and a page, or responses, votes and pairs."""
    if len(config.models) < 1 or not config.prompts or not config.temperatures:
        raise ConfigError(
            "models, prompts and temperatures are needed.",
            "--models, --prompts, --temperatures",
            "set all three; see --help.",
        )
    functions = [RewardFunction(load_function(name)) for name in config.reward_functions]
    folder = pathlib.Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    dropped = Dropped()
    try:
        sheet = respond(config, folder, functions, dropped)
        votes = rank(config, folder, sheet, functions)
    except KeyboardInterrupt:
        print_error("stopped; run the same command again to resume")
        sys.exit(exit_codes.INTERRUPTED)
    if votes is not None:
        write_pairs(config, folder, sheet, votes, dropped)


def respond(
    config: Config, folder: pathlib.Path, functions: list[RewardFunction], dropped: Dropped
) -> Sheet:
    """Returns the responses of all models; writes them to answers.jsonl."""
    sources = name_sources([("--models", path) for path in config.models], config.names)
    for name in config.held_out_models:
        if name not in [source.name for source in sources]:
            known = [source.name for source in sources]
            raise unknown_name("model", name, known, "--held_out_models")
    counts = Counts()
    questions = read_questions(config.prompts, counts, columns=columns_of(functions))
    print(f"prompts: {counts}", flush=True)
    settings = [
        dataclasses.replace(config.settings, temperature=float(temperature))
        for temperature in config.temperatures
    ]
    rows: list[tuple[Question, list[Answer]]] = [(question, []) for question in questions]
    for source in sources:
        found = answers_of(
            source,
            questions,
            folder / "answers",
            settings,
            max_num_seqs=config.max_num_seqs,
            context=config.context,
            key_variable=config.server_key_variable,
            log=flags.log,
        )
        for (_, into), answers in zip(rows, found, strict=True):
            into += answers
    cut = sum(answer.finish == "length" for _, answers in rows for answer in answers)
    total = sum(len(answers) for _, answers in rows)
    sheet = make_sheet(distinct(rows, dropped), seed=config.seed)
    path = folder / "answers.jsonl"
    if path.exists() and read_sheet(path).page != sheet.page:
        raise ConfigError(
            f"{path} has other responses.", "--output", "use another folder, or delete the file."
        )
    write_sheet(sheet, path)
    print(f"{total:,} responses, {cut:,} cut at --settings.max_new_tokens", flush=True)
    return sheet


def rank(
    config: Config, folder: pathlib.Path, sheet: Sheet, functions: list[RewardFunction]
) -> list[Vote] | None:
    """Returns the votes; None if people have yet to vote, on the page that is written."""
    if config.votes:
        return read_votes(config.votes, sheet)
    if functions:
        votes = rank_by_rewards(sheet, functions)
    elif config.judge_server:
        server = Server(
            config.judge_server,
            config.judge_model,
            config.judge_key_variable,
            config.max_num_seqs,
            flags=FLAGS,
        )
        judged = judge(
            sheet,
            server,
            folder / "judge.jsonl",
            max_tokens=config.judge_max_tokens,
            log=flags.log,
        )
        print(f"judge: {judged}")
        votes = judged.votes
    else:
        page = compare_page(sheet, title="Which response is better?", seed=config.seed)
        write_text(folder / "page.html", page)
        print(f"wrote {folder / 'page.html'}; run again with --votes=FILES that it saves")
        return None
    write_rows(folder / "votes.jsonl", (vote_row(vote, sheet.page) for vote in votes))
    return votes


def write_pairs(
    config: Config, folder: pathlib.Path, sheet: Sheet, votes: list[Vote], dropped: Dropped
) -> PairSplit:
    """Writes the files of pairs, and prints how many there are and what was left out."""
    split = split_by_prompt(
        preferences(votes, sheet, dropped),
        eval_fraction=config.eval_fraction,
        held_out_models=config.held_out_models,
        seed=config.seed,
    )
    for name, pairs in (
        ("pairs", split.train),
        ("pairs_eval", split.eval),
        ("pairs_other_models", split.other_models),
    ):
        path = folder / f"{name}.jsonl"
        path.unlink(missing_ok=True)
        if pairs:
            write_rows(path, (one.row() for one in pairs))
            prompts = len({one.question.id for one in pairs})
            print(f"{path}: {len(pairs):,} pairs on {prompts:,} prompts")
    print(dropped)
    if split.unused:
        print(f"{split.unused:,} pairs of held-out models on prompts for training: not used")
    return split


RECIPE = Config()

if __name__ == "__main__":
    flags.run(main, __doc__, {"default": RECIPE})
