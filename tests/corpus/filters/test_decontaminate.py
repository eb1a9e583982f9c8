"""Decontamination: disguised test items are found, shared phrases are not."""

import csv
import io
import json
import random
import zipfile

import numpy as np
import pyarrow as pa
import pytest

from qwen_jax.corpus.filters import decontaminate
from qwen_jax.corpus.filters.decontaminate import DecontaminationRules, DecontaminationStage, Index
from qwen_jax.corpus.filters.test_items import TestItem, read_test_sets
from qwen_jax.errors import DataError

LONG = (
    "A train leaves the station at noon with forty wagons of coal, reaches the harbour after "
    "three hours; how many wagons does it lose when six of them are left behind at every stop?"
)
CHINESE = (
    "一列火车中午从车站出发，带着四十节煤车，三个小时以后到达港口，"
    "每一站留下六节，请问一共丢下多少节？"
)
ITEMS = [
    TestItem("sums", "0", LONG),
    TestItem("zh", "7", CHINESE),
    TestItem("short", "1", "Name the nine largest moons please"),
    TestItem("tiny", "2", "1+1="),
    TestItem("tiny", "3", "1-1="),
]
FILLER = "The weather was fine and nobody thought of trains. " * 20


@pytest.fixture(scope="module")
def index():
    return Index.build(ITEMS)


def found(index, text):
    return {(match.test_set, match.item) for match in index.matches(text)}


@pytest.mark.parametrize(
    "text, item",
    [
        (LONG, ("sums", "0")),
        (LONG.upper().replace(" ", "\n  "), ("sums", "0")),
        (LONG.replace(",", "").replace(";", " --"), ("sums", "0")),
        (" ".join(LONG.split()[9:22]), ("sums", "0")),  # 13 words of it
        (CHINESE.replace("，", " "), ("zh", "7")),
        (CHINESE[10:25], ("zh", "7")),
        ("Name: the nine, LARGEST moons, please!", ("short", "1")),
        ("Ａ ｔｒａｉｎ " + LONG[8:], ("sums", "0")),
        ("x\n 1 + 1 =\ny", ("tiny", "2")),
        ("1 - 1 =", ("tiny", "3")),
    ],
    ids=range(10),
)
def test_index_finds_disguised_items_in_a_text(index, text, item):
    assert found(index, FILLER + "\n" + text + "\n" + FILLER) == {item}


@pytest.mark.parametrize(
    "text",
    [
        FILLER,
        " ".join(LONG.split()[9:21]),  # 12 words of it
        " ".join(reversed(LONG.split())),
        "Name the nine largest moons",
        "we know that 1+1=2",
        "1*1=",
        "",
        CHINESE[10:23],
    ],
    ids=range(8),
)
def test_index_ignores_less_than_an_ngram(index, text):
    assert found(index, text) == set()


@pytest.mark.parametrize("group", [1, 40, 1 << 16])
def test_matches_in_agrees_with_matches(index, monkeypatch, group):
    """N-grams do not cross the boundaries between texts."""
    monkeypatch.setattr(decontaminate, "_GROUP", group)
    words = LONG.split()
    texts = [
        "",
        LONG,
        " ".join(words[:9]),
        " ".join(words[9:20]),
        FILLER + LONG + "\n1+1=",
        CHINESE,
        " ".join(words[20:]),
        LONG,
        CHINESE[:12],
        CHINESE[12:],
        "1-1=",
        "",
    ]
    found = index.matches_in(texts)
    assert found == [index.matches(text) for text in texts]
    assert [bool(matches) for matches in found] == [
        False,
        True,
        False,
        False,
        True,
        True,
        True,
        True,
        False,
        True,
        True,
        False,
    ]
    assert {match.ngrams for match in found[1]} == {len(words) - 12} and len(found[4]) == 2


def test_index_ignores_phrases_of_many_items():
    phrase = "which of the following statements about the history of this country is true "
    items = [TestItem("mc", str(i), phrase + f"n{i} alpha{i} beta{i}") for i in range(20)]
    index = Index.build(items)
    assert index.phrases == 1 and found(index, phrase) == set()
    assert found(index, FILLER + items[3].text) == {("mc", "3")}
    loose = Index.build(items, rules=DecontaminationRules(max_items=20))
    assert len(found(loose, phrase)) == 20


def test_index_ignores_runs_of_numbers():
    counting = " ".join(map(str, range(1, 20)))
    index = Index.build(
        [TestItem("n", "0", f"Continue this row of the numbers as far as 30: {counting}")]
    )
    assert found(index, counting) == set()
    assert found(index, "continue this row of the numbers as far as 30: 1 2 3") == {("n", "0")}


def test_index_agrees_with_brute_force_search():
    rng = random.Random(0)
    words = [f"w{i}" for i in range(4)]
    rules = DecontaminationRules(ngram=5, min_units=3, max_items=1000)
    items = [
        TestItem("r", str(i), " ".join(rng.choices(words, k=rng.randrange(3, 30))))
        for i in range(40)
    ]
    index = Index.build(items, rules=rules)
    for _ in range(50):
        text = rng.choices(words + ["other"], k=60)
        grams = {n: {tuple(text[i : i + n]) for i in range(len(text) - n + 1)} for n in (3, 4, 5)}
        expected = {}
        for item in items:
            own = item.text.split()
            n = min(len(own), 5)
            shared = {tuple(own[i : i + n]) for i in range(len(own) - n + 1)} & grams[n]
            if shared:
                expected[item.item] = len(shared)
        assert {m.item: m.ngrams for m in index.matches(" ".join(text))} == expected


def test_index_round_trips_through_its_file(index, tmp_path):
    index.save(tmp_path / "index.npz")
    again = Index.load(tmp_path / "index.npz")
    for name in ("rules", "items", "unit_ids", "lines", "phrases"):
        assert getattr(again, name) == getattr(index, name)
    for name in ("hashes", "lengths", "owners"):
        assert np.array_equal(getattr(again, name), getattr(index, name))
    (tmp_path / "bad.npz").write_bytes(b"damaged")
    with pytest.raises(DataError, match="rebuild it"):
        Index.load(tmp_path / "bad.npz")
    with pytest.raises(DataError, match="no test items"):
        Index.build([])


def test_index_save_is_atomic(index, tmp_path, monkeypatch):
    def full(file, **_):
        (file if hasattr(file, "write") else open(file, "wb")).write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError):
        index.save(tmp_path / "index.npz")
    assert not (tmp_path / "index.npz").exists()


def test_decontamination_stage_names_set_and_item(index, tmp_path):
    index.save(tmp_path / "index.npz")
    table = pa.table({"text": ["clean", FILLER + LONG]})
    marked = DecontaminationStage(str(tmp_path / "index.npz"))(table)
    assert marked["rejected_by"].to_pylist() == [None, "contaminated_sums"]
    value = marked["rejected_value"][1].as_py()
    assert value.startswith("0, ") and "a train leaves the station" in value


def test_read_test_sets_reads_every_format(tmp_path):
    rows = {
        "gsm8k_test.jsonl": {"question": "Q", "answer": "3*2=<<3*2=6>>6"},
        "mbpp.jsonl": {"task_id": 5, "text": "T", "code": "C", "test_list": ["a", "b"]},
        "humanevalpack_js.jsonl": {
            "task_id": "JS/0",
            "prompt": "P",
            "canonical_solution": "S",
            "test": "T",
        },
    }
    for name, row in rows.items():
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    (tmp_path / "math23k_test.json").write_text(
        '{"id": "1", "original_text": "甲"}\n\n{"id": "2", "original_text": "乙"}\n'
    )
    (tmp_path / "bbh").mkdir()
    (tmp_path / "bbh" / "snarks.json").write_text(json.dumps({"examples": [{"input": "I"}]}))
    for name, lines in {
        "mmlu": [["Q, really?", "a", "b", "c", "d", "B"]],
        "ceval": [
            ["id", "question", "A", "B", "C", "D", "answer"],
            ["0", "问", "a", "b", "c", "d", "A"],
        ],
        "cmmlu": [
            ["", "Question", "A", "B", "C", "D", "Answer"],
            ["0", "题", "e", "f", "g", "h", "A"],
        ],
    }.items():
        text = io.StringIO()
        csv.writer(text).writerows(lines)
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr("test/law_test.csv", text.getvalue())
            if name == "cmmlu":  # a subject's files have one name in dev/ and test/
                archive.writestr("dev/law_test.csv", text.getvalue())
    (tmp_path / "minerva_math_4shot.json").write_text("[]")  # a prompt, not items
    (tmp_path / "qwen_gsm8k_8shot.txt").write_text("Question: ...")
    assert set(read_test_sets(tmp_path)) == {
        ("gsm8k", "0", "Q"),
        ("gsm8k", "0", "3*2=6"),
        ("mbpp", "5", "T"),
        ("mbpp", "5", "C"),
        ("mbpp", "5", "a\nb"),
        ("humanevalpack_js", "JS/0", "P"),
        ("humanevalpack_js", "JS/0", "S"),
        ("humanevalpack_js", "JS/0", "T"),
        ("math23k", "1", "甲"),
        ("math23k", "2", "乙"),
        ("bbh_snarks", "0", "I"),
        ("mmlu", "law_test:0", "Q, really?\na\nb\nc\nd"),
        ("ceval", "law_test:1", "问\na\nb\nc\nd"),
        ("cmmlu", "dev/law_test:1", "题\ne\nf\ng\nh"),
        ("cmmlu", "test/law_test:1", "题\ne\nf\ng\nh"),
    }
    (tmp_path / "strange.jsonl").write_text("{}")
    with pytest.raises(DataError, match="no reader for strange.jsonl"):
        list(read_test_sets(tmp_path))


def test_read_test_sets_reads_the_public_sets(shared):
    items = list(read_test_sets(shared / "data/eval/bbh"))
    assert len(items) == 6511
    sets = {item.test_set for item in read_test_sets(shared / "data/eval")}
    assert {"gsm8k", "math", "math401", "math23k", "humaneval", "mbpp", "mmlu", "ceval"} < sets
    more = list(read_test_sets(shared / "data/eval_more"))
    assert {item.test_set for item in more} == {"cmmlu"}
    assert len(more) == len(set(more)) == 11_582 + 335
    assert decontaminate.RECIPE.ngram == 13
