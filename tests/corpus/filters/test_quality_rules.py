"""Quality rules reject bad text and keep good text, in English, Chinese and code."""

import dataclasses
import json
import random

import pyarrow as pa
import pytest

from qwen_jax.corpus import pipeline
from qwen_jax.corpus.filters import mathematics, quality_rules
from qwen_jax.corpus.filters.language import CODE as IS_CODE
from qwen_jax.corpus.filters.language import FORMULA, identify
from qwen_jax.corpus.filters.quality_rules import measures, rejection
from qwen_jax.corpus.sources.read import Read
from qwen_jax.errors import ConfigError
from qwen_jax.utils.jsonl import read_rows

ENGLISH = """The lighthouse at the end of the bay was built in the winter of 1871, after two
ships had been lost on the rocks that stand below the cliff. Its keeper lived there with a dog and a
stove. Every evening he climbed the stairs with oil, and every morning he wrote down what he had
seen. People who found his notes have said that they are the best record of those years."""
CHINESE = (
    "海湾尽头的灯塔建于一八七一年的冬天，那时已经有两艘船在悬崖下的礁石上沉没了。"
    "守塔人带着一只狗和一个火炉住在那里。\n"
    "他每天晚上提着油爬上楼梯，每天早上写下自己看到的东西。"
    "发现这些笔记的人说，这是关于那些年天气最好的记录。"
)
CLASSICAL = (
    "王安國，字平甫，臨川人，安石弟。神宗熙寧初召試，賜進士及第，除武昌軍節度推官，西京國子教授。"
    "官滿，召爲崇文院校書，改秘閣校理。熙寧七年卒，年四十七。有文集六十卷，已佚。"
)
VERSE = """烈日炎烤花初繁，
草地碧绿树也攀。
鸟儿啁啾啼声甜，
蝴蝶蜜峰跳舞妍。
河流清澈碧波浅，
蓝天白云自由幻。
夏至未至心已陶，
悠闲惬意梦中绵。"""
CODE = """import os


def sizes(folder):
    return {name: os.path.getsize(name) for name in os.listdir(folder)}
"""


SPACED_VERSE = "\n\n".join(
    f"{a}，\n\n{b}。"
    for a, b in (
        ("江水向东流", "不问去与留"),
        ("山花开又落", "人在小桥头"),
        ("明月照归路", "清风解客愁"),
        ("旧友今何在", "梦里一扁舟"),
        ("灯火三更近", "书声万里秋"),
        ("莫道前程远", "来日尚可求"),
    )
)
INTRODUCED = (
    "下面的循环把从一到五的数字各乘以二，再加上十，然后一行一个地打印出来，最后得到的结果写在它的后面：\n"
    "```python\nfor n in range(1, 6):\n    print(10 + 2 * n)\n```\n"
    "由此可以看到，每一行都比前一行大二，这是因为乘数是二的缘故：\n"
)
NAMED = CHINESE + "".join(
    what.format("North Atlantic Harbour Museum")
    for what in ("后来{}把灯塔买了下来。", "第二年{}请人修好了楼梯。", "如今{}出版了守塔人的笔记。")
)
RECEIPT = CHINESE + "".join(
    f"\n{'-' * 40}\n{item}"
    for item in ("灯油三桶，已付清。", "木柴二十捆，已付清。", "合计四十七元，多谢惠顾。")
)


@pytest.mark.parametrize(
    "text, language, kind",
    [
        (ENGLISH, "en", "web"),
        (CHINESE, "zh", "web"),
        (CLASSICAL, "zh", "text"),
        (VERSE, "zh", "text"),
        (SPACED_VERSE, "zh", "web"),
        (INTRODUCED, "zh", "web"),
        (NAMED, "zh", "web"),
        (RECEIPT, "zh", "web"),
        (CODE, "python", "code"),
        ("好。", "zh", "instruction"),
    ],
    ids=[
        "english",
        "chinese",
        "classical",
        "verse",
        "spaced_verse",
        "introduced_code",
        "named",
        "receipt",
        "code",
        "answer",
    ],
)
def test_rejection_keeps_good_text(text, language, kind):
    assert rejection(text, language=language, kind=kind) is None


def lines(number, make):
    return "\n".join(make(i) for i in range(number))


BAD = {  # rule -> text, language, kind
    "words": ("Too short.", "en", "web"),
    "word_length": ("supercalifragilistic hydrochlorofluorocarbon " * 40, "en", "web"),
    "hash_marks": (ENGLISH + " # # # # # # # # # # #", "en", "web"),
    "ellipses": (ENGLISH + " ... and" * 12, "en", "web"),
    "words_with_letters": (ENGLISH + " 12 34" * 30, "en", "web"),
    "stop_words": (
        "lighthouse keeper walks up stairs every evening carrying oil lamp " * 8,
        "en",
        "web",
    ),
    "lorem_ipsum": (ENGLISH + " Lorem ipsum dolor sit amet.", "en", "web"),
    "braces": ("function a() { return the; } var b = { have: that }; " * 8, "en", "web"),
    "sentences": (ENGLISH.replace(".", ","), "en", "web"),
    "new_lines": (ENGLISH.replace(" ", "\n"), "en", "web"),
    "bullet_lines": (
        lines(30, lambda i: f"- {ENGLISH.split()[i]} is the {i}th and it is good."),
        "en",
        "web",
    ),
    "ellipsis_lines": (
        lines(9, lambda i: f"{ENGLISH[i * 40 : i * 40 + 40].strip()} and that was it. Read on..."),
        "en",
        "web",
    ),
    "boilerplate_lines": (ENGLISH + "\nPlease enable JavaScript.\nWe use cookies.", "en", "web"),
    "ended_lines": (
        lines(30, lambda i: f"{i} is the number of the lamp and have that with it")
        + "\nOne. Two. Three.",
        "en",
        "web",
    ),
    "duplicate_lines": (
        lines(30, lambda i: ENGLISH.replace("\n", " ") if i % 3 else f"{i} is it."),
        "en",
        "web",
    ),
    "characters": ("太短了。", "zh", "web"),
    "run_length": (
        "首页、新闻、图片、视频、音乐、电影、汽车、房产、教育、旅游、游戏、女人、男人、体育、科技、财经、"
        "军事、历史、文化、健康、星座、育儿、美食、时尚、招聘、的、了。",
        "zh",
        "web",
    ),
    "stop_characters": ("魑魅魍魉" * 20 + "。", "zh", "web"),
    "generated_marks": ("# This file is auto-generated.\n" + CODE, "python", "code"),
    "longest_line": (CODE + "x = [" + "1, " * 500 + "]\n", "python", "code"),
    "line_length": (
        lines(9, lambda i: f"value_{i} = " + "a_rather_long_name_for_it + " * 8),
        "python",
        "code",
    ),
    "alphanumeric": ("+-*/ (){}[] ;;;; \n" * 20, "c", "code"),
    "alphabetic": ("1234 5678 9012 3456\n" * 20, "c", "code"),
    "encoded": (lines(30, lambda i: f"{'QWxh' * 32}{i}"), "python", "code"),
}


@pytest.mark.parametrize("rule", BAD)
def test_rejection_by_each_rule(rule):
    text, language, kind = BAD[rule]
    found = measures(text, language=language, kind=kind)
    broken = [name for name, value, (low, high) in found if not low <= value <= high]
    assert rule in broken
    assert rejection(text, language=language, kind=kind).rule in broken
    assert rejection(text, language=language, kind=kind).rule == broken[0]


def test_repetitions_agree_with_brute_force_counting():
    """Random words of a small vocabulary."""
    rng = random.Random(0)
    for number in (60, 300):
        words = rng.choices(["the", "of", "and", "sea.", "that", "wind", "be", "a"], k=number)
        text = " ".join(words)
        found = {
            name: value for name, value, _ in measures(text, language="en", kind="instruction")
        }
        total = sum(map(len, words))
        for size in (2, 3, 4):
            grams = [tuple(words[i : i + size]) for i in range(number - size + 1)]
            covered = max(
                (
                    grams.count(gram) * sum(map(len, gram))
                    for gram in set(grams)
                    if grams.count(gram) >= 3
                ),
                default=0,
            )
            assert found[f"top_{size}gram"] == pytest.approx(min(1, covered / total))
        for size in (5, 6, 7):
            grams = [tuple(words[i : i + size]) for i in range(number - size + 1)]
            inside = {
                i + j for i in range(len(grams)) if grams[i] in grams[:i] for j in range(size)
            }
            assert found.get(f"duplicate_{size}grams", 0) == pytest.approx(
                sum(len(words[i]) for i in inside) / total
            )


def test_rejection_ignores_fenced_code_or_measures_it_as_code():
    fenced = f"{CHINESE}\n\n```js\n" + lines(8, lambda i: f"if (a) {{ {i}; }}") + "\n```\n"
    assert rejection(fenced, language="zh") is None
    bare = fenced.replace("```js", "").replace("```", "")
    assert "braces" in {
        name for name, value, (_, high) in measures(bare, language="zh") if value > high
    }
    mostly = "看：\n```python\n" + CODE * 3 + "```"
    assert "generated_marks" in {name for name, *_ in measures(mostly, language="zh")}


def test_rejection_keeps_tex():
    text = ENGLISH + r" It is $\frac{a_{1}}{b^{2}} + \sqrt{c} + \mathbf{x}_{i} \text{ of } {y}$."
    assert rejection(text, language="en") is None


def test_rejection_measures_identified_code_as_code():
    short = "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2), add(3, 4))\n"
    assert rejection(short, language=IS_CODE, kind="text") is None
    assert rejection(short, language="en", kind="text").rule == "words"
    assert rejection("x = " + "[0]," * 999, language=IS_CODE, kind="text").rule == "longest_line"


GSM8K = """Mei has 48 shells. She gives half of them to her sister, and finds 7 more on the way.
How many shells does she have?
She gives away 48/2 = <<48/2=24>>24 shells.
Then she has 24 + 7 = <<24+7=31>>31 shells.
#### 31"""


def test_rejection_does_not_count_formulas():
    assert rejection(GSM8K, language="en", kind="text") is None
    assert rejection("x^2 + y^2 = 25", language=FORMULA, kind="text") is None
    dense = ENGLISH + "".join(f" Then {i} + {i} = {2 * i} ." for i in range(4, 9))
    assert rejection(dense, language="en") is None
    prices = ENGLISH + " 12 . 50 , $ 99 - 14 % 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24"
    assert rejection(prices, language="en").rule == "words_with_letters"
    spam = "a = 1 best price here = 2\n" * 30
    assert rejection(spam, language="en", kind="text") is not None


def test_rejection_limits_the_length_of_pages_only():
    rng = random.Random(0)
    words = [f"w{i}" for i in range(20_000)] + "the be to of and that have with".split() * 500
    book = "\n".join(" ".join(rng.choices(words, k=12)) + "." for _ in range(9_000))
    assert rejection(book, language="en", kind="web").rule == "words"
    assert rejection(book, language="en", kind="text") is None
    chinese = "".join(chr(0x4E00 + i * 7919 % 20000) for i in range(170_000))
    assert rejection(chinese, language="zh", kind="web").rule == "characters"
    assert rejection(chinese, language="zh", kind="text").rule != "characters"


@pytest.mark.parametrize(
    "part", ["$", "$x", "= 1 ", "1 = ", "\\(", "\\[ ", "\\begin{align}", "/* ", '\n"""', "\n'''"]
)
def test_without_formulas_and_identify_are_linear(part):
    text = part * (200_000 // len(part))
    mathematics.without_formulas(text)  # quadratic, it takes minutes
    identify(text)


def test_rejection_keeps_code_and_mathematics_of_public_sets(shared):
    """Shares of rejected documents; before code and formulas were recognized, most of them."""
    folder = shared / "data"
    codes = [
        row["prompt"] + row["canonical_solution"]
        for language in ("python", "js", "java", "go", "cpp", "rust")
        for _, row in read_rows(folder / f"eval/humanevalpack_{language}.jsonl")
    ]
    math500 = [
        f"{row['problem']}\n\n{row['solution']}"
        for _, row in read_rows(folder / "eval/math500_test.jsonl")
    ]
    gsm8k = [
        f"{row['question']}\n{row['answer']}"
        for _, row in read_rows(folder / "chat/gsm8k_train_2000.jsonl")
    ]
    web = [row["text"] for _, row in read_rows(folder / "text/c4_demo.jsonl")]
    for texts, low, high in (
        (codes[::3], 0, 0.03),
        (math500, 0, 0.06),
        (gsm8k[::4], 0, 0.06),
        (web, 0.1, 0.2),  # unchanged
    ):
        found = [rejection(text, language=identify(text)[0], kind="text") for text in texts]
        assert low <= sum(each is not None for each in found) / len(found) <= high


def test_rejection_needs_stop_words_only_in_english():
    german = (
        "Der Leuchtturm am Ende der Bucht wurde im Winter gebaut, nachdem zwei Schiffe an "
        "Felsen verloren gegangen waren. Der Wärter lebte dort mit einem Hund. Jeden Abend stieg "
        "er mit Öl die Treppe hinauf, und jeden Morgen schrieb er auf, was er gesehen hatte. Wer "
        "seine Notizen fand, sagt, sie seien die beste Aufzeichnung jener Jahre gewesen."
    )
    assert rejection(german, language="de") is None
    assert rejection(german, language="en").rule == "stop_words"


def test_rejection_of_an_unknown_kind_is_an_error():
    with pytest.raises(ConfigError, match="did you mean 'code'"):
        rejection("x", language="en", kind="cod")


def test_quality_stage_marks_rows_and_keeps_them():
    table = pa.table(
        {
            "text": [ENGLISH, "Too short.", CODE],
            "language": ["en", None, "python"],
            "kind": ["web", "web", "code"],
        }
    )
    marked = quality_rules.QualityStage()(table)
    assert marked["rejected_by"].to_pylist() == [None, "words", None]
    assert marked["rejected_value"].to_pylist() == [None, "2", None]
    loose = dataclasses.replace(
        quality_rules.RECIPE.english, words=(0, 1e9), stop_words=(0, 8), sentences=(0, 99)
    )
    rules = dataclasses.replace(quality_rules.RECIPE, english=loose)
    assert quality_rules.QualityStage(rules)(table)["rejected_by"].null_count == 3


def test_rejection_of_good_chinese_is_only_by_length(shared):
    rows = json.loads((shared / "data/text/zh_song_authors.json").read_text(encoding="utf-8"))
    found = [rejection(row["desc"], language="zh", kind="text") for row in rows[::4]]
    assert sum(r is not None and r.rule != "characters" for r in found) <= 1
    rows = json.loads((shared / "data/chat/alpaca_zh_demo.json").read_text(encoding="utf-8"))
    found = [rejection(row["output"], language="zh", kind="instruction") for row in rows]
    assert sum(r is not None for r in found) <= 20  # of 1,000; mainly lists of equal lines


def test_quality_stage_resumes_a_folder_with_former_names_of_settings(tmp_path):
    (tmp_path / "a.txt").write_text(ENGLISH)

    def run():
        steps = [Read(), quality_rules.QualityStage()]
        pipeline.run([str(tmp_path / "a.txt")], steps, str(tmp_path / "out"), workers=0)

    run()
    record = tmp_path / "out/pipeline.json"
    former = (
        record.read_text().replace("top_min_count", "top_least").replace("min_units", "least_units")
    )
    assert former != record.read_text()
    record.write_text(former)
    run()
    record.write_text(former.replace('"least_units": 50', '"least_units": 51'))
    with pytest.raises(ConfigError, match="made with different settings"):
        run()
