"""The page of an evaluation: hostile text, lazily loaded samples, recomputed claims."""

import html.parser
import json
import re
import shutil
import subprocess

import pytest

from qwen_jax.evaluate import TASKS
from qwen_jax.evaluate.page import chunks, claims, page
from qwen_jax.evaluate.tasks import published

HOSTILE = "</script><img src=x onerror=alert(1)><!-- @@KEYS@@ & \u2028\u2029 \udc80 \"' 中文"


def sample(index: int, **changes):
    return {
        "id": f"s/{index}",
        "subject": "s",
        "prompt": HOSTILE,
        "completion": HOSTILE,
        "finish": "stop",
        "gold": HOSTILE,
        "extracted": HOSTILE,
        "rule": "r",
        "correct": index % 2 == 0,
        "truncated": 0,
    } | changes


def results(checkpoint: str = "runs/mine"):
    record = {
        "protocol": "qwen",
        "source": "Table 2",
        "shots": 5,
        "n": 3,
        "of": 14_042,
        "average": "examples",
        "score": 66.7,
        "stderr": 27.2,
        "interval": [20.8, 93.9],
        "truncated": 1,
        "ties": 0,
        "abstained": 0,
        "errors": 0,
        "separate": 0,
        "groups": {"STEM": {"n": 3, "score": 66.7, "interval": [20.8, 93.9]}},
        "subjects": {HOSTILE: {"n": 3, "score": 66.7, "interval": [20.8, 93.9]}},
        "rules": {HOSTILE: 3},
        "floors": {"constant": 25.0},
        "ceiling": 77.4,
        "grader": {"name": "likelihood", "sha256": "0" * 64},
        "prompts_sha256": "1" * 64,
    }
    versions = {"python": "3", "sympy": None}
    return {"checkpoint": checkpoint, "versions": versions, "data": {}, "tasks": {"mmlu": record}}


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def test_page_shows_scores_and_escapes_everything(tmp_path):
    page.write(tmp_path, results(HOSTILE), TASKS)
    parser = Tags()
    written = (tmp_path / "index.html").read_text(encoding="utf-8")
    parser.feed(written)
    names = [tag for tag, _ in parser.tags]
    assert names.count("script") == 1 and "img" not in names
    assert not any(name.startswith("on") for _, attrs in parser.tags for name in attrs)
    assert not any(
        "src" in attrs or "http" in (attrs.get("href") or "") for _, attrs in parser.tags
    )
    text = "".join(parser.text)
    for shown in (
        "66.7",
        "20.8 to 93.9",
        "25.0",
        "77.4",
        "58.2",
        "LLaMA2 70B",
        "3 of 14,042",
    ):
        assert shown in text, shown
    assert "@@KEYS@@" in text and 'const KEYS = ["mmlu"];' in text


def test_chunks_hold_every_sample_and_are_harmless(tmp_path):
    rows = [sample(i) for i in range(chunks.SIZE + 3)]
    rows[1] |= {"truncated": 7, "finish": "length", "ties": 2, "extracted": None}
    rows[3] |= {"error": "too long", "extracted": None}
    chunks.write(tmp_path, "mmlu", rows)
    read = []
    for number in range(2):
        raw = (tmp_path / f"mmlu/{number:03}.js").read_text(encoding="utf-8")
        assert not re.search("[<>&\u2028\u2029]", raw)
        call = f'evaluation.chunk("mmlu", {number}, '
        assert raw.startswith(call) and raw.endswith(");\n")
        read += json.loads(raw[len(call) : -3])
    assert read == rows
    raw = (tmp_path / "mmlu/index.js").read_text()
    index = json.loads(raw[len('evaluation.index("mmlu", ') : -3])
    assert index["ids"][2] == "s/2" and index["subjects"] == ["s"]
    flags = index["flags"]
    assert flags[0] == chunks.RIGHT and flags[3] == chunks.FAILED
    assert flags[1] == chunks.TRUNCATED | chunks.UNENDED | chunks.TIED | chunks.ABSTAINED


@pytest.mark.skipif(shutil.which("node") is None, reason="no node")
def test_scripts_run_in_node(tmp_path):
    chunks.write(tmp_path, "mmlu", [sample(0)])
    code = "\n".join(
        [
            "const evaluation = {index(k, v) {}, chunk(k, n, s) {",
            "  console.log(JSON.stringify([k, n, s[0].prompt])); }};",
            (tmp_path / "mmlu/index.js").read_text(encoding="utf-8"),
            (tmp_path / "mmlu/000.js").read_text(encoding="utf-8"),
        ]
    )
    done = subprocess.run(["node", "-"], input=code, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["mmlu", 0, HOSTILE]
    (script,) = re.findall(r"<script>(.*)</script>", page.page(results(), TASKS), re.DOTALL)
    (tmp_path / "page.js").write_text(script, encoding="utf-8")
    subprocess.run(["node", "--check", tmp_path / "page.js"], check=True)


@pytest.mark.skipif(shutil.which("node") is None, reason="no node")
def test_extracted_programs_keep_their_lines():
    (script,) = re.findall(r"<script>(.*)</script>", page.page(results(), TASKS), re.DOTALL)
    (render,) = re.findall(r"function render\(one\) \{.*?\n\}", script, re.DOTALL)
    shown = []
    for extracted in ("A", "def f():\n    return 1"):
        one = sample(0) | {"extracted": extracted}
        code = f"""const made = [], box = {{replaceChildren() {{}}}}, $ = () => box;
        const element = (tag, text) => {{ made.push([tag, text]); return {{append() {{}}}}; }};
        {render}
        render({json.dumps(one)}); console.log(JSON.stringify(made));"""
        done = subprocess.run(["node", "-"], input=code, capture_output=True, text=True, check=True)
        shown.append([tag for tag, text in json.loads(done.stdout) if text == extracted])
    assert shown == [["dd"], ["pre"]]


def test_claims_are_recomputed_from_published_rows():
    found = claims.compare("Table 2", published.TABLE_2, "Qwen 14B", "LLaMA2 70B")
    assert dict(found.ahead) == {"C-Eval": 22.0, "MATH": 11.3, "HumanEval": 2.4}
    assert len(found.behind) == 4 and found.equal == ()
    assert str(found).startswith("Qwen 14B is ahead of LLaMA2 70B on 3 of 7 benchmarks; ahead: C-E")
    every = claims.claims()
    assert all(one.ahead or one.behind for one in every)  # no name is misspelled
    partial = claims.compare("T", {"a": {"x": 1.0, "y": 1.0}, "b": {"x": 2.0}}, "x", "y")
    assert partial.equal == ("a",) and not partial.ahead
