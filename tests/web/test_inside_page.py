"""Looking inside of an answer: its tokens, their alternatives, and what the template sent."""


def test_inside_shows_alternatives_and_what_the_template_sent(page):
    page.click("Settings", "#chat")
    page.one("#system").send_keys("Be kind")
    page.click("Close", "#settings")
    page.ask("Hi")
    page.click("Look inside")
    page.until(lambda: page.all("[aria-label='Tokens of the answer'] .token"), "the tokens")
    answer = page.text("[aria-label='Tokens of the answer'] .token").replace("\n", "")
    assert answer.startswith("sft answers 'Hi'".replace(" ", "")) or "sft" in answer
    page.all("[aria-label='Tokens of the answer'] .token")[0].click()
    rows = page.text("#alternatives tbody tr").splitlines()
    assert rows[0].split()[0] == "s" and "60.0 %" in rows[0]  # the sampled one, and FakeScorer's
    assert rows[1].split()[0] == "a" and "20.2 %" in rows[1]
    page.one(".token[aria-pressed=true]").send_keys("\ue014")  # the right arrow key
    page.until(lambda: "102" in page.text("#inspector [role=status]"), "the next token, f")
    page.click(next(s.text for s in page.all("#inspector summary")))
    prompt = "".join(
        page.js(
            "return [...document.querySelectorAll(\"[aria-label='Tokens of the prompt'] .token\")]"
            ".map(n => n.textContent)"
        )
    )
    assert "<|im_start|>system" in prompt and "Be kind<|im_end|>" in prompt
    page.driver.switch_to.active_element.send_keys("\ue00c")
    page.until(lambda: page.one("#inspector").get_attribute("hidden"), "closing")
