"""Votes of the page are files of evaluate/pairwise."""

import json
import shutil

import pytest

from qwen_jax.errors import ConfigError
from qwen_jax.evaluate.pairwise.sheet import read_sheet
from qwen_jax.evaluate.pairwise.votes import read_votes, with_names
from qwen_jax.serve.errors import ApiError
from qwen_jax.serve.page.votes import Votes


def body(ranking=((0,), (1,)), rater="Ann", models=("sft", "ppo"), text="yes", **sampling):
    return {
        "rater": rater,
        "messages": [{"role": "user", "content": f"Is it {text}?"}],
        "answers": [
            {"model": models[0], "text": text, "finish": "stop", "sampling": {}},
            {"model": models[1], "text": "no", "finish": "length", "sampling": sampling},
        ],
        "ranking": [list(group) for group in ranking],
    }


MODELS = ["sft", "ppo"]


def read(folder):
    sheet = read_sheet(folder / "answers.jsonl")
    return with_names(read_votes([folder / "votes.jsonl"], sheet), sheet)


def test_votes_are_read_by_the_evaluation_after_a_restart(tmp_path):
    votes = Votes(tmp_path)
    votes.add(body(), MODELS)
    found = votes.add(body([[0, 1]], text="so"), MODELS)
    assert found["votes"] == 2 and found["wins"]["sft"] == {"wins": 1, "ties": 1, "losses": 0}
    votes.close()
    with open(tmp_path / "comparisons.jsonl", "ab") as file:
        file.write(b'{"rater": "half')  # a killed process
    votes = Votes(tmp_path)
    votes.add(body([[1], [0]], rater="Bo"), MODELS)
    votes.close()
    assert {(v.rater, v.ranking) for v in read(tmp_path)} == {
        ("Ann", (("sft",), ("ppo",))),
        ("Ann", (("sft", "ppo"),)),
        ("Bo", (("ppo",), ("sft",))),
    }


def test_a_later_vote_of_the_same_rater_replaces_the_earlier(tmp_path):
    votes = Votes(tmp_path)
    votes.add(body(), MODELS)
    assert votes.add(body([[1], [0]]), MODELS)["votes"] == 1
    assert [vote.ranking for vote in read(tmp_path)] == [(("ppo",), ("sft",))]


def test_settings_of_one_model_are_told_apart(tmp_path):
    votes = Votes(tmp_path)
    found = votes.add(body(models=("sft", "sft"), temperature=0.2), MODELS)
    assert set(found["wins"]) == {"sft (temperature default)", "sft (temperature 0.2)"}
    with pytest.raises(ApiError, match="same model and settings"):
        votes.add(body(models=("sft", "sft"), seed=3), MODELS)


@pytest.mark.parametrize(
    "change, word",
    [
        ({"rater": " "}, "rater"),
        ({"messages": []}, "user's"),
        ({"messages": [{"role": "user", "content": 1}]}, "not text"),
        ({"ranking": [[0]]}, "ranking"),
        ({"ranking": [[0], [0]]}, "ranking"),
        ({"answers": []}, "two answers"),
        ({"answers": [{"model": "x", "text": ""}] * 2}, "not served"),
    ],
)
def test_malformed_votes_are_refused_and_not_kept(tmp_path, change, word):
    votes = Votes(tmp_path)
    with pytest.raises(ApiError, match=word):
        votes.add(body() | change, MODELS)
    assert (tmp_path / "comparisons.jsonl").read_bytes() == b""


def test_a_folder_has_one_server_at_a_time(tmp_path):
    votes = Votes(tmp_path)
    with pytest.raises(ConfigError, match="another process"):
        Votes(tmp_path)
    votes.close()
    Votes(tmp_path).close()


def test_compare_models_counts_the_votes(tmp_path):
    from experiments import compare_models

    votes = Votes(tmp_path / "votes")
    for index in range(3):
        votes.add(body(text=f"t{index}"), MODELS)
    votes.close()
    shutil.copy(tmp_path / "votes" / "votes.jsonl", tmp_path / "ann.jsonl")
    compare_models.main(
        compare_models.Config(output=str(tmp_path / "votes"), votes=(str(tmp_path / "ann.jsonl"),))
    )
    found = json.loads((tmp_path / "votes" / "results.json").read_text())
    assert "sft" in json.dumps(found)
