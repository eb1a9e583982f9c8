"""Language identification; code and formulas are not taken for languages."""

import gzip
import json

import pytest

pa = pytest.importorskip("pyarrow")
pytest.importorskip("py3langid")

from qwen_jax.corpus import stage
from qwen_jax.corpus.filters.language import CODE, FORMULA, Language, code_of, identify

ENGLISH = "The committee met again in the autumn, and decided that nothing should be decided."
GERMAN = "Der Ausschuss trat im Herbst wieder zusammen und beschloss, nichts zu beschließen."
CHINESE = "委员会在秋天再次开会，决定什么也不决定。"
PYTHON = "import os\n\ndef main(path):\n    for name in os.listdir(path):\n        print(name)\n"
PROOF = r"\int_0^1 x^2 dx = \left[\frac{x^3}{3}\right]_0^1 = \frac{1}{3}"


@pytest.mark.parametrize(
    "text, language",
    [
        (ENGLISH, "en"),
        (GERMAN, "de"),
        (CHINESE, "zh"),
        (PYTHON, CODE),
        (PROOF, FORMULA),
        ("x^2 + y^2 = 25", FORMULA),
        (f'"""{ENGLISH}\n\n{ENGLISH}\n"""\n' + PYTHON, CODE),
        (f"/* {ENGLISH} */\n/* {ENGLISH} */\n#ifndef A_H\n#define A_H\n#endif\n", CODE),
        (f"{ENGLISH} See /etc/* for more.\n{ENGLISH}", "en"),
        (f'"""{ENGLISH}"""', "en"),
        ("42", FORMULA),
        ("\n", ""),
        (CHINESE * 1000, "zh"),
    ],
)
def test_identify_languages_code_and_formulas(text, language):
    assert identify(text)[0] == language


@pytest.mark.parametrize(
    "name, code",
    [
        ("en", "en"),
        ("English", "en"),
        ("en-US", "en"),
        ("eng_Latn", "en"),
        ("zh_Hans", "zh"),
        ("Chinese (simplified)", "zh"),
        ("cmn", "zh"),
        ("yue", "zh"),
        (" ja ", "ja"),
        ("fr", "fr"),
        ("unknown", ""),
        ("und", ""),
        ("", ""),
        ("?", ""),
    ],
)
def test_code_of_names_in_sources(name, code):
    assert code_of(name) == code


def test_language_stage_trusts_the_source():
    table = pa.Table.from_pylist(
        [{"text": ENGLISH, "kind": "web", "language": name} for name in ("Chinese", "unknown")]
        + [{"text": PYTHON, "kind": "code", "language": "python"}],
        schema=stage.schema(),
    )
    assert Language()(table)["language"].to_pylist() == ["zh", "en", "python"]


def rows(**settings):
    made = [
        {"text": text, "kind": kind, "language": language}
        for text, kind, language in [
            (ENGLISH, "web", None),
            (GERMAN, "web", None),
            (PYTHON, "web", None),
            (PROOF, "web", None),
            (GERMAN, "code", "c"),
            ("Qty Lkr 4.50", "web", None),
            ("Hallo", "web", "en"),
        ]
    ]
    table = pa.Table.from_pylist(made, schema=stage.schema())
    assert len(Language(**settings)(table.slice(0, 0))) == 0
    return Language(**settings)(table).to_pylist()


def test_language_stage_rejects_unwanted_and_uncertain_languages():
    out = rows(wanted=("en", "zh"))
    assert [row["rejected_by"] for row in out] == [
        None,
        "language",
        None,
        None,
        None,
        "language_unsure",
        None,
    ]
    assert [row["language"] for row in out][1:5] == ["de", CODE, FORMULA, "c"]
    assert out[1]["rejected_value"] == "de" and float(out[5]["rejected_value"]) < 0.3
    assert sum(row["rejected_by"] is None for row in rows()) == 6


def test_language_stage_keeps_good_text(shared):
    """Classical and modern Chinese, English, mathematics, and code in six languages."""
    language = Language(wanted=("en", "zh"))

    def kept(texts):
        texts = list(texts)
        return sum(language.verdict(*identify(text), "web") is None for text in texts) / len(texts)

    data = shared / "data"
    assert (
        kept(
            row["desc"]
            for row in json.loads((data / "text/zh_song_authors.json").read_text())[:300]
            if row["desc"].strip()
        )
        == 1
    )
    assert (
        kept(
            row["output"]
            for row in json.loads((data / "chat/alpaca_zh_demo.json").read_text())
            if len(row["output"]) > 40
        )
        > 0.99
    )
    with open(data / "eval/math500_test.jsonl", encoding="utf-8") as lines:
        assert kept(json.loads(line)["solution"] for line in list(lines)[:200]) > 0.99
    for name in ("java", "go", "cpp", "rust"):
        with open(data / f"eval/humanevalpack_{name}.jsonl", encoding="utf-8") as lines:
            assert (
                kept(
                    (row := json.loads(line))["prompt"] + row["canonical_solution"]
                    for line in lines
                )
                > 0.99
            )
    with gzip.open(data / "eval/HumanEval.jsonl.gz", "rt") as lines:
        assert kept(json.loads(line)["prompt"] for line in lines) > 0.95
