"""Comparing two models blind, with votes that experiments.compare_models reads."""

from qwen_jax.evaluate.pairwise.sheet import read_sheet
from qwen_jax.evaluate.pairwise.votes import read_votes, with_names


def test_compare_is_blind_until_the_vote_which_is_kept(page, folder):
    page.js("location.hash = '#compare'")
    page.until(lambda: page.all("#compare-form select"), "the form")
    page.one("#rater").clear()
    page.one("#rater").send_keys("Ann")
    page.one("#compare-text").send_keys("Who are you?")
    page.click("Compare", "#compare-form")
    page.until(lambda: page.one("#votes").is_displayed(), "the answers")
    assert page.text("#answers h3").splitlines() == ["Answer A", "Answer B"]  # no names
    texts = page.text("#answers .body")
    assert "sft answers" in texts and "ppo answers" in texts
    page.js("document.activeElement.blur()")
    page.one("body").send_keys("2")
    page.until(lambda: "Votes so far: 1" in page.text("#compare-note"), "the vote")
    shown = page.text("#answers h3").splitlines()
    assert sorted(line[3:] for line in shown) == ["ppo", "sft"]
    sheet = read_sheet(folder / "votes" / "answers.jsonl")
    (vote,) = with_names(read_votes([folder / "votes" / "votes.jsonl"], sheet), sheet)
    assert vote.rater == "Ann" and vote.ranking == ((shown[1][3:],), (shown[0][3:],))
    assert sheet.entries[0].question.turns == (("user", "Who are you?"),)


def test_compare_explains_sides_that_cannot_differ(page):
    page.js("location.hash = '#compare'")
    page.until(lambda: page.all("#compare-form select"), "the form")
    page.js(
        """for (const box of document.querySelectorAll('#compare-form fieldset')) {
        const select = box.querySelector('select'); select.value = 'sft';
        select.dispatchEvent(new Event('change'));
        const field = box.querySelector('[name=temperature]'); field.value = '0';
        field.dispatchEvent(new Event('change')); }"""
    )
    page.one("#compare-text").send_keys("Hi")
    page.click("Compare", "#compare-form")
    page.until(lambda: "would answer the same" in page.text("#compare-note"), "the reason")
