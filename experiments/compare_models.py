"""Compares models blind, by people's votes or a judge model. Report: 3.3, Figure 4.

First, the models answer, and a blind page is written:
    python -m experiments.compare_models --a=runs/ppo --b=runs/sft --prompts=chinese300 \\
        --output=runs/compare
Each rater opens OUTPUT/page.html, which needs no network, ranks the answers with the keys 1 to 3
and 0 (tie), and saves a file of votes. Then the votes are counted:
    python -m experiments.compare_models --output=runs/compare --votes=ann.jsonl,bo.jsonl
A judge model behind any OpenAI-compatible server votes too, or instead of people:
    ... --judge_server=http://localhost:8000/v1 --judge_model=NAME

--a, --b and --c are model folders, .jsonl files of answers ({"id": ..., "answer": ...}, or what
experiments.generate writes), or servers as URL#MODEL. --prompts is a file of prompts with optional
"id", "category" and "reference", or one of our own sets: chinese300, english300.

OUTPUT has answers.jsonl (which model wrote which answer: keep it from raters), page.html and, with
votes, results.json, results.md and win_rates.png. A killed run resumes with the same command.

--edit=FILES writes another page instead, on which conversations for SFT are written, corrected,
kept or dropped; --edit=new begins with none. The file that it saves is read by experiments.sft.
"""

import dataclasses
import pathlib
import sys
from typing import Any

from qwen_jax import exit_codes
from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.data.chat.conversations import read_conversations
from qwen_jax.data.chat.rows import Counts
from qwen_jax.errors import ConfigError, unknown_name
from qwen_jax.evaluate.pairwise import judge
from qwen_jax.evaluate.pairwise.generate import Source, answers_of, name_sources
from qwen_jax.evaluate.pairwise.page import compare_page, edit_page
from qwen_jax.evaluate.pairwise.questions import read_questions
from qwen_jax.evaluate.pairwise.results import summarize, write_results
from qwen_jax.evaluate.pairwise.sheet import Sheet, make_sheet, read_sheet, write_sheet
from qwen_jax.evaluate.pairwise.votes import read_votes, vote_row, with_names
from qwen_jax.evaluate.server.client import Server
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.ranges import ONE_OR_MORE, SEED, Checked
from qwen_jax.utils.best_effort import keep_going
from qwen_jax.utils.files import write_text
from qwen_jax.utils.jsonl import write_rows
from qwen_jax.utils.output import print_error


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """The models, the prompts, and who judges."""

    a: str = option(
        "", "first model: a folder, a .jsonl file of answers, or URL#MODEL of a server", kind="url"
    )
    b: str = option("", "second model", kind="url")
    c: str = option("", "third model, if there is one", kind="url")
    names: tuple[str, ...] = option((), "names of the models in tables; empty: from their paths")
    prompts: str = option("", "file of prompts, or chinese300 or english300")
    output: str = option("runs/compare", "folder for the answers, the page and the results")
    settings: SamplingParams = SamplingParams(  # the report gives none for this comparison
        max_new_tokens=512, temperature=0.7, top_p=0.95
    )
    max_num_seqs: int = option(
        8, "completions decoded, or requests sent to a server, at once", ONE_OR_MORE
    )
    server_key_variable: str = option(
        "OPENAI_API_KEY", "environment variable with the API key of the models' servers"
    )
    context: int | None = option(
        None, "maximum tokens of a prompt and its answer; None: the longest supported", ONE_OR_MORE
    )
    seed: int = option(0, "random seed of the order in which raters see the answers", SEED)
    title: str = option("Which answer is better?", "heading of the page", kind="text")
    votes: tuple[str, ...] = option((), ".jsonl files of votes that the page saved")
    baseline: str = option("", "model that the others are compared with; empty: the last one")
    judge_server: str = option("", "OpenAI-compatible server of a judge model", kind="url")
    judge_model: str = option("", "name of the judge model; empty: the server's only one")
    judge_key_variable: str = option(
        "OPENAI_API_KEY", "environment variable with the judge server's API key"
    )
    judge_max_tokens: int = option(1024, "maximum tokens of a judge's response", ONE_OR_MORE)
    edit: tuple[str, ...] = option((), "files of conversations to edit on a page; or: new")

    def __post_init__(self):
        super().__post_init__()
        if self.settings.n != 1:
            raise ConfigError(
                f"--settings.n={self.settings.n}: a model gives one answer to each prompt.",
                "--settings.n",
                "leave it at 1; experiments.collect_preferences compares several answers.",
            )


@keep_going()
def main(config: Config) -> None:
    """Writes the page; with votes or a judge, counts them."""
    folder = pathlib.Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    if config.edit:
        write_edit_page(config, folder)
        return
    try:
        sheet = make(config, folder) if config.a or config.b else existing(folder)
        if config.votes or config.judge_server:
            count(config, folder, sheet)
    except KeyboardInterrupt:
        print_error("stopped; run the same command again to resume")
        sys.exit(exit_codes.INTERRUPTED)


def make(config: Config, folder: pathlib.Path) -> Sheet:
    """Returns the sheet of the models' answers; writes it and the page."""
    given = [(f"--{name}", getattr(config, name)) for name in "abc" if getattr(config, name)]
    if len(given) < 2 or not config.prompts:
        raise ConfigError(
            "two models and the prompts are needed.",
            "--a, --b, --prompts",
            "set all three; or, to count votes on an earlier page, neither of them.",
        )
    sources = name_sources(given, config.names)
    counts = Counts()
    questions = read_questions(config.prompts, counts)
    print(f"prompts: {counts}", flush=True)
    answers = [_answers(config, source, questions, folder / "answers") for source in sources]
    rows = zip(questions, zip(*answers, strict=True), strict=True)
    sheet = make_sheet(((question, row) for question, row in rows), seed=config.seed)
    refuse_other(folder / "answers.jsonl", sheet)
    write_sheet(sheet, folder / "answers.jsonl")
    write_text(folder / "page.html", compare_page(sheet, title=config.title, seed=config.seed))
    for source in sources:
        mine = [a for entry in sheet.entries for a in entry.answers if a.model == source.name]
        cut, empty = sum(a.finish == "length" for a in mine), sum(not a.text.strip() for a in mine)
        print(f"{source.name}: {len(mine):,} answers, {cut:,} cut at the limit, {empty:,} empty")
    print(f"wrote {folder / 'page.html'} for raters, and {folder / 'answers.jsonl'}, its key")
    return sheet


def _answers(config: Config, source: Source, questions: list, folder: pathlib.Path) -> list:
    found = answers_of(
        source,
        questions,
        folder,
        [config.settings],
        max_num_seqs=config.max_num_seqs,
        context=config.context,
        key_variable=config.server_key_variable,
        log=flags.log,
    )
    return [answer for (answer,) in found]


def refuse_other(path: pathlib.Path, sheet: Sheet) -> None:
    """
    Raises:
      ConfigError: the file is the key of another page, which raters may have.
    """
    if path.exists() and (found := read_sheet(path).page) != sheet.page:
        raise ConfigError(
            f"{path} is the key of another page, {found!r}, for other answers.",
            "--output",
            "use another folder; or delete the file, if nobody votes on its page.",
        )


def existing(folder: pathlib.Path) -> Sheet:
    """Returns the sheet of an earlier command."""
    if not (folder / "answers.jsonl").is_file():
        raise ConfigError(
            f"no models are set, and {folder} has no answers.jsonl.",
            "--a, --b, --prompts, --output",
            "set two models and the prompts, or the --output of an earlier command.",
        )
    return read_sheet(folder / "answers.jsonl")


def count(config: Config, folder: pathlib.Path, sheet: Sheet) -> None:
    """Reads the votes, queries the judge, and writes and prints the results."""
    baseline = config.baseline or sheet.models[-1]
    if baseline not in sheet.models:
        raise unknown_name("baseline", baseline, sheet.models, "--baseline")
    people = with_names(read_votes(config.votes, sheet), sheet) if config.votes else []
    votes, judged = list(people), None
    if config.judge_server:
        server = Server(
            config.judge_server,
            config.judge_model,
            config.judge_key_variable,
            config.max_num_seqs,
            flags=judge.FLAGS,
        )
        found = judge.judge(
            sheet,
            server,
            folder / "judge.jsonl",
            max_tokens=config.judge_max_tokens,
            log=flags.log,
        )
        write_rows(folder / "judge_votes.jsonl", (vote_row(v, sheet.page) for v in found.votes))
        named = with_names(found.votes, sheet)
        judged = describe_judge(found, judge.agreement_with(named, people))
        votes = people or named  # a judge does not vote among people
    results, text, rates = summarize(votes, baseline, judge=judged)
    write_results(folder, results, text, rates)
    print(text)
    print(f"wrote {folder / 'results.json'}, results.md and win_rates.png")


def describe_judge(found: judge.Judged, agreed: tuple[int, float | None]) -> dict[str, Any]:
    """Returns the judge's part of results.json."""
    counts = {
        name: getattr(found, name)
        for name in ("pairs", "consistent", "disagreed", "unparsable", "first", "decided")
    }
    model = found.votes[0].rater.removeprefix("judge ") if found.votes else "without a verdict"
    return counts | {
        "model": model,
        "counts": str(found),
        "compared": agreed[0],
        "agreement": agreed[1],
    }


def write_edit_page(config: Config, folder: pathlib.Path) -> None:
    """Writes the page on which conversations are edited."""
    counts = Counts()
    found = [] if config.edit == ("new",) else list(read_conversations(config.edit, counts))
    write_text(folder / "conversations.html", edit_page(found, title="Conversations"))
    print(f"conversations: {counts}")
    print(f"wrote {folder / 'conversations.html'}")


RECIPE = Config()

if __name__ == "__main__":
    flags.run(main, __doc__, {"default": RECIPE})
