"""Generated items of tool use: splits share nothing, and rows are read as conversations."""

import collections

import pytest

from qwen_jax.data.chat import react
from qwen_jax.data.chat.conversations import Counts, read_conversations
from qwen_jax.data.chat.sft_rows import encode
from qwen_jax.errors import ConfigError
from qwen_jax.synthetic.tool_use import hf_tasks, interpreter_tasks, questions, transcripts
from qwen_jax.synthetic.tool_use.families import FAMILIES
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.utils.jsonl import write_rows

BYTES = Tokenizer({bytes([byte]): byte for byte in range(256)})


def items(split="test", calls=200, no_calls=100, seed=0):
    return list(questions.items(split=split, calls=calls, no_calls=no_calls, seed=seed))


def test_items_of_the_splits_share_no_name_family_or_question():
    test, train = items("test"), items("train")
    names = [
        {tool["name_for_model"] for one in split for tool in one.tools} for split in (test, train)
    ]
    assert not names[0] & names[1]
    verbs = [{name.partition("_")[2] for name in split} for split in names]
    assert not verbs[0] & verbs[1] and len(verbs[0]) + len(verbs[1]) == len(FAMILIES)
    stems = [{name.partition("_")[0] for name in split} for split in names]
    assert len(stems[0]) > 150 and not stems[0] & stems[1]
    assert not {one.question for one in test} & {one.question for one in train}


def test_items_are_balanced_and_the_same_for_a_seed():
    found = items()
    assert found == items() != items(seed=1)
    counts = collections.Counter((one.language, len(one.tools)) for one in found)
    assert set(counts.values()) == {30} and len(counts) == 10
    places = collections.Counter(
        [tool["name_for_model"] for tool in one.tools].index(one.tool)
        for one in found
        if one.tool is not None and len(one.tools) == 5
    )
    assert len(places) == 5  # the right tool is anywhere
    assert {one.kind for one in found} == {"call", *questions.NEGATIVES}


def test_near_miss_lacks_the_tool_that_is_asked_for():
    for one in items():
        if one.kind == "near_miss":
            verbs = {tool["name_for_model"].partition("_")[2] for tool in one.tools}
            asked = [
                family
                for family in FAMILIES
                if family.human[one.language] in one.answer
            ]  # fmt: skip
            assert asked and not verbs & {family.name for family in asked}


def test_transcripts_are_valid_react():
    for one in items():
        found = react.parse(transcripts.transcript(one))
        tools = [react.Tool(**{**t, "parameters": tuple(t["parameters"])}) for t in one.tools]
        react.check_calls(found, tools)
        assert len(found.steps) == (one.tool is not None)


@pytest.mark.parametrize("form", transcripts.FORMATS)
def test_rows_train_what_the_model_writes_but_no_observation(tmp_path, form):
    one = next(each for each in items() if each.tool is not None and each.language == "en")
    path = tmp_path / "rows.jsonl"
    write_rows(path, [transcripts.row(one, form)])
    counts = Counts()
    (example,) = encode(
        read_conversations([path], counts), BYTES, context_length=8192, counts=counts
    )
    text = BYTES.decode(example.tokens[example.weights > 0])
    assert str(one.tool) in text and "Observation:" in text
    assert text.rstrip().endswith(f"{one.answer}<|im_end|>")
    between = text.partition("Observation:")[2].partition("Thought:")[0]
    assert not between.strip() and one.question not in text
    whole = BYTES.decode(example.tokens)
    assert f"Observation: {one.observation}\nThought:" in whole


def test_row_of_an_unknown_format_is_an_error():
    with pytest.raises(ConfigError, match="(?s)shargpt.*did you mean.*sharegpt|sharegpt"):
        transcripts.row(items()[0], "shargpt")


def test_interpreter_items_have_files_and_both_languages():
    found = list(interpreter_tasks.items(math=14, hard=12, easy=8, general=8, seed=0))
    assert len({one["id"] for one in found}) == 42
    assert {one["language"] for one in found} == {"en", "zh"}
    assert all(one["files"] for one in found if one["category"] != "math")
    assert all(any(name in one["question"] for name in one["files"]) for one in found[14:])


def test_hf_items_of_a_chat_grow_by_a_step():
    found = list(hf_tasks.items(run=6, chats=3, seed=0))
    chats = [one for one in found if one["mode"] == "chat"]
    assert [len(one["tasks"]) for one in chats] == [1, 2, 1, 2, 3, 1, 2, 3, 4]
    for before, after in zip(chats, chats[1:], strict=False):
        if len(after["tasks"]) > 1:
            assert after["tasks"][:-1] == before["tasks"]
