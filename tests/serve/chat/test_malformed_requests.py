"""300 malformed requests with tools, formats and items: each is a 400 that names a field."""

import copy
import json
import random

from tests.helpers.server import MODEL, running
from tests.helpers.tool_models import CLOCK, HERMES, WEATHER, ScriptedEngine, tokenizer_with

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
CHAT = {
    "model": MODEL,
    "messages": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "noon"},
    ],
    "tools": [WEATHER, CLOCK],
    "tool_choice": {"type": "function", "function": {"name": "clock"}},
    "parallel_tool_calls": False,
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    "logit_bias": {"5": 1},
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "chat_template_kwargs": {},
}
RESPONSES = {
    "model": MODEL,
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "function_call", "call_id": "1", "name": "clock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "noon"},
    ],
    "instructions": "Be brief.",
    "tools": [{"type": "function", **CLOCK["function"]}],
    "tool_choice": {"type": "function", "name": "clock"},
    "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}},
    "max_output_tokens": 9,
}
VALUES = [5, -1.5, True, "", "x" * 300, "\ud800", [], {}, [[]], {"x": {"y": []}}, [None], 10**400]
DEEP: dict = {}
for _ in range(100):
    DEEP = {"properties": {"a": DEEP}}


def nodes(value, path=()):
    """Yields the paths of all values inside of JSON."""
    if path:
        yield path
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from nodes(item, (*path, key))


def mutate(body: dict, rng: random.Random) -> dict:
    """Returns a copy in which one to three places are changed."""
    body = copy.deepcopy(body)
    for _ in range(rng.choice([1, 1, 2, 3])):
        path = rng.choice(list(nodes(body)))
        if path == ("model",):
            continue
        holder = body
        for key in path[:-1]:
            holder = holder[key]
        kind = rng.choice(["replace", "replace", "delete", "rename", "repeat", "deep"])
        if kind == "delete":
            del holder[path[-1]]
        elif kind == "rename" and isinstance(holder, dict):
            holder[rng.choice(["nam", "typ", "x", "$ref", "not", ""])] = holder.pop(path[-1])
        elif kind == "repeat" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[path[-1]]))
        elif kind == "deep":
            holder[path[-1]] = copy.deepcopy(DEEP)
        else:
            holder[path[-1]] = copy.deepcopy(rng.choice(VALUES))
    return body


def test_malformed_requests_are_400s_that_name_a_field():
    tokenizer, rng = tokenizer_with(HERMES), random.Random(0)
    engine = ScriptedEngine(tokenizer, ["x"] * 10_000)
    known = {*CHAT, *RESPONSES, "messages", "input"}
    refused = 0
    with running(engine, tokenizer, context=4096) as server:
        for index in range(1200):
            route, body = [("chat/completions", CHAT), ("responses", RESPONSES)][index % 2]
            body = mutate(body, rng)
            raw = json.dumps(body).encode("utf-8", "surrogatepass")
            status, _, text = server.call("POST", f"/v1/{route}", raw)
            assert status in (200, 400), (status, body, text)
            if status == 400:
                refused += 1
                where = json.loads(text)["error"]["param"]
                assert where, (body, text)
                field = where.partition(".")[0].partition("[")[0]
                assert field in known or field.strip("'") in body, (where, body)
            if refused == 300:
                break
        assert refused == 300
        assert server.call("GET", "/health")[0] == 200
