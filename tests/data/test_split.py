"""Split: every source with two groups has some on both sides, and groups stay together."""

import pytest

from qwen_jax.data import shards
from qwen_jax.data.document import Document
from qwen_jax.data.split import Split
from qwen_jax.errors import DataError
from tests.helpers.shard_text import Bytes


def held_out(documents, split):
    return [each.text for each in documents if split.assign(each)[0] == split.num_shards]


@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.5, 0.99, 0.999])
@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_split_balanced_has_both_sides_from_two_documents_on(fraction, count):
    documents = [Document(str(i), f"text {i}") for i in range(count)]
    for seed in range(20):
        split = Split(fraction, seed)
        balanced = split.balanced(documents)
        found, before = held_out(documents, balanced), held_out(documents, split)
        assert 1 <= len(found) < count if count > 1 else not found
        assert balanced is split if 0 < len(before) < count else len(balanced.moved) <= 1
        assert balanced.balanced(documents) == balanced


def test_split_balanced_moves_groups_as_a_whole_and_in_all_sources():
    documents = [Document(str(i), f"text {i}", f"group {i % 3}") for i in range(30)]
    balanced = Split(0.001).balanced(documents)
    assert len(held_out(documents, balanced)) == 10
    assert not Split(0.001).balanced(documents[::3]).moved  # one group
    (text, *_) = held_out(documents, balanced)
    assert held_out([Document("other", text, None)], balanced) == []  # its own group
    same = [Document("other", "another text", next(d.group for d in documents if d.text == text))]
    assert held_out(same, balanced)
    assert Split(0.0).balanced(documents) == Split(0.0)


def test_open_shards_explains_a_missing_eval_folder(tmp_path):
    shards.write([Document("a", "text")], tmp_path / "s", Bytes())
    with pytest.raises(DataError, match="(?s)no documents of this source.*--data.eval_sources"):
        shards.open_shards(tmp_path / "s/eval")
