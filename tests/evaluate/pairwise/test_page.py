"""The pages: blind, balanced, safe for any text; their scripts in Node and in a browser."""

import collections
import html.parser
import json
import shutil
import subprocess

import pytest

from qwen_jax.data.chat.conversations import Conversation, read_conversations
from qwen_jax.data.chat.rows import Counts
from qwen_jax.errors import DataError
from qwen_jax.evaluate.pairwise.page import compare_page, edit_page, scripts
from qwen_jax.evaluate.pairwise.votes import read_votes, with_names
from tests.helpers.judged import HOSTILE, sheet_of


class Reader(html.parser.HTMLParser):
    """The tags of a page, the attributes of its body, and the text of its data."""

    def __init__(self):
        super().__init__()
        self.tags, self.data, self._inside = collections.Counter(), "", False
        self.body: dict[str, str | None] = {}

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        given = dict(attrs)
        self.body = given if tag == "body" else self.body
        self._inside = given.get("id") == "data"
        assert tag != "link" and "src" not in given

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        self.data += data if self._inside else ""


def parsed(page: str) -> tuple[Reader, dict]:
    reader = Reader()
    reader.feed(page)
    return reader, json.loads(reader.data)


def test_compare_page_has_no_model_and_escapes_texts():
    sheet = sheet_of(("llama-model", "qwen-model"), 6)
    page = compare_page(sheet, title="a < b @@DATA@@", seed=3)
    reader, data = parsed(page)
    assert reader.tags["script"] == 2 and reader.tags["img"] == 0
    assert "llama-model" not in page and "qwen-model" not in page
    assert "a &lt; b @@DATA@@</h1>" in page and "http://" not in page and "https://" not in page
    assert [q["answers"] for q in data["questions"]] == [
        [[a.code, a.text] for a in entry.answers] for entry in sheet.entries
    ]
    assert data["page"] == sheet.page and data["seed"] == 3
    codes = [code for q in data["questions"] for code, _ in q["answers"]]
    assert len(set(codes)) == 12  # a code says nothing about other questions


def test_compare_page_refuses_more_answers_than_keys():
    with pytest.raises(DataError, match="10 answers"):
        compare_page(sheet_of([f"m{i}" for i in range(10)], 2), title="t", seed=0)


def node(code: str, *names: str):
    """Returns what the code prints as JSON, after the scripts of the pages."""
    if shutil.which("node") is None:
        pytest.skip("Node is not installed")
    program = f"{scripts('common.js', *names)}\nconsole.log(JSON.stringify({code}))"
    done = subprocess.run(["node", "-e", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_orders_are_balanced_per_rater_and_category():
    questions = [
        {"category": "ab"[i % 2], "answers": [0] * number}
        for number in (2, 3, 5)
        for i in range(120)
    ]
    code = f"['ann', 'bo'].map(name => ordersOf({json.dumps(questions)}, name, 7))"
    ann, bo = node(code, "compare.js")
    assert node(code, "compare.js") == [ann, bo] and ann != bo
    for orders in (ann, bo):
        for category in (0, 1):
            for begin, number in ((0, 2), (120, 3), (240, 5)):
                mine = orders[begin : begin + 120][category::2]
                assert all(sorted(order) == list(range(number)) for order in mine)
                for position in range(number):
                    found = collections.Counter(order[position] for order in mine)
                    assert set(found.values()) == {60 // number}
                assert mine != [mine[0]] * 60
    same = sum(a == b for a, b in zip(ann[:120], bo[:120], strict=True))
    assert 35 < same < 85  # raters do not see the same orders


def test_ranked_places_answers_by_keys():
    presses = {
        "[0]": [[0], [1]],
        "['tie']": [[0, 1]],
        "[5]": [],
    }
    for keys, expected in presses.items():
        assert node(f"{keys}.reduce((g, k) => ranked(g, 2, k), [])", "compare.js") == expected
    three = "[2, 0].reduce((g, k) => ranked(g, 3, k), [])"
    assert node(three, "compare.js") == [[2], [0], [1]]
    assert node("ranked(ranked([], 3, 1), 3, 'tie')", "compare.js") == [[1], [0, 2]]
    assert node("ranked(ranked([], 3, 1), 3, 0, true)", "compare.js") == [[1, 0], [2]]
    assert node("ranked(ranked([], 3, 1), 3, 1)", "compare.js") == [[1]]


def test_problem_of_a_conversation():
    cases = {
        "": ["user", "assistant"],
        "the last turn is not the assistant's": ["user"],
        "turns of user and assistant do not alternate": ["user", "user", "assistant"],
        "a system message after the first turn": ["user", "system", "assistant"],
    }
    for problem, roles in cases.items():
        messages = [{"role": role, "content": "x"} for role in roles]
        assert node(f"problemOf({json.dumps(messages)})", "edit.js") == problem
    assert node('problemOf([{role: "user", content: " "}])', "edit.js") == "a turn is empty"


def browse(page: str, script: str, folder) -> dict:
    """Opens a page in a browser, runs a script on it, and returns its JSON result."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed")
    path = folder / "page.html"
    # Instead of downloads, files are collected.
    driver = f"""<script>
    const saved = {{}};
    download = (name, text) => {{ saved[name] = text; }};
    const press = (key, shiftKey = false) =>
      document.dispatchEvent(new KeyboardEvent("keydown", {{key, shiftKey, cancelable: true}}));
    const set = (field, value) => {{ field.value = value; field.dispatchEvent(new Event("change"));
      field.dispatchEvent(new Event("input")); }};
    (async () => {{ let result; try {{ result = await (async () => {{ {script} }})(); }}
      catch (error) {{ result = {{error: String(error)}}; }}
      document.body.replaceChildren();
      document.body.dataset.result = JSON.stringify({{...result, saved}}); }})();
    </script></body>"""
    path.write_text(page.replace("</body>", driver), encoding="utf-8")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu",
         f"--user-data-dir={folder}/profile",
         "--virtual-time-budget=5000", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    reader = Reader()
    reader.feed(done.stdout)
    assert "data-result" in reader.body, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(reader.body["data-result"] or "")


@pytest.mark.slow  # starts a browser
def test_votes_of_the_page_are_read_back(tmp_path):
    sheet = sheet_of(("one", "two", "three"), 4)
    script = """
      press("1"); const early = byId("note").textContent;
      set(byId("rater"), "ann & co");
      const texts = [...document.querySelectorAll("#answers .text")].map(e => e.textContent);
      const images = document.querySelectorAll("img, script").length;
      press("2"); press("1");             // question 1: answer 2, answer 1, answer 3
      press("t");                         // question 2: all tied
      press("3"); press("Backspace"); press("1"); press("0");   // question 3
      press("2"); press("3", true);       // question 4: 2 and 3 tied, then 1
      const count = byId("count").textContent;
      byId("save").click();
      const text = saved["votes-ann & co.jsonl"];
      const load = new File([text], "v.jsonl");
      localStorage.clear();
      set(byId("rater"), "other");
      const none = byId("count").textContent;
      return {early, texts, images, count, none};"""
    found = browse(compare_page(sheet, title="t", seed=1), script, tmp_path)
    assert found["early"] == "Enter your name first."
    assert sorted(found["texts"]) == sorted(a.text for a in sheet.entries[0].answers)
    assert found["images"] == 3  # the page's own scripts and this one
    assert found["count"] == "4 of 4" and found["none"] == "0 of 4"
    (text,) = found["saved"].values()
    (tmp_path / "v.jsonl").write_text(text)
    votes = read_votes([tmp_path / "v.jsonl"], sheet)
    ranks = [[[v.shown.index(c) for c in group] for group in v.ranking] for v in votes]
    assert [v.rater for v in votes] == ["ann & co"] * 4
    assert ranks[0] == [[1], [0], [2]] and ranks[1] == [[0, 1, 2]]
    assert ranks[2] == [[0], [1, 2]] and ranks[3] == [[1, 2], [0]]
    assert {n for v in with_names(votes, sheet) for n in v.shown} == {"one", "two", "three"}


@pytest.mark.slow  # starts a browser
def test_conversations_of_the_page_are_read_by_sft(tmp_path):
    given = [
        Conversation((("user", f"question {i} {HOSTILE}"), ("assistant", f"answer {i}")), "f")
        for i in range(3)
    ]
    script = """
      set(byId("rater"), "ann");
      press("k");                                            // 1 is kept
      set(document.querySelectorAll("textarea")[1], "better");
      press("k");                                            // 2 is corrected
      press("d");                                            // 3 is dropped
      byId("new").click();
      byId("rater").focus(); document.activeElement.blur();
      press("k"); const refused = byId("note").textContent;
      set(document.querySelectorAll("textarea")[0], "new question");
      set(document.querySelectorAll("textarea")[1], "new answer");
      document.activeElement.blur();
      press("k");
      const count = byId("count").textContent;
      byId("save").click();
      return {refused, count};"""
    found = browse(edit_page(given, title="Conversations"), script, tmp_path)
    assert found["refused"] == "Not kept: a turn is empty."
    assert found["count"].startswith("4 of 4 decided, 1 kept, 1 corrected, 1 dropped, 1 written")
    (text,) = found["saved"].values()
    path = tmp_path / "c.jsonl"
    path.write_text(text)
    counts = Counts()
    read = [one.turns for one in read_conversations([path], counts)]
    assert read[0] == given[0].turns and read[1] == (given[1].turns[0], ("assistant", "better"))
    assert read[2] == (("user", "new question"), ("assistant", "new answer"))
    assert len(read) == 3 and counts.skipped.total() == 1


def test_edit_page_keeps_turns_that_are_not_trained_on():
    one = Conversation((("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")), "f",
                       (False, False, False, True))  # fmt: skip
    data = parsed(edit_page([one], title="t"))[1]
    assert [m.get("weight") for m in data["conversations"][0]["messages"]] == [None, 0, None, None]
