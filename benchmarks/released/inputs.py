"""What every folder is tried with: 3,000 texts, 200 conversations and the questions of greedy text.

All are functions of the public data in shared/ and of a seed.
"""

import json
import pathlib
import random
from typing import Any

_ODD = (
    "", " ", "\n", "\r\n", "\t\t", "   x", "x   ", "\u00a0", "\u3000", "a\u0301", "\u1100\u1161",
    "\u0130\u0131", "\u212b", "\ufb01", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u200b",
    "0123456789", "1,234.5e-6", "\u0663\u0664", "\u00bd", "don't DON'T I'LL we\u2019re 'S 'sd",
    "def f(x):\n\treturn  x\n\n\n", "\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\u0e44\u0e17\u0e22",
    "\u05e9\u05dc\u05d5\u05dd", "\u0928\u092e\u0938\u094d\u0924\u0947", "\ufeffx", "a\x00b",
    "\u2028",
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "</tool_call>", "<think>",
    "</think>", "<|fim_prefix|>", "<|im_start|", "im_end|>", "<|extra_0|>", "<|IM_END|>",
    "<tool_response>", "<|vision_start|>", "<<|im_end|>>", "<|im_end|><|im_end|>", "<|im_end|>\n",
)  # fmt: skip
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a city. \u5929\u6c14 <b>'&\"",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}},
]
QUESTIONS = (
    [{"role": "user", "content": "Name a color."}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "\u4f60\u597d <|im_end|>"},
    ],
)


def texts(shared: pathlib.Path, count: int = 3000) -> list[str]:
    """Returns the tokenizer cases, odd texts, parts of five sources, and mixtures of these."""
    rng, folder = random.Random(0), shared / "data/text"
    cases = json.loads((shared / "reference/tokenizer_cases.json").read_text(encoding="utf-8"))
    found = [case["text"] for case in cases] + list(_ODD)
    lines: list[str] = []
    for name in ("wikitext2_valid.txt", "tinyshakespeare.txt", "wiki_demo.txt"):
        content = (folder / name).read_text(encoding="utf-8")
        starts = [rng.randrange(len(content)) for _ in range(500)]
        lines += [content[start : start + rng.randint(1, 300)] for start in starts]
    with (folder / "c4_demo.jsonl").open(encoding="utf-8") as file:
        lines += [json.loads(line)["text"][:300] for line in file][:300]
    authors = json.loads((folder / "zh_song_authors.json").read_text(encoding="utf-8"))
    lines += [str(author.get("desc"))[:200] for author in authors[:400]]
    found += lines
    while len(found) < count:
        parts = rng.choices(_ODD, k=rng.randint(2, 6)) + rng.choices(lines, k=2)
        rng.shuffle(parts)
        found.append("".join(part[: rng.randint(1, 60)] for part in parts))
    return found[:count]


def conversations(count: int = 200) -> list[dict[str, Any]]:
    """Returns messages, tools, add_generation_prompt and further variables of the template."""
    rng, found = random.Random(1), []
    contents = [*_ODD, "Hi", "  padded  ", "\nlines\n\nof text\n", "<think>\nhm\n</think>\n\nYes."]
    for index in range(count):
        messages: list[dict[str, Any]] = []
        if rng.random() < 0.6:
            messages.append({"role": "system", "content": rng.choice(contents)})
        for _ in range(rng.randint(1, 4)):
            messages += _turn(rng, contents, tools=index % 3 == 0)
        variables = {"enable_thinking": False} if index % 5 == 0 else {}
        found.append(
            {
                "messages": messages[: rng.randint(1, len(messages))],
                "tools": _TOOLS[: rng.randint(1, 2)] if index % 3 == 0 else None,
                "add_generation_prompt": index % 2 == 0,
                "variables": variables,
            }
        )
    return found


def _turn(rng: random.Random, contents: list[str], tools: bool) -> list[dict[str, Any]]:
    """Returns a question and its answer, with thoughts, calls and their results in between."""
    turn = [{"role": "user", "content": rng.choice(contents)}]
    answer: dict[str, Any] = {"role": "assistant", "content": rng.choice(contents)}
    if rng.random() < 0.3:
        answer["reasoning_content"] = rng.choice(contents)
    if tools and rng.random() < 0.5:
        arguments = rng.choice([{"city": "Oslo"}, {}, {"x": [1, None, 2.5, "\u00e9"]}, '{"a": 1}'])
        names = rng.sample(["weather", "now"], rng.randint(1, 2))
        answer["tool_calls"] = [
            {"id": name, "type": "function", "function": {"name": name, "arguments": arguments}}
            for name in names
        ]
        results = [
            {"role": "tool", "content": rng.choice(contents), "tool_call_id": name}
            for name in names
        ]
        last = {"role": "assistant", "content": rng.choice(contents)}
        return [*turn, answer, *results, last]
    return [*turn, answer]
