"""Weights, epochs and shares of sources; invalid mixtures are errors before any work."""

import pytest

from qwen_jax.corpus.output.mixture import Mixture, draw, entries, parse_weights, table
from qwen_jax.errors import ConfigError, DataError

COUNTS = {
    ("web", "en"): (100, 1000),
    ("web", "zh"): (50, 600),
    ("wiki", "en"): (10, 200),
    ("chats", "zh"): (5, 100),
}
MIXTURE = Mixture({"web:zh": 2.0, "wiki": 3.0}, instructions=("chats",))


def test_entries_have_tokens_epochs_and_shares():
    rows = entries(COUNTS, MIXTURE)
    assert [(r.source, r.language, r.mixed) for r in rows] == [
        ("web", "zh", 1200),
        ("web", "en", 1000),
        ("wiki", "en", 600),
        ("chats", "zh", 100),
    ]
    assert sum(row.share for row in rows) == pytest.approx(1)
    shown = table(rows, MIXTURE)
    assert "| wiki | en | 10 | 200 | 3 | 600 | 20.7% |" in shown
    assert "| all | | 165 | 1,900 | | 2,900 | 100.0% |" in shown
    assert "Instruction data: 3.4%" in shown


def test_copies_depends_only_on_weight_and_document():
    mixture = Mixture({"wiki": 2.5, "web": 0.25, "off": 0.0})
    copies = [mixture.copies(f"d{i}", "wiki", "en") for i in range(4000)]
    assert set(copies) == {2, 3} and sum(copies) / 4000 == pytest.approx(2.5, abs=0.04)
    few = [mixture.copies(f"d{i}", "web", "en") for i in range(4000)]
    assert set(few) == {0, 1} and sum(few) / 4000 == pytest.approx(0.25, abs=0.04)
    assert mixture.copies("d", "off", None) == 0 and mixture.copies("d", "other", None) == 1
    assert copies == [mixture.copies(f"d{i}", "wiki", "zh") for i in range(4000)]
    assert copies != [mixture.copies(f"d{i}", "wiki", "en", seed=1) for i in range(4000)]


@pytest.mark.parametrize(
    "mixture, message",
    [
        (Mixture({"wikki": 2.0}), "did you mean 'wiki'"),
        (Mixture({"web:de": 2.0}), "web:zh"),
        (Mixture(instructions=("chat",)), "mixture.instructions"),
        (Mixture({"wiki": 5.0}), "--mixture.allow_epochs=wiki"),
        (Mixture({"web:zh": 4.5, "wiki": 9.0}, allow_epochs=("wiki",)), r"web \(4.5\)"),
    ],
    ids=["source", "language", "instructions", "epochs", "consent"],
)
def test_entries_refuses_unknown_names_and_too_many_epochs(mixture, message):
    with pytest.raises(ConfigError, match=message):
        entries(COUNTS, mixture)


def test_entries_allows_more_epochs_and_refuses_an_empty_mixture():
    assert entries(COUNTS, Mixture({"wiki": 9.0}, allow_epochs=("wiki",)))[0].mixed == 1800
    with pytest.raises(DataError, match="no tokens"):
        entries({("web", None): (1, 10)}, Mixture({"web": 0.0}))
    with pytest.raises(ConfigError, match="-1"):
        Mixture({"web": -1.0})


def test_parse_weights_reads_flags():
    assert parse_weights(["wiki=3", "web:zh=1.5"]) == {"wiki": 3.0, "web:zh": 1.5}
    for bad in (["wiki"], ["wiki=x"], ["=2"], ["a=1", "a=2"]):
        with pytest.raises(ConfigError, match="SOURCE=NUMBER"):
            parse_weights(bad)


def test_draw_returns_the_same_png_again():
    rows = entries(COUNTS, MIXTURE)
    assert draw(rows)[:4] == b"\x89PNG" and draw(rows) == draw(rows)
