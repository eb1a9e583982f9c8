"""Self-instruct with a scripted model: rules, lists, transcripts, review, and resuming."""

import collections
import hashlib
import json
import random
import re
import time

import pytest

from qwen_jax.data.chat import react
from qwen_jax.data.chat.conversations import Counts, read_conversations
from qwen_jax.errors import QwenJaxError
from qwen_jax.inference.request import Completion
from qwen_jax.synthetic import review
from qwen_jax.synthetic.novelty import Novelty, lcs_length, words
from qwen_jax.synthetic.react_seeds import EXAMPLES, TOOLS
from qwen_jax.synthetic.response_cache import ResponseCache
from qwen_jax.synthetic.sample_rules import Rules, answer_fault, question_fault, react_fault
from qwen_jax.synthetic.self_instruct import (
    Sample,
    Seed,
    SelfInstruct,
    Settings,
    parse_list,
    read_react_seeds,
    read_seeds,
)
from qwen_jax.utils.append_only import AppendOnly

SEEDS = [
    Seed(f"Explain in a few words what a {word} does all day.", f"It is a {word}.")
    for word in ("baker", "fox", "river", "judge", "cloud", "nurse", "clock")
]


def by_definition(one, other):
    """Returns the length of the longest common subsequence, computed cell by cell."""
    table = [0] * (len(other) + 1)
    for x in one:
        diagonal = 0
        for column, y in enumerate(other, 1):
            above = table[column]
            table[column] = diagonal + 1 if x == y else max(above, table[column - 1])
            diagonal = above
    return table[-1]


def test_lcs_length_equals_the_definition():
    rng = random.Random(0)
    for _ in range(300):
        one, other = ([rng.randrange(6) for _ in range(rng.randrange(90))] for _ in range(2))
        assert lcs_length(one, other) == by_definition(one, other)


def test_novelty_equals_a_comparison_with_all_texts():
    rng = random.Random(1)
    vocabulary = [f"w{i}" for i in range(5)] + list("你好世界")
    texts = [" ".join(rng.choices(vocabulary, k=rng.randrange(12))) for _ in range(300)]
    novelty, kept, near = Novelty(0.7), [], 0
    for text in texts:
        scores = [
            2
            * by_definition(words(text), words(other))
            / max(len(words(text)) + len(words(other)), 1)
            for other in kept
        ]
        found = novelty.nearest(text)
        assert (found is not None) == (max(scores, default=0) > 0.7)
        if found is None:
            novelty.add(text)
            kept.append(text)
        else:
            near += 1
            assert found[0] == pytest.approx(max(scores)) and found[1] in kept
    assert near > 50 and len(kept) > 100
    same = Novelty(0.7)
    same.add("a b c d e f g x y z")
    assert same.nearest("a b c d e f g 1 2 3") is None  # exactly 0.7, as in self-instruct
    assert same.nearest("z y x a b c d e f g") is None  # also 0.7, though the texts share all words
    assert same.nearest("...") is None
    # The nearest text is not the one that shares the most words.
    numbers = [str(i) for i in range(20)]
    rotated, shorter = " ".join(numbers[16:] + numbers[:16]), " ".join(numbers[:19])
    several = Novelty(0.7)
    for text in (rotated, shorter):
        several.add(text)
    assert several.nearest(" ".join(numbers)) == (pytest.approx(2 * 19 / 39), shorter)


def test_novelty_is_fast_for_thousands_of_texts():
    """Measured: 10,000 texts against up to 6,000 kept ones take 0.8 s; all pairs take minutes."""
    rng = random.Random(2)
    vocabulary = [f"w{int(1.01**i)}" for i in range(900)]
    novelty, begin = Novelty(), time.process_time()
    for _ in range(5000):
        text = " ".join(rng.choices(vocabulary, k=15))
        if novelty.nearest(text) is None:
            novelty.add(text)
    assert len(novelty.texts) > 2000 and time.process_time() - begin < 10


def test_react_prompt_is_the_reports():
    tool = react.Tool("Foo", "foo", "Useful for foo.", ({"name": "x", "required": True},))
    plain = react.Tool("Bar", "bar", "Runs code.")
    assert (
        react.prompt("Why?", [tool, plain])
        == """\
Answer the following questions as best you can. You have access to the following tools:

foo: Call this tool to interact with the Foo API. What is the Foo API useful for? Useful for foo. \
Parameters: [{"name": "x", "required": true}] Format the arguments as a JSON object.

bar: Call this tool to interact with the Bar API. What is the Bar API useful for? Runs code.

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [foo,bar]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!

Question: Why?"""
    )


CALL = 'Thought: t\nAction: foo\nAction Input: {"x": 1}\nObservation: o\n'
END = "Thought: done\nFinal Answer: yes\nand more"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (END, None),
        (CALL + END, None),
        (CALL + CALL + END, None),
        (CALL, "no Final Answer"),
        ("", "no Final Answer"),
        ("hm\n" + END, "before the first label"),
        (CALL + "Thought: again\n" + END, "out of order"),
        (END + "\n" + END, "out of order"),
        (CALL.replace("Observation: o\n", "") + END, "out of order"),
        ("Final Answer: yes", "out of order"),
        (CALL + "Final Answer: yes", "out of order"),
        (END + "\nQuestion: more?\n" + END, "out of order"),
        (CALL.replace(": foo", ":") + END, "empty Action"),
        ("Thought: t\nFinal Answer:", "empty Final Answer"),
        (CALL.replace(": foo", ": oof") + END, "not one of the tools"),
        (CALL.replace('{"x": 1}', "x = 1") + END, "not JSON"),
        (CALL.replace('{"x": 1}', "[1]") + END, "not a JSON object"),
        (CALL.replace('{"x": 1}', "{}") + END, "without a required parameter"),
        (CALL.replace('{"x": 1}', '{"x": 1, "y": 2}') + END, "unknown parameter"),
        (CALL.replace("foo", "bar").replace('{"x": 1}', "any code") + END, None),
    ],
)
def test_react_fault_checks_transcripts(text, reason):
    tools = [
        react.Tool("Foo", "foo", "f", ({"name": "x", "required": True},)),
        react.Tool("Bar", "bar", "b"),
    ]
    fault = react_fault(text, "stop", tools, Rules())
    if reason is None:
        assert text.strip() and fault is None
        assert react.parse(text).final_answer == "yes\nand more"
        assert len(react.parse(text).steps) == text.count("Action:")
    else:
        assert fault is not None and (reason in fault or fault == "an empty answer")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Name three birds that cannot fly.", None),
        ("给我讲一个关于狐狸的故事", None),
        ("Name a bird.", "shorter than 4 words"),
        ("讲故事", "shorter than 4 words"),
        ("why " * 151, "longer than 150 words"),
        ("- Name three birds that fly", "starts with punctuation"),
        ("Describe the image of a fox below.", "forbidden word 'image'"),
        ("Sort the imagery of the poem.", None),
        ("请描述下面这张图片的内容", "forbidden word '图片'"),
        ("Write a program to sort the numbers.", "program"),
        ("Напиши мне стихи про осень и дождь", "another script (cyrillic)"),
        ("“Hello” in French, please, and why.", None),
        ("12 34 56 78", "no letters"),
    ],
)
def test_question_fault_checks_questions(text, reason):
    fault = question_fault(text, Rules())
    assert (fault is None) if reason is None else (fault is not None and reason in fault)


@pytest.mark.parametrize(
    ("answer", "finish", "reason"),
    [
        ("Four.", "stop", None),
        (" ", "stop", "empty"),
        ("Four", "length", "truncated"),
        ("What is two plus two", "stop", "repeats the question"),
        ("ha" * 30, "stop", "repeats itself"),
        ("a \ufffd", "stop", "broken characters"),
        (" ".join(map(str, range(1001))), "stop", "1000"),
    ],
)
def test_answer_fault_checks_answers(answer, finish, reason):
    fault = answer_fault("What is two plus two?", answer, finish, Rules())
    assert (fault is None) if reason is None else (fault is not None and reason in fault)


def test_parse_list_continues_the_list_of_the_prompt():
    text = " Name a bird.\n10. Write a poem\nabout it.\n\n11) 说一个笑话\n12、Expl"
    assert parse_list(text, 9, complete=True) == [
        "Name a bird.",
        "Write a poem about it.",
        "说一个笑话",
        "Expl",
    ]
    assert parse_list(text, 9, complete=False)[-1] == "说一个笑话"
    assert parse_list("9. Name a bird.", 9, complete=True) == ["Name a bird."]
    assert parse_list("", 9, complete=True) == []


class Scripted:
    """A model whose responses depend only on seed and conversation; can die after some of them."""

    def __init__(self, dies_after: int | None = None):
        self.conversations, self.opened, self._left = [], 0, dies_after

    def open(self):
        self.opened += 1
        return self

    def __call__(self, conversations, seeds):
        order = sorted(range(len(conversations)), key=lambda index: seeds[index])  # as they finish
        for index in order:
            if self._left == 0:
                raise KeyboardInterrupt
            self._left = None if self._left is None else self._left - 1
            self.conversations.append(conversations[index])
            yield index, self._respond(conversations[index], random.Random(seeds[index]))

    def _respond(self, conversation, rng):
        role, last = conversation[-1]
        number = rng.randrange(10**6)
        if last == "Thought:":
            tool = re.search(r"should be one of \[([^\],]*)", conversation[-2][1])[1]
            call = {
                "calculator": '{"expression": "1"}',
                "weather": '{"city": "x"}',
                "web_search": '{"query": "x"}',
                "python": "```\nprint(1)\n```",
                "calendar": '{"action": "read", "date": "2024-01-01"}',
            }[tool]
            text = rng.choice(
                [
                    f" hm\nAction: {tool}\nAction Input: {call}\nObservation: 1\n{END}",
                    f" hm\nAction: {tool}s\nAction Input: {call}\nObservation: 1\n{END}",
                    f" hm\nFinal Answer: {number}",
                    " hm",
                ]
            )
        elif role == "assistant":
            names = rng.sample(
                [
                    "owls",
                    "trams",
                    "tides",
                    "chess",
                    "bread",
                    "rust",
                    "wool",
                    "maps",
                    "ink",
                    "moss",
                    "salt",
                    "jazz",
                    "kites",
                    "yeast",
                    "zinc",
                ],
                6,
            )
            text = (
                " "
                + "\n".join(
                    f"{item}. {text}"
                    for item, text in enumerate(
                        [
                            f"Tell {names[0]} {number} jokes about {names[1]} quickly.",
                            f"Why would {names[2]} need {names[3]}, {names[4]} "
                            f"or {number} friends?",
                            "Explain in few words what a baker does all day.",
                            "What would a lighthouse keeper cook on Sundays?",
                            f"Draw {number} of them now",
                            f"Compare {names[4]} with {names[5]} {number} times",
                        ],
                        int(re.search(r"(\d+)\.$", last)[1]),
                    )
                )[3:]
            )
        else:
            text = rng.choice([f"Because {number}.", ""])
        if rng.random() < 0.1:
            return None
        finish = "length" if rng.random() < 0.1 else "stop"
        return Completion((1,), text, None, finish)


SETTINGS = Settings(samples=60, rounds=6, instruction_lists=3, question_lists=3, seeds_shown=4)


def generate(path, model, settings=SETTINGS):
    with AppendOnly(path, {}) as file:
        made = SelfInstruct(
            settings, Rules(), ResponseCache(file, model.open, seed=0), SEEDS, EXAMPLES, TOOLS
        )
        for _ in made.rounds():
            pass
    return made


def test_self_instruct_samples_pass_the_rules_and_rejections_are_counted(tmp_path):
    model = Scripted()
    made = generate(tmp_path / "responses.jsonl", model)
    kinds = collections.Counter(sample.kind for sample in made.samples)
    assert kinds["instruction"] > 10 and kinds["react"] > 10
    assert len({sample.id for sample in made.samples}) == len(made.samples) == made.counts.kept
    for reason in (
        "too similar to an earlier one",
        "forbidden word 'draw'",
        "an Action is not one of the tools",
        "no Final Answer at the end",
        "a truncated answer",
        "an empty answer",
        "no room for a response",
    ):
        assert made.counts.skipped[reason] > 0, reason
        assert made.counts.examples[reason].startswith("round ")
    assert len(made.rejected) == made.counts.skipped.total()
    # A question is new only once, even if its answer was rejected.
    keeper = "What would a lighthouse keeper cook on Sundays?"
    assert sum(sample.question == keeper for sample in made.samples) <= 1
    assert any(row["text"].endswith(f"(Rouge-L 1.00 with: {keeper})") for row in made.rejected)
    questions = [seed.question for seed in (*SEEDS, *EXAMPLES)]
    for sample in made.samples:
        first = sample.question.split("?")[0]
        assert not any(first in other for other in questions)
        questions.append(sample.question)
        assert question_fault(sample.question, Rules()) is None
        if sample.kind == "react":
            tools = [tool for tool in TOOLS if tool.name_for_model in sample.tools]
            assert 1 <= len(tools) == len(sample.tools) <= 5
            assert react_fault(sample.messages[1][1], "stop", tools, Rules()) is None
            assert sample.messages[0][1].endswith(f"Question: {sample.question}")
    # List prompts show seeds and, from the second round on, earlier samples.
    lists = [
        conversation[-1][1]
        for conversation in model.conversations
        if conversation[-1][0] == "assistant" and conversation[-1][1] != "Thought:"
    ]
    assert all(re.search(rf"^{len(text.splitlines())}\.$", text, re.MULTILINE) for text in lists)
    assert sum("jokes about" in text for text in lists) > 3
    # Worked examples precede a question as turns.
    transcript = next(
        conversation for conversation in model.conversations if conversation[-1][1] == "Thought:"
    )
    assert [role for role, _ in transcript] == ["user", "assistant"] * 3


def test_self_instruct_stops_at_the_requested_samples(tmp_path):
    few = Settings(samples=9, rounds=6, instruction_lists=3, question_lists=3)
    assert len(generate(tmp_path / "responses.jsonl", Scripted(), few).samples) == 9
    # With more samples requested, cached requests are not repeated.
    more = Scripted()
    made = generate(
        tmp_path / "responses.jsonl",
        more,
        Settings(samples=30, rounds=6, instruction_lists=3, question_lists=3),
    )
    fresh = Scripted()
    assert (
        made.samples
        == generate(
            tmp_path / "fresh.jsonl",
            fresh,
            Settings(samples=30, rounds=6, instruction_lists=3, question_lists=3),
        ).samples
    )
    assert len(more.conversations) < len(fresh.conversations)


def test_response_cache_gives_the_same_samples_after_kills(tmp_path):
    undisturbed = Scripted()
    made = generate(tmp_path / "undisturbed.jsonl", undisturbed)
    path, rng, queries = tmp_path / "killed.jsonl", random.Random(3), 0
    for _ in range(12):
        model = Scripted(dies_after=rng.randrange(1, 12))
        try:
            generate(path, model)
        except KeyboardInterrupt:
            with open(path, "a") as torn:
                torn.write('{"round": 1, "sta')
        queries += len(model.conversations)
    last = Scripted()
    again = generate(path, last)
    assert again.samples == made.samples and again.rejected == made.rejected
    assert queries + len(last.conversations) == len(undisturbed.conversations)  # each request once
    idle = Scripted()
    assert generate(path, idle).samples == made.samples and idle.opened == 0


def test_response_cache_reads_files_of_earlier_versions(tmp_path):
    conversation = [[("user", "Why?")]]
    with AppendOnly(tmp_path / "asked.jsonl", {}) as file:
        response = ResponseCache(file, Scripted().open, seed=0)(0, "answers", conversation)
    path = tmp_path / "asked.jsonl"
    path.write_text(path.read_text().replace('"conversation"', '"asked"'))
    idle = Scripted()
    with AppendOnly(path, {}) as file:
        assert ResponseCache(file, idle.open, seed=0)(0, "answers", conversation) == response
    assert idle.opened == 0


def test_react_seeds_are_those_of_earlier_runs():
    """Runs record a hash of the examples and tools; with another text none would resume."""
    found = hashlib.sha256(repr((TOOLS, EXAMPLES)).encode()).hexdigest()
    assert found.startswith("3c35a4842c0ec5f1")


def test_self_instruct_refuses_missing_seeds_and_invalid_settings(tmp_path):
    with AppendOnly(tmp_path / "a", {}) as file:
        cache = ResponseCache(file, Scripted().open, seed=0)
        for seeds, examples, tools, message in (
            ([], EXAMPLES, TOOLS, "no seed tasks"),
            (SEEDS, [], TOOLS, "no worked examples"),
            (SEEDS, EXAMPLES, [], "no tools"),
            (SEEDS, EXAMPLES, TOOLS[:1], "unknown tools"),
            (SEEDS, [Seed("q", "Thought: no", ("weather",))], TOOLS, "no Final Answer"),
        ):
            with pytest.raises(QwenJaxError, match=message):
                SelfInstruct(Settings(), Rules(), cache, seeds, examples, tools)
    for wrong in (
        lambda: Settings(samples=0),
        lambda: Settings(rounds=0),
        lambda: Rules(novelty=0),
        lambda: Settings(instruction_lists=0, question_lists=0),
        lambda: Rules(languages=("latim",)),
        lambda: Rules(min_words=9, max_words=8),
    ):
        with pytest.raises(QwenJaxError):
            wrong()


def sample(number, kind="instruction", text="a ```fenced``` answer"):
    return Sample(
        f"0-answers-{number}",
        kind,
        f"question {number}?",
        (),
        (("user", f"question {number}?"), ("assistant", text)),
    )


def test_review_keeps_the_reviewers_edits(tmp_path):
    path, out = tmp_path / "review.jsonl", tmp_path / "conversations.jsonl"
    rows = review.update(path, [sample(0), sample(1)])
    counts = review.collect(rows, out, tmp_path / "react.jsonl", keep_unreviewed=False)
    assert counts.kept == 0 and counts.skipped == {"not reviewed yet": 2}
    rows[0]["keep"], rows[1]["keep"] = True, False
    rows[0]["messages"][1]["content"] = "corrected"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = review.update(path, [sample(0), sample(1), sample(2), sample(3, text=" ")])
    assert [row["keep"] for row in rows] == [True, False, None, None]
    counts = review.collect(rows, out, tmp_path / "react.jsonl", keep_unreviewed=True)
    assert counts.kept == 2
    assert counts.skipped == {"rejected in review": 1, "an empty response": 1}
    conversations = list(read_conversations([out], Counts()))  # as experiments.sft does
    assert [conversation.turns for conversation in conversations] == [
        (("user", "question 0?"), ("assistant", "corrected")),
        (("user", "question 2?"), ("assistant", "a ```fenced``` answer")),
    ]
    assert (tmp_path / "react.jsonl").read_text() == ""
    page = review.render(rows)
    assert "4 samples, 2 not reviewed" in page
    assert page.index("0-answers-2") < page.index("0-answers-0")  # unreviewed samples come first
    assert "````text\na ```fenced``` answer\n````" in page
    for wrong, message in (("yes", "keep is 'yes'"), (1, "keep is 1")):
        rows[0]["keep"] = wrong
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(QwenJaxError, match=message):
            review.update(path, [])


def test_read_seeds_reads_every_format(tmp_path):
    path = tmp_path / "seeds.jsonl"
    rows = [
        {"instruction": "Plain?"},
        {"instruction": "A?", "input": "x", "output": "y"},
        {"instruction": "S?", "instances": [{"input": "", "output": "o"}, {"input": "2"}]},
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "M?"},
                {"role": "assistant", "content": "m"},
            ]
        },
        {"instruction": " "},
        {"instruction": None, "output": "x"},
        {"instruction": react.prompt("q", TOOLS), "output": END},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = Counts()
    assert read_seeds(path, counts) == [
        Seed("Plain?"),
        Seed("A?\nx", "y"),
        Seed("S?", "o"),
        Seed("M?", "m"),
    ]
    assert counts.skipped == {"without a question": 2, "a question for tools": 1}
    tools = tmp_path / "tools.json"
    fields = {"name_for_human": "Foo", "name_for_model": "foo", "description_for_model": "d"}
    tools.write_text(json.dumps([fields]))
    assert react.read_tools(tools) == [react.Tool("Foo", "foo", "d")]
    for wrong, message in (
        ([fields, fields], "two tools"),
        ([{}], "not a tool description"),
        ([fields | {"parameters": ["x"]}], "not a tool description"),
        ([], "no tools"),
    ):
        tools.write_text(json.dumps(wrong))
        with pytest.raises(QwenJaxError, match=message):
            react.read_tools(tools)
    examples = tmp_path / "examples.jsonl"
    examples.write_text(json.dumps({"question": "q", "tools": ["foo"], "answer": END}) + "\n")
    assert read_react_seeds(examples) == [Seed("q", END, ("foo",))]
    examples.write_text(json.dumps({"question": "q", "tools": [], "answer": END}) + "\n")
    with pytest.raises(QwenJaxError, match="not a worked example"):
        read_react_seeds(examples)


def test_read_seeds_reads_the_real_seed_tasks(shared):
    counts = Counts()
    seeds = read_seeds(shared / "data" / "chat" / "seed_tasks.jsonl", counts)
    assert len(seeds) == counts.kept == 175 and not counts.skipped
    assert sum(seed.answer is not None for seed in seeds) > 170
    # Measured: most human-written tasks pass the rules for generated ones.
    faults = collections.Counter(question_fault(seed.question, Rules()) for seed in seeds)
    assert faults[None] > 0.8 * len(seeds), faults
