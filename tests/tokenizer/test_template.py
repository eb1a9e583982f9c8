"""Chat templates render as transformers does; without one, it is the format of Qwen-1."""

import json
import random
import sys

import pytest

from qwen_jax.errors import TokenizerError
from qwen_jax.tokenizer import chatml
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.load import load_tokenizer
from qwen_jax.tokenizer.settings import Settings
from qwen_jax.tokenizer.template import builtin, jinja, limits
from qwen_jax.tokenizer.template.chat import apply_chat_template
from tests.helpers import tokenizer_folders as folders

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city. \u5929\u6c14 <b>'&\"",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "its name"},
                "days": {"type": "integer"},
            },
            "required": ["city"],
        },
    },
}


def call(name: str, arguments, identity: str = "1") -> dict:
    function = {"name": name, "arguments": arguments}
    return {"id": identity, "type": "function", "function": function}


def with_template(source: str, **more: str) -> Settings:
    return Settings(chat_templates={"default": source, **more})


def user(content: str = "Hi") -> list[dict]:
    return [{"role": "user", "content": content}]


def conversations(count: int) -> list[tuple[list[dict], list[dict] | None]]:
    """Returns random conversations, with tools or without."""
    rng = random.Random(0)
    texts = [
        "Hi",
        "",
        "\n\nx\n",
        "<|im_end|>",
        "<think>\na\n</think>\n\nb",
        "\u4f60 'q' <b>",
        "{{ 1 }}",
    ]
    found = []
    for _ in range(count):
        tools = rng.choice([None, None, [], [WEATHER], [WEATHER, WEATHER["function"]]])
        messages = [{"role": "system", "content": rng.choice(texts)}] * rng.randint(0, 1)
        for _ in range(rng.randint(1, 4)):
            messages.append({"role": "user", "content": rng.choice(texts)})
            reply = {"role": "assistant", "content": rng.choice(texts)}
            if rng.random() < 0.3:
                key = rng.choice(["reasoning_content", "reasoning", "thinking"])
                reply[key] = rng.choice([*texts, None])
            if rng.random() < 0.4:
                reply["content"] = rng.choice([None, "", "I look."])
                arguments = rng.choice([{"city": "Oslo"}, {}, {"x": [1, None, 2.5, "\u00e9"]}])
                calls = [call("weather", arguments), call("f", {"a": True}, "2")]
                reply["tool_calls"] = calls[: rng.randint(1, 2)]
                messages.append(reply)
                messages += [
                    {"role": "tool", "content": rng.choice(texts), "tool_call_id": each["id"]}
                    for each in reply["tool_calls"]
                ]
                reply = {"role": "assistant", "content": rng.choice(texts)}
            messages.append(reply)
        found.append((messages[: rng.randint(1, len(messages))], tools))
    return found


def test_apply_chat_template_renders_the_released_templates(shared):
    pytest.importorskip("jinja2", reason="jinja2 is not installed")
    folder = shared / "reference" / "chat_templates"
    rows = [json.loads(line) for line in (folder / "renderings.jsonl").open(encoding="utf-8")]
    for row in rows:
        settings = with_template((folder / f"{row['template']}.jinja").read_text())
        given = settings, row["messages"], row["tools"], row["add_generation_prompt"]
        if "error" in row:
            with pytest.raises(TokenizerError, match="refuses the conversation"):
                apply_chat_template(*given, **row["kwargs"])
        else:
            assert apply_chat_template(*given, **row["kwargs"]) == row["text"]
    assert len(rows) >= 100


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "qwen3_thinking_2507"])
def test_apply_chat_template_renders_as_transformers(shared, tmp_path, name):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folders.write(tmp_path, "transformers 5")
    template = (shared / f"reference/chat_templates/{name}.jinja").read_text()
    (tmp_path / "chat_template.jinja").write_text(template)
    ours, theirs = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    refused = 0
    for index, (messages, tools) in enumerate(conversations(200)):
        more = {"enable_thinking": False} if index % 5 == 0 else {}
        given = {"tools": tools, "add_generation_prompt": index % 2 == 0, **more}
        try:
            right = theirs.apply_chat_template(messages, tokenize=False, **given)
        except Exception:
            refused += 1
            with pytest.raises(TokenizerError):
                ours.apply_chat_template(messages, **given)
            continue
        assert ours.apply_chat_template(messages, **given) == right, messages
    assert refused < 20


def test_apply_chat_template_gives_named_tokens_and_variables():
    settings = Settings(
        named={"eos_token": "<e>"},
        chat_templates={"default": "{{ eos_token }}{{ bos_token }}{{ x }}{{ tools is none }}"},
    )
    assert apply_chat_template(settings, user(), x="y") == "<e>yTrue"
    blocks = with_template("{% if true %}\n x\n    {% endif %}\ny")
    assert apply_chat_template(blocks, user()) == " x\ny"


def test_apply_chat_template_selects_one_of_several():
    settings = with_template("d{{ messages[0].content }}", tool_use="t", other="o")
    assert apply_chat_template(settings, user()) == "dHi"
    assert apply_chat_template(settings, user(), [WEATHER]) == "t"
    assert apply_chat_template(settings, user(), chat_template="other") == "o"
    assert apply_chat_template(settings, user(), chat_template="{{ 1 + 1 }}") == "2"
    with pytest.raises(TokenizerError, match="unknown chat template 'default'"):
        apply_chat_template(Settings(chat_templates={"a": "x"}), user())


@pytest.mark.parametrize(
    "source, message",
    [
        ("{% if %}", "malformed"),
        ("{{ raise_exception('No system!') }}", "refuses the conversation: No system!"),
        ("{{ messages[0].content + 1 }}", "refuses the conversation"),
        ("{{ messages.append(1) }}", "refuses the conversation"),
        ("{{ messages.__class__.__mro__ }}", "refuses the conversation"),
        ("{% for i in range(999999) %}x{% endfor %}", "refuses the conversation"),
        ("{{ tojson.__globals__ }}{{ ''.__class__ }}", "refuses the conversation"),
    ],
)
def test_apply_chat_template_refuses_what_a_template_must_not_do(source, message):
    with pytest.raises(TokenizerError, match=message):
        apply_chat_template(with_template(source), user())


@pytest.mark.parametrize(
    "source, message",
    [
        (
            "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
            "has not ended after 0.2 s of computing",
        ),
        (
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
            "{{ f(60) }}",
            "has not ended after 0.2 s of computing",
        ),
        (
            "{% set ns = namespace(x='a') %}{% for i in range(60) %}"
            "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "text or a list of 131,072 characters",
        ),
        (
            "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}"
            "{% set ns.x = ns.x + ns.x %}{% endfor %}",
            "text or a list of 131,072 characters or items",
        ),
        ("{{ 'a' * 1000000 }}", "text or a list of 1,000,000 characters"),
        ("{{ 1000000 * [1] }}", "text or a list of 1,000,000 characters"),
        ("{% for i in range(99) %}{{ messages[0].content * 999 }}{% endfor %}", "text or a list"),
        ("{{ 9 ** (9 ** 9) }}", "a number of 1,549,681,956 bits"),
        ("{{ (9 ** 200000) * (9 ** 200000) }}", "a number of 1,267,972 bits"),
    ],
)
def test_apply_chat_template_stops_a_template_without_end(monkeypatch, source, message):
    monkeypatch.setattr(limits, "MAX_SECONDS", 0.2)
    monkeypatch.setattr(limits, "_MAX_SIZE", 100_000)
    with pytest.raises(TokenizerError, match=f"the chat template is stopped: .*{message}"):
        apply_chat_template(with_template(source), user())


def test_apply_chat_template_refuses_one_that_nests_without_end():
    for source in ("{{ " + "(" * 50_000, "{% if 1 %}" * 3000 + "{% endif %}" * 3000):
        with pytest.raises(TokenizerError, match="malformed"):
            apply_chat_template(with_template(source), user())


def test_apply_chat_template_names_an_error_without_a_text():
    with pytest.raises(TokenizerError, match="refuses the conversation: MemoryError"):
        apply_chat_template(with_template("{{ 'a'.ljust(2 ** 62) }}"), user())


def test_limits_change_nothing_of_a_loop():
    import jinja2

    source = (
        "{% for m in messages recursive %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}"
        "{{ loop.previtem is defined }}{{ loop.revindex }}{{ loop.nextitem ~ '|' ~ 1 ~ none }}"
        "{% if m.more %}{{ loop(m.more) }}{% endif %}{% endfor %}"
        "{% for x in missing %}{% else %}E{% endfor %}"
        "{% for k, v in {'a': 1}.items() if v == 1 %}{{ k + '%s' % v }}{% endfor %}{{ [1] + [2] }}"
    )
    messages = [{"more": [{"a": 1}, {"a": 2}]}, {"more": []}]
    plain = jinja2.Environment().from_string(source).render(messages=messages)
    assert plain.startswith("1/2FalseFalse2{'more': []}|1None1/2False")
    assert jinja.render(source, {"messages": messages}) == plain


def test_apply_chat_template_takes_json_values_only():
    with pytest.raises(TokenizerError, match="not a object"):
        apply_chat_template(with_template("x"), [{"role": "user", "content": object()}])
    with pytest.raises(TokenizerError, match="'Hi' is not a message"):
        apply_chat_template(with_template("x"), ["Hi"])  # pyright: ignore[reportArgumentType]
    with pytest.raises(TokenizerError, match="there are no messages"):
        apply_chat_template(with_template("x"), [])


def test_apply_chat_template_marks_what_the_model_generates():
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "A:{% generation %}{{ m.content }};{% endgeneration %}"
        "{% else %}U:{{ m.content }};{% endif %}{% endfor %}"
    )
    messages = [*user("q"), {"role": "assistant", "content": "r"}]
    assert apply_chat_template(with_template(source), messages) == "U:q;A:r;"
    marked = apply_chat_template(with_template(source), messages, mark_generated=True)
    assert marked == f"U:q;A:{jinja.GENERATED}r;{jinja.END_GENERATED}"
    assert jinja.compiled(source).has_generation
    assert not jinja.compiled("{# generation #}{{ generation }}").has_generation


def test_apply_chat_template_names_the_extra_without_jinja(monkeypatch):
    jinja.compiled.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(TokenizerError, match=r"pip install 'qwen_jax\[chat\]'"):
        apply_chat_template(with_template("a template"), user())
    assert apply_chat_template(Settings(), user()).endswith("<|im_start|>user\nHi<|im_end|>\n")
    with pytest.raises(TokenizerError, match="no variable enable_thinking"):
        apply_chat_template(Settings(), user(), enable_thinking=False)


def test_apply_chat_template_without_one_is_chatml():
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)})
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "?")]
    for messages in (turns, turns[1:], turns[1:2]):
        given = [{"role": role, "content": content} for role, content in messages]
        text = tokenizer.apply_chat_template(given, add_generation_prompt=True)
        ids = tokenizer.encode(text, allow_special=True)
        assert ids == chatml.prompt(messages, tokenizer).tolist()
        text = tokenizer.apply_chat_template(given)
        ids = tokenizer.encode(text, allow_special=True)
        assert ids == chatml.render(messages, tokenizer).tokens.tolist()


def test_builtin_poses_the_last_question_with_tools():
    messages = [*user("Hello"), {"role": "assistant", "content": "Hi!"}, *user("Oslo?")]
    turns = builtin.turns(messages, [WEATHER])
    assert turns[0] == ("user", "Hello")
    assert turns[1] == ("assistant", "Thought: I now know the final answer.\nFinal Answer: Hi!")
    prompt = turns[2][1]
    assert prompt.endswith("Begin!\n\nQuestion: Oslo?") and "should be one of [weather]" in prompt
    assert (
        "weather: Call this tool to interact with the weather API. What is the weather API useful "
        "for? Weather of a city. \u5929\u6c14 <b>'&\" Parameters: "
        '[{"name": "city", "description": "its name", "required": true, "schema": {"type": '
        '"string"}}, {"name": "days", "description": "", "required": false, "schema": {"type": '
        '"integer"}}] Format the arguments as a JSON object.' in prompt
    )


def test_builtin_writes_a_call_its_result_and_the_answer_as_one_turn():
    both = [call("a", {"x": 1}), call("b", "print(1)", "2")]
    messages = [
        *user(),
        {"role": "assistant", "content": "I look.", "tool_calls": both},
        {"role": "tool", "content": "one", "tool_call_id": "1"},
        {"role": "tool", "content": "two", "tool_call_id": "2"},
        {"role": "assistant", "content": "Done."},
    ]
    calls = 'Thought: I look.\nAction: a\nAction Input: {"x": 1}'
    first = f"{calls}\nObservation: one\nAction: b\nAction Input: print(1)"
    last = "Thought: I now know the final answer.\nFinal Answer: Done."
    assert builtin.turns(messages)[1:] == [("assistant", f"{first}\nObservation: two\n{last}")]
    text = builtin.render(messages[:4], add_generation_prompt=True)
    assert text.endswith(f"<|im_start|>assistant\n{first}\nObservation: two\nThought:")
    assert builtin.render(messages[:4]).endswith("\nObservation: two<|im_end|>\n")
    # Calls without results are all written.
    unanswered = f"{calls}\nAction: b\nAction Input: print(1)"
    assert builtin.turns(messages[:2])[1:] == [("assistant", unanswered)]
    assert builtin.turns([*messages[:2], *user()])[1] == ("assistant", unanswered)


@pytest.mark.parametrize(
    "messages, tools, message",
    [
        ([{"role": "bot", "content": "x"}], [], "unknown role 'bot'"),
        ([{"role": "user", "content": [{"type": "image"}]}], [], "the content is not text"),
        ([{"role": "user"}], [], "the content is not text"),
        ([*user(), {"role": "tool", "content": "x"}], [], "answers none of the calls"),
        ([{"role": "assistant", "tool_calls": ["f"]}], [], "'?f'? is not a call"),
        (user(), [{"name": 1, "parameters": 5}], "not the definition of a function"),
    ],
)
def test_builtin_refuses_malformed_messages(messages, tools, message):
    with pytest.raises(TokenizerError, match=message):
        builtin.render(messages, tools)
