"""Our 300 instructions: counts, languages, no repetition, nothing of a test set."""

import collections
import re

import pytest

from qwen_jax.corpus.filters.decontaminate import Index, units
from qwen_jax.corpus.filters.test_items import TestItem, read_test_sets
from qwen_jax.data.chat.rows import Counts
from qwen_jax.evaluate.pairwise.questions import CATEGORIES, OWN_SETS, instructions, read_questions

_CHINESE = re.compile(r"[\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def rows():
    return instructions()


def test_instructions_have_the_numbers_of_each_category(rows):
    assert collections.Counter(row["category"] for row in rows) == CATEGORIES
    assert len(rows) == sum(CATEGORIES.values()) == 300
    for key in ("id", "zh", "en"):
        assert len({row[key] for row in rows}) == 300
    assert all(row.keys() == {"id", "category", "zh", "en"} for row in rows)


def test_instructions_are_in_their_languages(rows):
    for row in rows:
        assert not _CHINESE.search(row["en"]), row["id"]
        letters = re.sub(r"[^a-zA-Z\u4e00-\u9fff]", "", row["zh"])
        share = len(_CHINESE.findall(letters)) / len(letters)
        low = {"coding": 0.1, "math": 0.4}.get(row["category"], 0.6)  # code and formulas
        assert share > low, row["id"]
        assert 8 <= len(row["zh"]) <= 400 and 20 <= len(row["en"]) <= 600, row["id"]


@pytest.mark.parametrize("language", ["zh", "en"])
def test_instructions_are_no_series_of_a_template(rows, language):
    texts = [TestItem("own", row["id"], row[language]) for row in rows]
    index = Index.build(texts)
    for row in rows:
        others = [m for m in index.matches(row[language]) if m.item != row["id"]]
        assert others == [], row["id"]
    begins = collections.Counter(tuple(units(row[language])[:6]) for row in rows)
    assert max(begins.values()) <= 4, begins.most_common(5)


@pytest.mark.slow  # seconds: the index of all test sets
def test_instructions_share_no_13_gram_with_test_sets(rows, shared):
    folder = shared / "data/eval"
    if not folder.is_dir():
        pytest.skip(f"no test sets at {folder}")
    index = Index.build(read_test_sets(folder))
    found = index.matches_in([row[key] for row in rows for key in ("zh", "en")])
    assert [matches for matches in found if matches] == []
    question = "Janet’s ducks lay 16 eggs per day. She eats three for breakfast every morning and"
    assert index.matches(question)  # the first question of GSM8K is found


@pytest.mark.parametrize("name", OWN_SETS)
def test_own_sets_are_questions(name):
    counts = Counts()
    questions = read_questions(name, counts)
    assert len(questions) == counts.kept == 300
    assert len({question.id for question in questions}) == 300
    assert bool(_CHINESE.search(questions[0].turns[0][1])) == (name == "chinese300")
