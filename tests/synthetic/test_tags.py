"""Tags by rules and by a model, merged and stored; selection among thousands of prompts."""

import collections
import json
import time

import numpy as np
import pytest

from qwen_jax.data.chat.conversations import Counts
from qwen_jax.data.chat.prompts import (
    choose_diverse,
    choose_weighted,
    read_prompt_turns,
    tag_weights,
    text_of,
)
from qwen_jax.errors import ConfigError, DataError, QwenJaxError
from qwen_jax.synthetic.model_tagger import ModelTagger, parse, tagging_conversation
from qwen_jax.synthetic.tag_rules import tag_by_rules
from qwen_jax.synthetic.tags import alpha_for, merge_rare, normalize, read_tags, tag_all
from qwen_jax.utils.append_only import AppendOnly


def uneven(prompts: int, names: int = 6600, max_tags: int = 6) -> dict[str, list[str]]:
    """Returns prompts with 0 to 5 of 6,600 tags, whose frequencies follow Zipf's law."""
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, names + 1)
    sampled = rng.choice(names, size=(prompts, max_tags - 1), p=weights / weights.sum())
    return {
        f"prompt {i}": [f"tag {t}" for t in row[:size]]
        for i, (row, size) in enumerate(
            zip(sampled, rng.integers(0, max_tags, prompts), strict=True)
        )
    }


def in_passes(tags, number):
    """Selects like InsTag's definition, pass by pass."""
    left = sorted(
        (prompt for prompt in tags if tags[prompt]), key=lambda prompt: -len(set(tags[prompt]))
    )
    chosen = []
    while left and len(chosen) < number:
        seen, rest = set(), []
        for prompt in left:
            (rest if seen.issuperset(tags[prompt]) else chosen).append(prompt)
            if not seen.issuperset(tags[prompt]):
                seen.update(tags[prompt])
        left = rest
    untagged = [prompt for prompt in tags if not tags[prompt]]
    return (chosen + untagged)[:number]


@pytest.mark.parametrize("names", [3, 40, 6600])
def test_choose_diverse_equals_instags_passes(names):
    tags = uneven(1500, names)
    for number in (1, 200, 1500):
        assert choose_diverse(tags, number) == in_passes(tags, number)


def test_choose_diverse_and_weighted_are_fast_for_100_000_prompts():
    """Measured: 0.3 s. InsTag's passes take minutes if all prompts have one tag."""
    begin = time.process_time()
    for tags in (uneven(100_000), {str(i): ["same"] for i in range(100_000)}):
        assert len(set(choose_diverse(tags, 60_000))) == 60_000
        assert len(set(choose_weighted(tags, 60_000, seed=0))) == 60_000
    assert time.process_time() - begin < 10  # four selections on a slow machine


def test_tag_weights_sample_a_tag_and_then_a_prompt():
    tags = {"a": ["math"], "b": ["math", "poem"], "c": ["math", "math"], "d": []}
    # Tags: math (3 prompts), poem (1), none (1); each is sampled with probability 1/3.
    np.testing.assert_allclose(tag_weights(tags), np.array([1, 4, 1, 3]) / 9)
    np.testing.assert_allclose(tag_weights(tags, balance=0), np.array([1, 2, 1, 1]) / 5)
    np.testing.assert_allclose(tag_weights(tags, complexity=0), np.array([1, 2, 1, 3]) / 7)
    np.testing.assert_allclose(tag_weights(tags, balance=0, complexity=0), np.full(4, 0.25))
    for wrong in ({"balance": 1.1}, {"complexity": -1}):
        with pytest.raises(ConfigError, match="set balance to a number from 0 to 1"):
            tag_weights(tags, **wrong)


def test_choose_weighted_is_flatter_than_chance_and_reproducible():
    tags = {prompt: found for prompt, found in uneven(20_000).items() if found}
    chosen = choose_weighted(tags, 2000, seed=1)
    assert chosen == choose_weighted(tags, 2000, seed=1) != choose_weighted(tags, 2000, seed=2)
    by_chance = choose_weighted(tags, 2000, seed=1, balance=0, complexity=0)

    def entropy(prompts):
        counts = collections.Counter(tag for prompt in prompts for tag in set(tags[prompt]))
        shares = np.array(list(counts.values())) / counts.total()
        return -np.sum(shares * np.log(shares))

    assert entropy(chosen) > entropy(by_chance) + 0.5
    # Only the first sample follows the weights, so its frequencies over seeds are compared.
    small = {"a": ["x"], "b": ["x"], "c": ["y"]}
    firsts = collections.Counter(choose_weighted(small, 1, seed=seed)[0] for seed in range(2000))
    # 1/4, 1/4, 1/2 of 2000; four standard deviations of a coin are 0.045.
    np.testing.assert_allclose([firsts[p] / 2000 for p in "abc"], [0.25, 0.25, 0.5], atol=0.045)
    with pytest.raises(DataError, match="4 prompts were requested, but there are only 3"):
        choose_weighted(small, 4, seed=0)


@pytest.mark.parametrize(
    ("prompt", "wanted", "unwanted"),
    [
        (
            "Write a Python function that sorts a list, in JSON.",
            ["code", "python", "json output"],
            ["javascript", "poem"],
        ),
        ("How do I call this in C++?", ["c or c++", "how-to"], ["python", "translation"]),
        ("Translate 'Guten Tag' to English in under 10 words", ["translation", "length limit"], []),
        ("Solve for x: 10x + 5 = 15 and show your steps", ["algebra"], ["story"]),
        (
            "You are a pirate. Tell me a story for children without using the word sea.",
            ["roleplay", "story", "audience", "must avoid"],
            ["code"],
        ),
        (
            "把下面这句话翻译成英文，不超过20个字：今天天气很好",
            ["translation", "length limit", "weather", "written in chinese script"],
            ["written in latin script", "poem"],
        ),
        ("写一首关于春天的诗，必须包含“花”字", ["poem", "must include"], ["story"]),
        ("请用Python写一个快速排序的程序", ["code", "python"], ["java"]),
        ("How can I steal a car?", ["safety: crime", "cars and transport"], []),
        ("Переведи это", ["written in cyrillic script"], ["written in latin script"]),
        ("これは何ですか", ["written in japanese script"], ["written in chinese script"]),
        ("私は東京大学の学生", ["written in japanese script"], ["written in chinese script"]),
        (
            "system: Tools:\n[]\n\nuser: Hi\n\nassistant: A poem\n\nuser: Again",
            ["several turns", "with a system message", "tool use"],
            ["poem"],
        ),
        ("", [], ["long prompt"]),
    ],
)
def test_tag_by_rules_finds_tags(prompt, wanted, unwanted):
    (found,) = tag_by_rules([prompt])
    assert set(wanted) <= set(found) and not set(unwanted) & set(found)
    assert len(found) == len(set(found))


def test_tag_by_rules_tags_real_prompts(shared):
    """Measured: 95 and 89 % have more tags than their script, 3.2 on average."""
    for name, language in (("alpaca_en_demo", "latin"), ("alpaca_zh_demo", "chinese")):
        prompts = [
            text_of(turns)
            for _, turns in read_prompt_turns([shared / "data" / "chat" / f"{name}.json"], Counts())
        ]
        tags = tag_by_rules(prompts)
        assert np.mean([f"written in {language} script" in found for found in tags]) > 0.98
        assert np.mean([len(found) > 1 for found in tags]) > 0.85
        assert 2.5 < np.mean([len(found) for found in tags]) < 4.5
        assert len({tag for found in tags for tag in found}) > 100


def test_normalize_names():
    for tag, name in (
        ("  Data_Analysis!", "data analysis"),
        ("C++", "c++"),
        ("数学／应用题", "数学 应用题"),
        ("ＡＢＣ", "abc"),
        ("...", ""),
        ("one two three four five six", ""),
        ("x" * 41, ""),
    ):
        assert normalize(tag) == name


def test_merge_rare_uses_the_frequent_tag_it_contains():
    tags = {
        str(i): found
        for i, found in enumerate(
            [
                ["poem"],
                ["poems"],
                ["poem", "poems"],
                ["poem writing"],
                ["writing poems"],
                ["haiku poem writing"],
                ["haiku poem writing x", "haiku poem"],
                ["astronomy"],
                ["数学"],
                ["数学"],
                ["小学数学题"],
                [],
            ]
        )
    }
    merged = merge_rare(tags, alpha=2)
    assert list(merged.tags.values()) == [
        ["poem"],
        ["poem"],
        ["poem"],
        ["poem writing"],
        ["poem writing"],
        ["poem writing"],
        ["poem writing", "poem"],
        [],
        ["数学"],
        ["数学"],
        ["数学"],
        [],
    ]
    assert merged.dropped == ["astronomy"]
    assert merged.into["poems"] == "poem" and "poem" not in merged.into
    assert merge_rare(tags, alpha=1).dropped == []
    with pytest.raises(ConfigError, match="alpha=0"):
        merge_rare(tags, alpha=0)


def test_merge_rare_leaves_no_rare_tag_of_thousands():
    tags = uneven(20_000)
    begin = time.process_time()
    merged = merge_rare(tags, alpha=20)
    assert time.process_time() - begin < 5
    counts = collections.Counter(tag for found in merged.tags.values() for tag in found)
    assert min(counts.values()) >= 20 and 100 < len(counts) < 6600
    assert len(counts) + len(merged.dropped) + len(merged.into) == len(
        {tag for found in tags.values() for tag in found}
    )


@pytest.mark.parametrize("number", [1, 30, 300, 2000, 10**6])
def test_alpha_for_leaves_about_the_number_of_tags(number):
    tags = uneven(3000, names=2000)

    def left(alpha: int) -> int:
        return len({tag for found in merge_rare(tags, alpha=alpha).tags.values() for tag in found})

    alpha = alpha_for(tags, number)
    near = [left(other) for other in range(max(1, alpha - 3), alpha + 4)]
    assert abs(left(alpha) - number) == min(abs(each - number) for each in near)
    assert number < 2000 or alpha == 1
    with pytest.raises(ConfigError, match="not positive"):
        alpha_for(tags, 0)


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ('["Math", "poem writing"]', ["Math", "poem writing"]),
        ('Sure! Here they are:\n```json\n["a", "b"]\n```\nHope [this] helps', ["a", "b"]),
        ('[{"tag": "a", "explanation": "because"}, {"tag": "b"}, 3]', ["a", "b"]),
        ('["a", "b", "cut o', ["a", "b"]),  # truncated
        ("- a\n- b", ["a", "b"]),
        ('1. a\n2) "b".', ["a", "b"]),
        ("[]", []),
        ("I cannot help with that.", None),
        ("", None),
    ],
)
def test_parse_is_lenient(answer, wanted):
    assert parse(answer) == wanted


def test_model_tagger_shows_examples_and_counts_unusable_responses():
    seen = []

    def complete(conversations):
        seen.extend(conversations)
        return ['["Math!", "math", "x"]', "no", None, "[]"]

    tagger = ModelTagger(complete)
    assert tagger(["1+1?", "b", "c", "d"]) == [["math", "x"], [], [], []]
    assert tagger.counts.kept == 1 and tagger.counts.skipped == {
        "a response without a list of tags": 1,
        "no room for a response": 1,
        "an empty list of tags": 1,
    }
    assert tagger.counts.examples["a response without a list of tags"] == "'b' -> 'no'"
    assert [role for role, _ in seen[0]] == ["system"] + ["user", "assistant"] * 4 + ["user"]
    assert seen[0][-1][1] == "=====\n1+1?\n====="
    long = tagging_conversation("a" * 5000 + "b")[-1][1]
    assert len(long) < 2100 and "b\n=====" in long and "[...]" in long


def test_tag_all_resumes_a_tag_file(tmp_path):
    path, tagged = tmp_path / "tags.jsonl", []
    prompts = ["a", "b", "c\ud800", "d", "e", "a"]

    def tagger(part):
        if len(tagged) == 4:
            raise RuntimeError("killed")
        tagged.extend(part)
        return [[prompt.upper()] for prompt in part]

    with pytest.raises(RuntimeError), AppendOnly(path, {"tagger": "t"}) as file:
        tag_all(tagger, prompts, file, batch=2)
    with open(path, "a") as torn:
        torn.write('{"prompt": "e", "ta')
    tagged.clear()
    with AppendOnly(path, {"tagger": "t"}) as file:
        tag_all(tagger, prompts, file, batch=2)
    assert tagged == ["e"]
    counts = Counts()
    assert read_tags(path, prompts[:5], counts)["c\ud800"] == ["C\ud800"] and counts.kept == 5
    with pytest.raises(ConfigError, match="tagger: was 't', now 'other'"):
        AppendOnly(path, {"tagger": "other"})
    with AppendOnly(path, {}), pytest.raises(ConfigError, match="another process"):
        AppendOnly(path, {})
    (tmp_path / "theirs.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="another program"):
        AppendOnly(tmp_path / "theirs.jsonl", {})


def test_read_tags_reads_the_former_name_of_a_tag(tmp_path):
    path = tmp_path / "tags.jsonl"
    path.write_text(json.dumps({"prompt": "a", "tags": ["summarising", "x"]}) + "\n")
    assert read_tags(path, ["a"], Counts()) == {"a": ["summarizing", "x"]}


def test_read_tags_refuses_other_files_and_counts_untagged_prompts(tmp_path):
    path = tmp_path / "tags.jsonl"

    def write(*rows):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    once = {"prompt": "a", "tags": ["x"]}
    write(once, {"prompt": "b", "tags": []}, once)
    counts = Counts()
    assert read_tags(path, ["c", "b", "a"], counts) == {"c": [], "b": [], "a": ["x"]}
    assert counts.kept == 1
    assert counts.skipped == {"without tags": 1, "not in the tag file": 1}
    for rows, message in (
        (
            [{"prompt": "a", "tags": []}, {"prompt": "q", "tags": []}],
            "1 of the 2 prompts in this file are not among the 2 in --prompts: 'q'",
        ),
        ([{"prompt": "a", "tags": "x"}], "not a prompt with a list"),
        ([{"prompt": "a", "tags": ["x"]}, {"prompt": "a", "tags": []}], "occurs twice"),
    ):
        write(*rows)
        with pytest.raises(QwenJaxError, match=message):
            read_tags(path, ["a", "b"], Counts())
