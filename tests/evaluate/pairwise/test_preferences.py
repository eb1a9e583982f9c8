"""Preference pairs: from responses and votes to files that the reward model trains on."""

import dataclasses
import json

import jax
import pytest

from experiments import collect_preferences, reward_model
from experiments.collect_preferences import Config
from qwen_jax.data.chat.pairs import read_pairs
from qwen_jax.data.chat.rows import Counts
from qwen_jax.errors import ConfigError, DataError, QwenJaxError
from qwen_jax.evaluate.pairwise.preferences import (
    Dropped,
    chatml_text,
    distinct,
    preferences,
    split_by_prompt,
)
from qwen_jax.evaluate.pairwise.questions import Question
from qwen_jax.evaluate.pairwise.sheet import Answer, read_sheet
from qwen_jax.evaluate.pairwise.votes import vote_row
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.model.spec import init_params
from qwen_jax.pretrained.from_run import save_run
from tests.helpers import alignment
from tests.helpers.judged import sheet_of, vote_by
from tests.helpers.tiny_checkpoint import CONFIG, TOKENIZER


def vowels(text: str) -> float:
    return sum(text.count(letter) for letter in "aeiou") / max(len(text), 1)


def by_vowels(prompts, completions, bonus):
    """A reward function: the share of vowels, and a bonus of the prompt's row."""
    return [vowels(text) + (extra or 0) for text, extra in zip(completions, bonus, strict=True)]


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def config(tmp_path):
    """Three files of responses to 30 prompts; some are equal, empty, or tied."""
    prompts = [{"id": f"q{i}", "prompt": f"prompt {i}", "bonus": 0.0} for i in range(30)]
    texts = {"one": "aaa{}", "two": "bbb{}", "three": "abb{}"}
    for name, text in texts.items():
        rows = [{"id": f"q{i}", "answer": text.format(i)} for i in range(30)]
        rows[0]["answer"] = "equal"
        rows[1]["answer"] = "" if name == "one" else f"b{name[1]}c"
        write(tmp_path / f"{name}.jsonl", rows)
    return Config(
        models=tuple(f"{tmp_path}/{name}.jsonl" for name in texts),
        prompts=write(tmp_path / "prompts.jsonl", prompts),
        output=f"{tmp_path}/out",
        temperatures=(1.0,),
        eval_fraction=0.3,
    )


def test_collect_preferences_by_a_reward_function(config, tmp_path, capsys):
    reward = ("tests.evaluate.pairwise.test_preferences:by_vowels",)
    collect_preferences.main(dataclasses.replace(config, reward_functions=reward))
    shown = capsys.readouterr().out
    # q0 has one response that all repeat; of q1, one is empty and "bwc" and "bhc" have no vowels.
    assert "1 empty responses, 2 that repeat another, 1 prompts with fewer than two" in shown
    assert "different ones, 1 ties" in shown
    train, held = rows_of(tmp_path / "out/pairs.jsonl"), rows_of(tmp_path / "out/pairs_eval.jsonl")
    assert len(train) + len(held) == 28 * 3 and len(held) > 9
    assert not {row["question_id"] for row in train} & {row["question_id"] for row in held}
    for row in train:
        assert vowels(row["chosen"]) > vowels(row["rejected"])
        assert row["chosen_from"]["model"] in ("one", "three") and row["votes"] == [1, 0]
    counts = Counts()
    found = list(read_pairs([tmp_path / "out/pairs.jsonl"], counts))
    assert len(found) == len(train) and found[0].prompt[-1][1].startswith("prompt ")


def test_collect_preferences_keeps_held_out_models_apart(config, tmp_path, capsys):
    reward = ("tests.evaluate.pairwise.test_preferences:by_vowels",)
    config = dataclasses.replace(config, reward_functions=reward, held_out_models=("three",))
    collect_preferences.main(config)
    train, held, other = (
        rows_of(tmp_path / f"out/{name}.jsonl")
        for name in ("pairs", "pairs_eval", "pairs_other_models")
    )
    models = lambda row: {row["chosen_from"]["model"], row["rejected_from"]["model"]}  # noqa: E731
    assert all(models(row) == {"one", "two"} for row in train + held)
    assert all("three" in models(row) for row in other) and len(other) == 2 * len(held)
    assert {row["question_id"] for row in other} == {row["question_id"] for row in held}
    assert f"{2 * len(train)} pairs of held-out models" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="unknown model 'four'"):
        collect_preferences.main(dataclasses.replace(config, held_out_models=("four",)))


def test_collect_preferences_by_people(config, tmp_path, capsys):
    collect_preferences.main(config)
    assert "page.html; run again with --votes" in capsys.readouterr().out
    assert not (tmp_path / "out/pairs.jsonl").exists()
    sheet = read_sheet(tmp_path / "out/answers.jsonl")
    files = [
        write(tmp_path / f"{rater}.jsonl",
              [vote_row(v, sheet.page) for v in vote_by(sheet, rater, better)])
        for rater, better in (("ann", lambda e, a: vowels(a.text)), ("bo", lambda e, a: 0),
                              ("cy", lambda e, a: a.model == "two"))
    ]  # fmt: skip
    collect_preferences.main(dataclasses.replace(config, votes=tuple(files)))
    rows = rows_of(tmp_path / "out/pairs.jsonl")
    # one and two split ann and cy; three is above two for ann, below for cy; one above three.
    assert {(r["chosen_from"]["model"], r["rejected_from"]["model"]) for r in rows} <= {
        ("one", "three"), ("two", "three")}  # fmt: skip
    assert "ties" in capsys.readouterr().out


def test_collect_preferences_refuses_two_ways_and_no_model(config):
    with pytest.raises(ConfigError, match="more than one way"):
        dataclasses.replace(config, votes=("v",), judge_server="http://x")
    with pytest.raises(ConfigError, match="models, prompts and temperatures"):
        collect_preferences.main(dataclasses.replace(config, models=()))
    bad = ("tests.evaluate.pairwise.test_preferences:vowels",)
    with pytest.raises(QwenJaxError, match="cannot be called"):
        collect_preferences.main(dataclasses.replace(config, reward_functions=bad))


def test_preferences_follow_the_majority_and_count_ties():
    sheet = sheet_of(("one", "two"), 3)
    better = {"r1": "one", "r2": "one", "r3": "two"}
    votes = [
        vote
        for rater, model in better.items()
        for vote in vote_by(sheet, rater, lambda e, a, model=model: a.model == model)
    ]
    dropped = Dropped()
    found = preferences(votes, sheet, dropped)
    assert [(one.chosen.model, one.votes) for one in found] == [("one", (2, 1))] * 3
    assert preferences(votes[3:], sheet, dropped) == [] and dropped.ties == 3
    with pytest.raises(DataError, match="none of 0 pairs"):
        split_by_prompt([], eval_fraction=0.1)


def test_distinct_counts_what_it_leaves_out():
    dropped = Dropped()
    question = Question("q", "x", (("user", "u"),))
    answers = [Answer("a", "x"), Answer("b", "x"), Answer("c", " "), Answer("d", "y")]
    ((_, kept),) = distinct([(question, answers), (question, answers[:3])], dropped)
    assert [a.model for a in kept] == ["a", "d"]
    assert (dropped.repeated, dropped.empty, dropped.questions) == (2, 2, 1)


def test_chatml_text_is_what_rewards_get_in_training():
    from qwen_jax.tokenizer import chatml

    for turns in ((("user", "a"),), (("system", "s"), ("user", "a"))):
        question = Question("q", "x", turns)
        tokens = chatml.prompt(turns, TOKENIZER).tolist()
        assert chatml_text(question) == TOKENIZER.decode(tokens)


@pytest.mark.slow  # samples from three models, and trains a reward model
def test_a_reward_model_learns_a_scripted_rater(tmp_path, capsys):
    """On held-out prompts, and on responses of a model that it was not trained on."""
    size = dataclasses.replace(CONFIG, num_layers=1, context_length=192)
    for number, name in enumerate(("small", "large", "other")):
        model = dataclasses.replace(size, num_layers=1 + (name == "large"))
        params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(number))
        letters = slice(ord("a"), ord("z") + 1)
        head = jax.numpy.zeros_like(params.head).at[:, letters].set(params.head[:, letters] * 2)
        save_run(tmp_path / name, model, params.replace(head=head), tokenizer=TOKENIZER)
    prompts = [{"id": f"q{i}", "prompt": f"Say {i} words."} for i in range(150)]
    config = Config(
        models=tuple(str(tmp_path / name) for name in ("small", "large", "other")),
        prompts=write(tmp_path / "prompts.jsonl", prompts),
        output=f"{tmp_path}/out",
        settings=SamplingParams(max_new_tokens=16, top_p=0.9),
        temperatures=(0.7, 1.0),
        max_num_seqs=16,
        eval_fraction=0.25,
        held_out_models=("other",),
    )
    collect_preferences.main(config)
    sheet = read_sheet(tmp_path / "out/answers.jsonl")
    rater = [vote_row(v, sheet.page) for v in vote_by(sheet, "s", lambda e, a: vowels(a.text))]
    votes = write(tmp_path / "votes.jsonl", rater)
    collect_preferences.main(dataclasses.replace(config, votes=(votes,)))
    found = {row["chosen_from"]["temperature"] for row in rows_of(tmp_path / "out/pairs.jsonl")}
    assert found == {0.7, 1.0}
    base = dataclasses.replace(size, initializer_range=0.02)
    params = jax.jit(init_params, static_argnums=0)(base, jax.random.key(9))
    save_run(tmp_path / "base", base, params, tokenizer=TOKENIZER)
    stage = alignment.config_of(
        reward_model,
        tmp_path,
        tmp_path / "reward",
        data={
            "pairs": (f"{tmp_path}/out/pairs.jsonl",),
            "eval_pairs": (
                f"{tmp_path}/out/pairs_eval.jsonl",
                f"{tmp_path}/out/pairs_other_models.jsonl",
            ),
        },
        train={"num_steps": 120, "eval_every": 120, "batch_size": 16, "eval_batches": 12},
    )
    print(alignment.run(reward_model, stage)[-600:])
    last = alignment.records(tmp_path / "reward")[-1]
    held, other = (last[f"eval/{name}/accuracy"] for name in ("pairs_eval", "pairs_other_models"))
    print(f"held-out prompts {held:.3f}, another model {other:.3f}")
    assert held > 0.85 and other > 0.85  # 0.941 (of 203 pairs) and 0.953 (of 299) on a CPU
