"""Formats of pairs and prompts: what stands next to them counts, and nothing else changes them."""

import json

import pytest

from qwen_jax.data.chat.conversations import Counts
from qwen_jax.data.chat.pairs import parse_pairs, read_pairs
from qwen_jax.data.chat.rows import Fields, Skipped
from qwen_jax.errors import DataError
from tests.helpers.chat_rows import malformed, outcome

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
Q2, SYSTEM = {"role": "user", "content": "q2"}, {"role": "system", "content": "s"}
GOOD, BAD = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
RESULT = {"role": "tool", "content": "1"}
SIDES = {"chosen": "good", "rejected": "bad"}
DIALOGUES = {"chosen": [Q, A, Q2, GOOD], "rejected": [Q, A, Q2, BAD]}
HH = {
    side: f"\n\nHuman: q\n\nAssistant: a\n\nHuman: q2\n\nAssistant: {answer}"
    for side, answer in SIDES.items()
}
ONE, TOOLS = [["user", "q"]], [{"name": "f"}]
THREE = [["user", "q"], ["assistant", "a"], ["user", "q2"]]

PAIRS = {
    "system_prompt next to a question": (
        {"system_prompt": "s", "question": "q", **SIDES}, [["system", "s"], *ONE]),
    "system and input": ({"system": "s", "input": "q", **SIDES}, [["system", "s"], *ONE]),
    "system next to a prompt of turns": (
        {"system": "s", "prompt": [Q], **SIDES}, [["system", "s"], *ONE]),
    "system next to dialogues": ({"system": "s", **DIALOGUES}, [["system", "s"], *THREE]),
    "system next to HH": ({"system": "s", **HH}, [["system", "s"], *THREE]),
    "tools next to dialogues": (
        {"tools": TOOLS, **DIALOGUES}, [["system", 'Tools:\n[{"name": "f"}]'], *THREE]),
    "system, tools and history": (
        {"system": "s", "tools": TOOLS, "history": [["q", "a"]], "prompt": "q2", **SIDES},
        [["system", 's\n\nTools:\n[{"name": "f"}]'], *THREE]),
    "history next to sides with the last question": (
        {"history": [["q", "a"]], "prompt": "q2", "chosen": [Q2, GOOD], "rejected": [Q2, BAD]},
        THREE),
    "an instruction and its input": (
        {"instruction": "q", "input": "x", "system": "s", **SIDES},
        [["system", "s"], ["user", "q\nx"]]),
    "dialogues next to their last question": ({"prompt": "q2", **DIALOGUES}, THREE),
    "dialogues next to the same prompt": ({"prompt": [Q, A, Q2], **DIALOGUES}, THREE),
    "the messages of the chosen dialogue": (
        {"prompt": "q", "messages": DIALOGUES["chosen"], **DIALOGUES}, THREE),
    "only one side repeats the prompt": (
        {"prompt": "q", "chosen": [Q, GOOD], "rejected": "bad"}, ONE),
    "sides that go on with a call and its result": (
        {"prompt": [Q], "chosen": [CALL, RESULT, GOOD], "rejected": [CALL, RESULT, BAD]},
        [*ONE, ["assistant", "Action: f\nAction Input: {}"], ["tool", "1"]]),
    "HH dialogues next to their first prompt": ({"prompt": "q", **HH}, THREE),
    "an HH transcript as the prompt": (
        {"prompt": HH["chosen"].removesuffix(" good"), **SIDES}, THREE),
    "OpenAI's fine-tuning": (
        {"input": {"messages": [SYSTEM, Q], "tools": TOOLS, "parallel_tool_calls": True},
         "preferred_output": [GOOD], "non_preferred_output": [BAD]},
        [["system", 's\n\nTools:\n[{"name": "f"}]'], *ONE]),
    "SHP with a system": (
        {"system": "s", "history": "q", "human_ref_A": "bad", "human_ref_B": "good", "labels": 0},
        [["system", "s"], *ONE]),
    "content parts": (
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "q"}]}],
         "chosen": {**GOOD, "content": [{"type": "text", "text": "good"}]}, "rejected": [BAD]},
        ONE),
    "ShareGPT turns without a role": (
        {"prompt": "q", "chosen": {"value": "good"}, "rejected": {"content": "bad"}}, ONE),
    "nulls of other columns": (
        {"human_ref_A": None, "summaries": None, "choice": None, "preferred_output": None,
         "non_preferred_output": None, "prompt": "q", "system": None, "tools": None,
         "history": None, "images": None, **SIDES},
        ONE),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_read_pairs_gives_the_prompt_of(tmp_path, name):
    row, prompt = PAIRS[name]
    assert outcome(tmp_path, "pairs", row)[0] == {"prompt": prompt, **SIDES}


CALLED = ("assistant", "Action: f\nAction Input: {}")
LATER = {"role": "tool", "content": "2"}
TAILS = {  # chosen, rejected -> what the prompt adds to q, and the steps of each response
    "only the chosen one calls": ([CALL, RESULT, GOOD], [BAD], [], [CALLED, ("tool", "1")], []),
    "only the rejected one calls": ("good", [CALL, RESULT, BAD], [], [], [CALLED, ("tool", "1")]),
    "a second call": (
        [CALL, RESULT, CALL, LATER, GOOD], [CALL, RESULT, BAD], [CALLED, ("tool", "1")],
        [CALLED, ("tool", "2")], []),
    "with the prompt": ([Q, CALL, RESULT, GOOD], [Q, BAD], [], [CALLED, ("tool", "1")], []),
    "with the prompt, on one side": (
        [Q, CALL, RESULT, GOOD], "bad", [], [CALLED, ("tool", "1")], []),
}  # fmt: skip


@pytest.mark.parametrize("next_to", [{"prompt": [Q]}, {"messages": [Q]}, {"question": "q"}])
@pytest.mark.parametrize("name", TAILS)
def test_read_pairs_keeps_the_calls_of_each_response(tmp_path, name, next_to):
    chosen, rejected, prompt, *steps = TAILS[name]
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({**next_to, "chosen": chosen, "rejected": rejected}), "utf-8")
    (pair,) = read_pairs([path], Counts())
    assert pair.prompt == (("user", "q"), *prompt)
    assert [list(pair.chosen_steps), list(pair.rejected_steps)] == steps
    assert (pair.chosen, pair.rejected) == ("good", "bad")


def test_read_pairs_leaves_out_the_chosen_dialogue_next_to_its_calls(tmp_path):
    path = tmp_path / "pairs.jsonl"
    row = {"messages": [Q, CALL, RESULT, GOOD], "chosen": [Q, CALL, RESULT, GOOD],
           "rejected": [Q, BAD]}  # fmt: skip
    path.write_text(json.dumps(row), "utf-8")
    (pair,) = read_pairs([path], Counts())
    assert pair.prompt == (("user", "q"),) and pair.chosen_steps == (CALLED, ("tool", "1"))


def test_read_pairs_renders_parallel_calls_and_text(tmp_path):
    calls = {**CALL, "content": "hm", "tool_calls": CALL["tool_calls"] * 2}
    found, _ = outcome(tmp_path, "pairs", {"prompt": "q", "chosen": calls, "rejected": CALL})
    call = "Action: f\nAction Input: {}"
    assert (found["chosen"], found["rejected"]) == (f"Thought: hm\n{call}\n{call}", call)


DIFFER = "the prompt and the turns next to it differ"
UNUSABLE_PAIRS = {
    "another prompt": ({"prompt": "other", **DIALOGUES}, DIFFER),
    "other messages": ({"messages": [Q2, A], **DIALOGUES, "prompt": "q"}, DIFFER),
    "history that the dialogues lack": (
        {"history": [["x", "y"]], "prompt": "q", **DIALOGUES}, DIFFER),
    "another system in one dialogue": (
        {"chosen": [SYSTEM, Q, GOOD], "rejected": [Q, BAD]}, "the dialogues differ"),
    "another system next to dialogues": (
        {"system": "t", "chosen": [SYSTEM, Q, GOOD], "rejected": [SYSTEM, Q, BAD]},
        "two system messages that differ"),
    "another result of a tool": (
        {"prompt": "q", "chosen": [CALL, RESULT, GOOD],
         "rejected": [CALL, {**RESULT, "content": "2"}, BAD]}, "the dialogues differ"),
    "a response with a turn of the user": (
        {"prompt": "q", "chosen": [A, Q2, GOOD], "rejected": [BAD]}, "the dialogues differ"),
    "a dialogue that goes on, next to one response": (
        {"prompt": "q", "chosen": [Q, A, Q2, GOOD], "rejected": "bad"}, "the dialogues differ"),
    "a call marked not to be trained": (
        {"prompt": "q", "chosen": [{**CALL, "weight": 0}, RESULT, GOOD], "rejected": "bad"},
        "not to be trained"),
    "a placeholder in a dialogue": (
        {"chosen": [{**Q, "content": "<image>"}, GOOD], "rejected": "bad"},
        "images cannot be read"),
    "an empty call": (
        {"prompt": "q", "chosen": [{**A, "content": ""}, RESULT, GOOD], "rejected": "bad"},
        "an empty response"),
    "two forms of a pair": (
        {"prompt": "q", **SIDES, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
        "chosen and preferred_output"),
    "a transcript that ends with the user": (
        {**HH, "rejected": HH["rejected"] + "\n\nHuman: what?"}, "does not end with an answer"),
    "a dialogue that ends with a tool": (
        {"prompt": "q", "chosen": [CALL, RESULT], "rejected": [CALL, RESULT]},
        "does not end with an answer"),
    "images": ({"prompt": "q", "images": ["a.png"], **SIDES}, "images cannot be read"),
    "an image in a response": (
        {"prompt": "q", "chosen": {**GOOD, "image": "a.png"}, "rejected": "bad"},
        "images cannot be read"),
    "a response marked not to be trained": (
        {"prompt": "q", "chosen": {**GOOD, "weight": 0}, "rejected": "bad"}, "not to be trained"),
    "a row marked not to be trained": ({"weight": 0, "prompt": "q", **SIDES}, "not to be trained"),
    "choices": ({"question": "q", "options": ["x"], **SIDES}, "choices next to a question"),
    "a second system": (
        {"prompt": [Q, A, SYSTEM, Q2], **SIDES}, "a system message after the first turn"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSABLE_PAIRS)
def test_read_pairs_skips_and_names(tmp_path, name):
    row, reason = UNUSABLE_PAIRS[name]
    assert reason in outcome(tmp_path, "pairs", row)[0]["skip"]


VERL = {
    "data_source": "gsm8k",
    "prompt": [SYSTEM, Q],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "4"},
    "extra_info": {"index": 0},
}
PROMPTS = {
    "verl": (VERL, [["system", "s"], *ONE]),
    "tools": ({"tools": TOOLS, "prompt": "q"}, [["system", 'Tools:\n[{"name": "f"}]'], *ONE]),
    "history": ({"history": [["q", "a"]], "prompt": "q2"}, THREE),
    "history next to turns": ({"history": [["q", "a"]], "prompt": [SYSTEM, Q2]},
                              [["system", "s"], *THREE]),
    "a dialogue with an answer": ({"messages": [Q, A, Q2, GOOD]}, THREE),
    "the results of tools last": (
        {"messages": [Q, CALL, RESULT, GOOD]},
        [*ONE, ["assistant", "Action: f\nAction Input: {}"], ["tool", "1"]]),
    "question and answer": ({"question": "q", "answer": "a"}, ONE),
    "problem": ({"problem": "q", "solution": "a", "answer": "4"}, ONE),
    "prompt and completion": ({"prompt": [Q], "completion": [A]}, ONE),
    "a pair with an implicit prompt": (DIALOGUES, THREE),
    "a pair without its prompt": ({"prompt": None, "messages": None, **DIALOGUES}, THREE),
    "a pair with its prompt": ({"system": "s", "prompt": "q", **SIDES}, [["system", "s"], *ONE]),
    "developer": ({"prompt": [{**SYSTEM, "role": "developer"}, Q]}, [["system", "s"], *ONE]),
    "an HH transcript": ({"prompt": HH["chosen"].removesuffix(" good")}, THREE),
    "a prompt about humans": ({"prompt": "Human: q"}, [["user", "Human: q"]]),
}  # fmt: skip


@pytest.mark.parametrize("name", PROMPTS)
def test_read_prompts_gives_the_turns_of(tmp_path, name):
    row, turns = PROMPTS[name]
    assert outcome(tmp_path, "prompt", row)[0] == {"prompt": turns}


def test_read_prompts_counts_the_keys_for_rewards_as_not_read(tmp_path):
    _, counts = outcome(tmp_path, "prompt", VERL)
    (keys,) = counts.unread.values()
    assert {"reward_model", "extra_info", "data_source", "ability"} <= set(keys)


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"system": "t", "prompt": [SYSTEM, Q]}, "two system messages that differ"),
        ({"prompt": "q", "images": ["a.png"]}, "images cannot be read"),
        ({"question": "q", "choices": ["a"]}, "choices next to a question"),
        ({"prompt": "other", "messages": [Q, A]}, DIFFER),
        ({"prompt": 3}, "a field is not text"),
        ({"prompt": "q", "history": {"q": "a"}}, "a history is not a list"),
        ({"messages": [A]}, "no prompt"),
    ],
)
def test_read_prompts_skips_and_names(tmp_path, row, reason):
    assert reason in outcome(tmp_path, "prompt", row)[0]["skip"]


SUMMARIES = {
    "info": {"id": "t3", "post": "Long story.", "title": "Help", "subreddit": "advice",
             "article": None},
    "summaries": [{"text": " short", "policy": "ref", "note": "n"}, {"text": " shorter"}],
    "choice": 1, "worker": "w", "batch": "b", "split": "valid2", "extra": {"confidence": 8},
}  # fmt: skip


@pytest.mark.parametrize("choice", [0, 1])
def test_summaries_are_pairs_of_a_post_or_an_article(tmp_path, choice):
    found, counts = outcome(tmp_path, "pairs", {**SUMMARIES, "choice": choice})
    prompt = "SUBREDDIT: r/advice\n\nTITLE: Help\n\nPOST: Long story.\n\nTL;DR:"
    texts = ("short", "shorter")
    assert found == {"prompt": [["user", prompt]], "chosen": texts[choice],
                     "rejected": texts[1 - choice]}  # fmt: skip
    (keys,) = counts.unread.values()
    assert {"info.id", "summaries.policy", "worker", "split", "extra"} <= set(keys)
    news = {**SUMMARIES, "info": {"title": "News", "article": "Text.", "site": "dailymail"}}
    found, _ = outcome(tmp_path, "pairs", news)
    assert found["prompt"] == [["user", "TITLE: News\n\nPOST: Text.\n\nTL;DR:"]]


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"choice": 2}, "the choice is not one of two summaries"),
        ({"choice": None}, "the choice is not one of two summaries"),
        ({"summaries": [{"text": "one"}]}, "the choice is not one of two summaries"),
        ({"summaries": [{"text": "one"}, {"note": "two"}]}, "a response is not text"),
        ({"summaries": [{"text": "one"}, {"text": " one"}]}, "chosen and rejected are equal"),
        ({"info": {"title": "x"}}, "a comparison without its text"),
    ],
)
def test_summaries_are_skipped_with_a_reason(tmp_path, change, reason):
    assert reason in outcome(tmp_path, "pairs", SUMMARIES | change)[0]["skip"]


def _step(*ratings, chosen=None, own=None, flagged=None):
    completions = [
        {"text": f"step {i}", "rating": rating, "flagged": i == flagged}
        for i, rating in enumerate(ratings)
    ]
    return {"completions": completions, "human_completion": own, "chosen_completion": chosen}


def _prm(*steps, **other):
    return {
        "labeler": "l",
        "is_quality_control_question": False,
        "question": {"problem": "1+1?", "ground_truth_answer": "2"},
        "label": {"steps": list(steps), "finish_reason": "solution"},
        **other,
    }


PRM = {
    "the chosen one against each wrong one": (
        [_step(-1, 1, -1, 1, chosen=3)], [("step 3", "step 0"), ("step 3", "step 2")]),
    "later steps follow the chosen ones": (
        [_step(1, chosen=0), _step(0, 0, chosen=1), _step(-1, 1, chosen=1)],
        [("step 0\nstep 1\nstep 1", "step 0\nstep 1\nstep 0")]),
    "the labeler's own": (
        [_step(-1, own={"text": "mine"}), _step(1, -1, chosen=0)],
        [("mine", "step 0"), ("mine\nstep 0", "mine\nstep 1")]),
    "the labeler's own as text": ([_step(-1, own="mine")], [("mine", "step 0")]),
    "a neutral one, if none is right": ([_step(-1, 0, -1, 0)],
                                        [("step 1", "step 0"), ("step 1", "step 2")]),
    "the right one, not the neutral one that was chosen": ([_step(0, 1, -1, chosen=0)],
                                                          [("step 1", "step 2")]),
    "not a flagged one": ([_step(-1, -1, 1, chosen=2, flagged=0)], [("step 2", "step 1")]),
    "not one without a rating": ([_step(None, -1, 1, chosen=2)], [("step 2", "step 1")]),
}  # fmt: skip


@pytest.mark.parametrize("name", PRM)
def test_prm800k_pairs(tmp_path, name):
    steps, expected = PRM[name]
    path = tmp_path / "prm.jsonl"
    path.write_text(json.dumps(_prm(*steps)), encoding="utf-8")
    counts = Counts()
    found = list(read_pairs([path], counts))
    assert [(pair.chosen, pair.rejected) for pair in found] == expected
    assert all(pair.prompt == (("user", "1+1?"),) for pair in found)
    assert counts.kept == len(expected)


@pytest.mark.parametrize(
    "row, reason",
    [
        (_prm(_step(1, chosen=0), _step(-1)), "no step with a better and a wrong"),
        (_prm(_step(1, 0, chosen=0)), "no step with a better and a wrong"),
        (_prm(_step(1, -1, chosen=5)), "whose chosen continuation is missing"),
        (_prm({"completions": "x"}), "a step without rated continuations"),
        (_prm(_step(7, -1)), "a step without rated continuations"),
        (_prm("x"), "a step is not an object"),
        (_prm(_step(-1, 1), is_quality_control_question=True), "tests the labeler"),
        (_prm(_step(-1, 1), question={}), "a problem without its text"),
    ],
)
def test_prm800k_is_skipped_with_a_reason(tmp_path, row, reason):
    assert reason in outcome(tmp_path, "pairs", row)[0]["skip"]


@pytest.mark.parametrize(
    "rows", [[row for row, _ in PAIRS.values()], [SUMMARIES, _prm(_step(-1, 1), own={})]],
    ids=["pairs", "comparisons"],
)  # fmt: skip
def test_parse_pairs_names_what_is_wrong_with_malformed_rows(rows):
    tried = 0
    for row in malformed(rows):
        tried += 1
        try:
            for pair in parse_pairs(Fields(row, "here"), row):
                assert pair.chosen.strip() and pair.rejected.strip() and pair.prompt
        except (Skipped, DataError) as error:
            assert str(error)
    assert tried > 300
