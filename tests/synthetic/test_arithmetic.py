"""Questions with known answers: right and wrong ones, and the held-out split."""

import pytest

from qwen_jax.align import rewards
from qwen_jax.data.chat.conversations import Counts, read_conversations
from qwen_jax.data.chat.pairs import read_pairs
from qwen_jax.data.document import Document
from qwen_jax.errors import DataError
from qwen_jax.synthetic import arithmetic

PAGE = """queue

A multi-producer, multi-consumer queue.

class Queue(builtins.object)
Queue(maxsize=0)

Create a queue object with a given maximum size.
__init__(self, maxsize=0)
    Initialize self.  See help(type(self)) for accurate signature.
empty(self)
    Return True if the queue is empty, False otherwise.

put(self, item)
    Put an item into the queue.

short(self)
    Too short.
"""


def test_sums_are_right_and_the_reward_tells_right_from_wrong():
    found = arithmetic.sums(largest=12, seed=3)
    prompts, answers, wrong = zip(*((q.text, q.answer, q.wrong) for q in found), strict=True)
    assert rewards.arithmetic(prompts, answers) == [1.0] * len(found)
    assert rewards.arithmetic(prompts, wrong) == [0.0] * len(found)
    # 13 x 13 sums, 13 x 14 / 2 differences, 6 x 6 products, each in 6 phrasings.
    assert len(found) == len(set(prompts)) == 6 * (169 + 91 + 36)
    assert not any("= -" in answer for answer in wrong)
    assert found == arithmetic.sums(largest=12, seed=3) != arithmetic.sums(largest=12, seed=4)


def test_documented_answers_with_the_functions_first_sentence():
    found = arithmetic.documented([Document("a.jsonl:1", PAGE)])
    by_text = {q.text: (q.answer, q.wrong) for q in found}
    empty, put = (
        "Return True if the queue is empty, False otherwise.",
        "Put an item into the queue.",
    )
    assert by_text == {
        "What does empty of queue do?": (empty, put),
        "What does put of queue do?": (put, empty),
    }
    assert arithmetic.documented([]) == []


def test_split_shares_no_group():
    learned, held_out = arithmetic.split(arithmetic.sums(largest=9), 0.1, seed=1)
    groups = [{q.group for q in part} for part in (learned, held_out)]
    assert not groups[0] & groups[1] and 0.09 < len(groups[1]) / sum(map(len, groups)) < 0.11
    assert len(learned) + len(held_out) == len(arithmetic.sums(largest=9))


def test_write_is_read_by_the_readers_of_every_stage(tmp_path):
    found = arithmetic.sums(largest=3, largest_factor=2)
    arithmetic.write(found, tmp_path)
    counts = Counts()
    conversations = list(read_conversations([tmp_path / "conversations.jsonl"], counts))
    pairs = list(read_pairs([tmp_path / "pairs.jsonl"], counts))
    assert counts.kept == 2 * len(found) and not counts.skipped
    assert conversations[0].turns == (("user", found[0].text), ("assistant", found[0].answer))
    assert (pairs[0].chosen, pairs[0].rejected) == (found[0].answer, found[0].wrong)
    (tmp_path / "pairs.jsonl").unlink()
    with pytest.raises(DataError):
        list(read_pairs([tmp_path / "pairs.jsonl"], counts))
