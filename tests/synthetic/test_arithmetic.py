"""Questions with known answers: they are right, wrong ones are wrong, and what is held out is."""

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


def test_every_sum_is_right_its_wrong_answer_wrong_and_the_reward_agrees():
    found = arithmetic.sums(largest=12, seed=3)
    asked, answers, wrong = zip(*((q.text, q.answer, q.wrong) for q in found), strict=True)
    assert rewards.arithmetic(asked, answers) == [1.0] * len(found)
    assert rewards.arithmetic(asked, wrong) == [0.0] * len(found)
    # 13 x 13 sums, 13 x 14 / 2 differences, 6 x 6 products, each asked in 6 ways.
    assert len(found) == len(set(asked)) == 6 * (169 + 91 + 36)
    assert not any("= -" in answer for answer in wrong)
    assert found == arithmetic.sums(largest=12, seed=3) != arithmetic.sums(largest=12, seed=4)


def test_a_functions_first_sentence_is_its_answer_and_anothers_is_wrong():
    found = arithmetic.documented([Document("a.jsonl:1", PAGE)])
    said = {q.text: (q.answer, q.wrong) for q in found}
    empty, put = (
        "Return True if the queue is empty, False otherwise.",
        "Put an item into the queue.",
    )
    assert said == {
        "What does empty of queue do?": (empty, put),
        "What does put of queue do?": (put, empty),
    }
    assert arithmetic.documented([]) == []


def test_what_is_held_out_shares_no_group():
    learned, held_out = arithmetic.split(arithmetic.sums(largest=9), 0.1, seed=1)
    groups = [{q.group for q in part} for part in (learned, held_out)]
    assert not groups[0] & groups[1] and 0.09 < len(groups[1]) / sum(map(len, groups)) < 0.11
    assert len(learned) + len(held_out) == len(arithmetic.sums(largest=9))


def test_the_readers_of_every_stage_take_what_is_written(tmp_path):
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
