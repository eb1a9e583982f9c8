"""experiments.compare_models, from models to results, and what it refuses."""

import dataclasses
import json

import pytest

from experiments import compare_models
from experiments.compare_models import Config
from qwen_jax.data.chat.conversations import read_conversations
from qwen_jax.data.chat.rows import Counts
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.evaluate.pairwise.sheet import read_sheet
from qwen_jax.evaluate.pairwise.votes import vote_row
from qwen_jax.inference.sampling import SamplingParams
from tests.helpers import tiny_checkpoint
from tests.helpers.judged import vote_by
from tests.helpers.scripted_server import scripted


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def config(tmp_path):
    """Two files of answers to six questions."""
    questions = [{"id": f"q{i}", "category": "ab"[i % 2], "prompt": f"{i}?"} for i in range(6)]
    for name in ("first", "second"):
        write(tmp_path / f"{name}.jsonl", [{"id": q["id"], "answer": f"{name[0]} {q['id']}"}
                                           for q in questions])  # fmt: skip
    return Config(
        a=f"{tmp_path}/first.jsonl",
        b=f"{tmp_path}/second.jsonl",
        prompts=write(tmp_path / "q.jsonl", questions),
        output=f"{tmp_path}/out",
    )


def votes_of(config, rater, better, path):
    sheet = read_sheet(f"{config.output}/answers.jsonl")
    return write(path, [vote_row(vote, sheet.page) for vote in vote_by(sheet, rater, better)])


def test_compare_models_counts_the_votes_of_two_raters(config, tmp_path, capsys):
    compare_models.main(config)
    page = (tmp_path / "out/page.html").read_text()
    assert "first.jsonl" not in page and '"first"' not in page
    ann = votes_of(config, "ann", lambda e, a: a.model == "first", tmp_path / "a.jsonl")
    bo = votes_of(config, "bo", lambda e, a: a.model == "first" and e.question.category == "a",
                  tmp_path / "b.jsonl")  # fmt: skip
    later = Config(output=config.output, votes=(ann, bo))
    compare_models.main(later)
    shown = capsys.readouterr().out
    assert "| first | second | overall | 6 | 12 | 75.0" in shown
    assert "Elo" in shown and "bo: 50.0% of 6, Cohen's kappa 0.000" in shown
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["baseline"] == "second" and results["votes"] == 12
    assert results["elo"]["first"][0] > 1000 and results["agreement"]["raw"] == 0.5
    assert (tmp_path / "out/win_rates.png").stat().st_size > 5000
    compare_models.main(dataclasses.replace(later, baseline="first"))
    assert "| second | first | overall | 6 | 12 | 0.0" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="unknown baseline 'third'"):
        compare_models.main(dataclasses.replace(later, baseline="third"))


def test_compare_models_reports_a_judge_next_to_people(config, tmp_path, capsys):
    compare_models.main(config)

    def prefer_first(messages):
        text = messages[-1]["content"]
        return f"[[{'A' if text.index('f q') < text.index('s q') else 'B'}]]"

    ann = votes_of(config, "ann", lambda e, a: (a.model == "first") == (e.question.id != "q0"),
                   tmp_path / "a.jsonl")  # fmt: skip
    with scripted(prefer_first) as server:
        judged = dataclasses.replace(config, judge_server=server.url)
        compare_models.main(judged)
        assert "| first | second | overall | 6 | 6 | 100.0" in capsys.readouterr().out
        compare_models.main(dataclasses.replace(judged, votes=(ann,)))
        assert len(server.requests) == 12  # the second command repeats none
    shown = capsys.readouterr().out
    assert "Agreement with people's votes: 83.3% of 6" in shown and "| 83.3" in shown
    assert json.loads((tmp_path / "out/results.json").read_text())["judge"]["consistent"] == 6
    again = dataclasses.replace(config, votes=(f"{tmp_path}/out/judge_votes.jsonl",))
    compare_models.main(again)
    assert "1 raters (judge scripted 6)" in capsys.readouterr().out


def test_compare_models_samples_from_a_model_and_resumes(config, tmp_path, capsys):
    folder = tiny_checkpoint.write(tmp_path / "tiny", num_layers=1, context_length=256)
    config = dataclasses.replace(
        config,
        b=str(folder),
        settings=SamplingParams(max_new_tokens=6, temperature=0.5, seed=3),
    )
    compare_models.main(config)
    sheet = read_sheet(f"{config.output}/answers.jsonl")
    answers = [a for entry in sheet.entries for a in entry.answers if a.model == "tiny"]
    assert len(answers) == 6 and all(len(a.text) == 6 and a.finish == "length" for a in answers)
    assert answers[0].sampling["temperature"] == 0.5 and answers[0].sampling["seed"] == 3
    assert "tiny: 6 answers, 6 cut at the limit" in capsys.readouterr().out
    compare_models.main(config)  # nothing is sampled again
    assert "compiling" not in capsys.readouterr().out
    assert read_sheet(f"{config.output}/answers.jsonl") == sheet
    other = dataclasses.replace(config, settings=SamplingParams(max_new_tokens=5))
    with pytest.raises(ConfigError, match="max_new_tokens: was 6, now 5"):
        compare_models.main(other)
    long = SamplingParams(max_new_tokens=1020)
    with pytest.raises(DataError, match="exceed the context of 1024"):
        compare_models.main(dataclasses.replace(config, output=f"{tmp_path}/new", settings=long))


def test_compare_models_refuses_to_replace_a_page_that_raters_may_have(config, tmp_path):
    compare_models.main(config)
    with pytest.raises(ConfigError, match="the key of another page"):
        compare_models.main(dataclasses.replace(config, seed=1))
    with pytest.raises(ConfigError, match="two models and the prompts"):
        compare_models.main(dataclasses.replace(config, b=""))
    with pytest.raises(ConfigError, match="no models are set, and .*empty has no answers.jsonl"):
        compare_models.main(Config(output=f"{tmp_path}/empty", votes=("v.jsonl",)))
    with pytest.raises(ConfigError, match="settings.n=2"):
        Config(settings=SamplingParams(max_new_tokens=2, n=2))


def test_edit_writes_a_page_of_conversations(tmp_path, capsys):
    path = write(tmp_path / "c.jsonl", [{"instruction": "Add 1 and 2.", "output": "3"}])
    compare_models.main(Config(edit=(path,), output=str(tmp_path)))
    assert "Add 1 and 2." in (tmp_path / "conversations.html").read_text()
    assert "conversations: 1 kept" in capsys.readouterr().out
    compare_models.main(Config(edit=("new",), output=str(tmp_path)))
    assert "Add 1 and 2." not in (tmp_path / "conversations.html").read_text()
    row = {"id": "1", "decision": "dropped", "weight": 0, "messages":
           [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}  # fmt: skip
    kept = row | {"id": "2", "decision": "kept"}
    del kept["weight"]
    counts = Counts()
    found = list(read_conversations([write(tmp_path / "saved.jsonl", [row, kept])], counts))
    assert len(found) == 1 and counts.skipped.total() == 1
