"""The tasks @lm_eval next to lm-eval's own task files: prompts, choices, stops, gold, verdicts."""

import random

import pytest

from qwen_jax.evaluate import likelihood
from qwen_jax.evaluate.data_files import DataFolders
from qwen_jax.evaluate.prompts import questions
from qwen_jax.evaluate.task import LM_EVAL_MAX_NEW_TOKENS, Item
from qwen_jax.evaluate.tasks import TASKS, gsm8k, math_full
from qwen_jax.grading import minerva
from qwen_jax.grading.code import cut_completion
from tests.helpers import lm_eval_published as theirs
from tests.helpers.math_files import write_math

pytest.importorskip("lm_eval", reason="lm-eval is not installed")
EXAMPLES = 20  # of each subject
TRAIN = 2_000  # questions that the shared part of GSM8K's training set has
# File, columns of its data set, and the splits of questions and of worked examples.
LETTERED = {
    "mmlu": ("mmlu/default/mmlu_{}.yaml", theirs.mmlu_row, "test"),
    "ceval": ("ceval/ceval-valid_{}.yaml", theirs.letters_row, "val"),
    "cmmlu": ("cmmlu/cmmlu_{}.yaml", theirs.letters_row, "test"),
}
PROBLEM = theirs.plain_row("problem", "solution")
COMPLETED = {
    "gsm8k": ("gsm8k/gsm8k.yaml", theirs.plain_row("question", "answer")),
    "math": ("minerva_math/minerva_math500.yaml", PROBLEM),
    "humaneval": ("humaneval/humaneval.yaml", theirs.plain_row("prompt", "test", "entry_point")),
    "mbpp": ("mbpp/mbpp.yaml", theirs.plain_row("text", "code", "test_list")),
    "bbh": ("bbh/cot_fewshot/{}.yaml", theirs.bbh_row),
    "math_full": ("minerva_math/minerva_math_{}.yaml", PROBLEM),
}
SHORT = {  # lm-eval's names of MATH's subjects
    "counting_and_probability": "counting_and_prob",
    "number_theory": "num_theory",
    "precalculus": "precalc",
}


@pytest.fixture(scope="module")
def data(shared, tmp_path_factory):
    """The shared folders, and files for what they lack."""
    own = tmp_path_factory.mktemp("data")
    rows = (shared / "data/chat/gsm8k_train_2000.jsonl").read_bytes()
    (own / "gsm8k_train.jsonl").write_bytes(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gsm8k, "TRAIN_QUESTIONS", TRAIN)
        patch.setattr(math_full, "QUESTIONS", write_math(own / "MATH"))
        yield DataFolders([own, shared / "data/eval", shared / "data/eval_more"])


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """lm-eval's code tasks load a metric from the hub when they are imported."""
    evaluate = pytest.importorskip("evaluate", reason="the package evaluate is not installed")
    monkeypatch.setattr(evaluate, "load", lambda name: theirs.CodeEval())


def lettered(data, key):
    """Yields lm-eval's task, our task and its examples, for each subject."""
    file, row, split = LETTERED[key]
    work = questions.read(TASKS[f"{key}@lm_eval"], data, None)
    for subject, shots in work.shots.items():
        own = [one for one in work.examples if one.subject == subject][:EXAMPLES]
        splits = {split: list(map(row, own)), "dev": list(map(row, shots))}
        yield theirs.task(file.format(subject), 5, **splits), work, own


def completed(data, key):
    """Yields lm-eval's task, our task and its examples, for each of lm-eval's files."""
    if key.startswith("math"):
        pytest.importorskip("antlr4", reason="lm-eval[math] is not installed")
    file, row = COMPLETED[key]
    work = questions.read(TASKS[f"{key}@lm_eval"], data, None)
    parts: dict[str, list] = {}
    for one in work.examples:
        subject = one.subject.partition(" level")[0]
        parts.setdefault(SHORT.get(subject, subject), []).append(one)
    for subject, own in parts.items():
        splits = {"test": list(map(row, own))}
        if key == "gsm8k":
            splits["train"] = data.json_lines("gsm8k_train.jsonl")
        if key == "math_full":
            splits["train"] = splits["test"]
        yield theirs.task(file.format(subject), None, **splits), work, own


@pytest.mark.parametrize("key", LETTERED)
def test_choices_are_asked_as_by_lm_eval(data, key):
    for built, work, own in lettered(data, key):
        found = theirs.asked(built)
        assert len(found) == len(own) > 0
        for one, example in zip(found, own, strict=True):
            assert work.prompt(example) == one.prompt
            assert work.task.choices(example) == one.choices
            assert "ABCD".index(example.answer) == one.gold


@pytest.mark.parametrize("key", COMPLETED)
def test_completions_are_asked_as_by_lm_eval(data, key):
    for built, work, own in completed(data, key):
        found = theirs.asked(built, EXAMPLES if work.task.name == "bbh" else 60)
        assert len(found) >= min(len(own), EXAMPLES)
        settings = work.task.generation
        for one, example in zip(found, own, strict=False):
            assert work.prompt(example) == one.prompt
            assert list(settings.stops) == one.settings["until"]
            length = one.settings.get("max_gen_toks", LM_EVAL_MAX_NEW_TOKENS)
            assert settings.max_new_tokens == length
            assert not one.settings["do_sample"]


def test_choices_are_judged_as_by_lm_eval(data):
    rng = random.Random(0)
    built, work, own = next(lettered(data, "ceval"))
    for example, row in zip(own, built.eval_docs, strict=True):
        # Some are equal: the first wins.
        scores = [(float(rng.choice([-1, -2, -3, -4])), False) for _ in range(4)]
        ours = likelihood.compared(
            Item(example, "", 0),
            work.task.choices(example),
            [(score,) for score, _ in scores],
            work.task,
            prompt_tokens=1,
            separate=False,
        )
        judged = built.process_results(row, scores)
        assert ours["correct"] == judged["acc"]
        assert ours["correct_per_byte"] == judged["acc_norm"]


# Completions from the right answer A and a right completion G, some of them wrong.
NUMBERS = (
    *("{G}", "#### {A}", "So it is {A}.", "#### {A}.", "####{A}", "#### $1{A}\n#### {A}", "none"),
    *("#### -{A}", "{A} eggs", "#### {A}.00", "#### 1 {A}", "${A}", "It costs ${A}.\n\n#### {A}"),
    *("#### {A}\nQuestion: 7", "#### {A},", "#### 0{A}", "the answer is {A}", "#### ", "{A}{A}"),
)
FORMULAS = (
    *("{G}", "Final Answer: The final answer is ${A}$. I hope it is correct.", r"\boxed{{A}}"),
    *("Final Answer: The final answer is {A}. I hope it is correct.", "The final answer is {A}."),
    *("Final Answer: The final answer is ${A}$. ", "Final Answer: The final answer is ${A}$"),
    *("Final Answer: The final answer is $x = {A}$! I hope it is correct?", "{A}"),
    *("Final Answer: The final answer is\n${A}$. I hope it is correct.", "Problem: {G}"),
    *("Final Answer: The final answer is ${A}$ cm. I hope it is correct.",),
    *("Final Answer: The final answer is $1 + {A}$. I hope it is correct.",),
    *("Final Answer: The final answer is ${A}$. I hope it is correct. {G}",),
    *("Final Answer: The final answer is $7$. I hope it is correct.\n{G}",),
    *("Final Answer: The final answer is ${A}{A}$. I hope it is correct.",),
    *("Final Answer: The final answer is {A} dollars. I hope it is correct.",),
)
SENTENCES = (
    *("So the answer is {A}.", "the answer is {A}", "The answer is {A}.", "{A}", "{G}"),
    *("So the answer is {A}.\nthe answer is no.", "the answer is {A}. Q: more", "Answer: {A}."),
    *("the answer is  {A} .", "the answer is not {A}.", "the answer is {A}.\n\nthe answer is x."),
)
PROGRAMS = (
    *(
        "{G}",
        "{G}\n\nprint(1)",
        "{G}\nassert False",
        "",
        "    return None\n",
        "{G}\n    (",
        "\n{G}",
    ),
    *("{G}\nclass A:\n  (", "{G}\n# a comment\nassert 0"),
)
VARIANTS = {
    "gsm8k": NUMBERS,
    "math": FORMULAS,
    "bbh": SENTENCES,
    "humaneval": PROGRAMS,
    "mbpp": PROGRAMS,
}


def completions(key, work, own, count=60):
    """Returns examples with completions, cut at the stop strings as lm-eval's models do it."""
    gold, stops = work.task.generation.gold, work.task.generation.stops
    found = []
    for one, form in zip(own, VARIANTS[key] * count, strict=False):
        text = form.replace("{A}", one.answer).replace("{G}", gold(one))
        found.append((one, cut_completion(text, stops)))
    return found[:count]


@pytest.mark.parametrize("key", VARIANTS)
def test_completions_are_judged_as_by_lm_eval(data, key):
    total, right = 0, 0
    for built, work, own in completed(data, key):
        if key == "bbh":
            own = own[:EXAMPLES]
        pairs = completions(key, work, own)
        judged = theirs.verdicts(built, [text for _, text in pairs])
        for (example, text), expected in zip(pairs, judged, strict=True):
            verdict = work.task.generation.verdict(text, example)
            names = {
                "gsm8k": ("strict-match exact_match", "flexible-extract exact_match"),
                "math": ("none exact_match",),
                "bbh": ("get-answer exact_match",),
                "humaneval": ("create_test pass@1",),
                "mbpp": ("none pass_at_1",),
            }[key]
            ours = [verdict.correct, *verdict.also.values()][: len(names)]
            assert ours == [expected[name] for name in names], (example.id, text)
            total, right = total + 1, right + verdict.correct
    assert total >= 50 and 0.2 * total < right < 0.9 * total


def test_normalized_answers_are_those_of_lm_eval(data):
    pytest.importorskip("antlr4", reason="lm-eval[math] is not installed")
    from lm_eval.tasks.minerva_math import utils

    answers = [one["answer"] for one in data.json_lines("math500_test.jsonl")]
    units = (" cm", r"\text{ feet}", " points", r"^\circ", " and a half", ", an integer")
    answers += [f"x = {answer}{unit}" for answer in answers for unit in units]
    answers += [rf"\{name}{{AB}} c" for name in ("overline", "textbf", "text", "boxed", "mbox")]
    answers += [r"\sqrt3", r"\sqrt[3]a", r"\frac34", "1,234,567", "12,34", "0,1", "2 \\$ .$", "ft"]
    for answer in answers:
        assert minerva.normalize(answer) == utils.normalize_final_answer(answer), answer
