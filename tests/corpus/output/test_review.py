"""The review page has a fair sample and escapes its texts; its marks are read back."""

import html.parser
import json
import math

import pytest

from experiments import review_marks
from qwen_jax.corpus.output.review import KEPT, page, read_marks, sample, summarize, table
from qwen_jax.errors import ConfigError, DataError

HOSTILE = '</pre></article><script>alert(1)</script> @@SECTIONS@@ & "quotes" 中文'


def rows(number=300):
    for i in range(number):
        rule = (None, "words", "contaminated_gsm8k")[i % 3]
        yield {
            "id": f"{i:032x}",
            "text": f"{HOSTILE} {i}",
            "source": "web" if i % 2 else "wiki",
            "language": None,
            "url": None,
            "path": f"a/b.jsonl:{i}",
            "rejected_by": rule,
            "rejected_value": rule and "12",
        }


def test_sample_covers_every_stratum_in_any_order():
    found = sample(rows(), each=7)
    strata = {(s.source, s.rule) for s in found}
    assert len(strata) == 6 and len(found) == 42 and ("wiki", KEPT) in strata
    assert sample(reversed(list(rows())), each=7) == found
    assert {s.id for s in sample(rows(), each=3)} < {s.id for s in found}
    assert sample(rows(), each=7, seed=1) != found
    assert len(sample(rows(9), each=7)) == 9
    with pytest.raises(DataError, match="no documents to review"):
        sample([])


class Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.texts, self._inside = [], [], False

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._inside = tag == "pre"
        if self._inside:
            self.texts.append("")
        assert tag != "link" and "src" not in dict(attributes)

    def handle_endtag(self, tag):
        self._inside &= tag != "pre"

    def handle_data(self, data):
        if self._inside:
            self.texts[-1] += data


def test_page_escapes_texts():
    found = sample(rows(), each=2)
    reader = Reader()
    reader.feed(page(found, title="a < b"))
    assert reader.tags.count("script") == 1 and reader.tags.count("article") == len(found)
    assert sorted(reader.texts) == sorted(one.text for one in found)


def test_page_shortens_the_middle_of_long_texts():
    long = {"id": "0", "source": "s", "text": "begin" + "x" * 10_000 + "end", "path": "p"}
    shown = page(sample([long]))
    assert "begin" in shown and "end</pre>" in shown and "characters …]" in shown
    assert len(shown) < 16_000


def test_summarize_computes_precision_and_interval(tmp_path, capsys):
    marks = [
        {"id": str(i), "source": "web", "rule": "words", "mark": "drop" if i < 18 else "keep"}
        for i in range(20)
    ]
    marks += [{"id": "k", "source": "wiki", "rule": KEPT, "mark": "keep"}]
    file = tmp_path / "marks.json"
    file.write_text(json.dumps({"format": 1, "page": "x", "marks": marks}))
    found = {(v.source, v.rule): v for v in summarize(read_marks(file))}
    words = found["all", "words"]
    assert (words.right, words.marked) == (18, 20) and found["web", "words"].right == 18
    # Wilson's bounds are where |p - x| = z sqrt(x (1 - x) / n).
    for bound in words.interval():
        assert abs(0.9 - bound) == pytest.approx(1.96 * math.sqrt(bound * (1 - bound) / 20))
    assert found["wiki", KEPT].precision == 1 and found["wiki", KEPT].interval()[1] == 1
    assert "| all | words | 20 | 18 | 90% | 70% to 97% |" in table(summarize(marks))
    review_marks.main(review_marks.Config((str(file), str(file))))
    assert "| all | words | 40 | 36 | 90% |" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--marks"):
        review_marks.main(review_marks.RECIPE)
    for bad in ('{"format": 2, "marks": []}', "[]", "{", '{"format": 1, "marks": [{"id": "1"}]}'):
        file.write_text(bad)
        with pytest.raises(DataError, match="save marks"):
            read_marks(file)
