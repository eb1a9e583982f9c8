"""Completions that follow a grammar, and others in the same batch."""

import dataclasses
import json

import jax
import pytest

from qwen_jax import sizes
from qwen_jax.errors import ConfigError
from qwen_jax.inference.batching import batch as device
from qwen_jax.inference.batching.fair_queue import Owner
from qwen_jax.inference.constraints import grammar
from qwen_jax.inference.engine import Engine
from qwen_jax.inference.request import Request
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.model.spec import init_params
from tests.helpers.tool_models import HERMES, tokenizer_with

pytest.importorskip("llguidance", reason="llguidance is not installed: qwen_jax[grammar]")
TOKENIZER = tokenizer_with(HERMES)
STOPS = (258, 256)
CONFIG = dataclasses.replace(
    sizes.TINY, vocab_size=320, context_length=64, num_layers=1, initializer_range=0.3
)
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine():
    params = jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(0))
    return Engine(
        params, CONFIG, tokenizer=TOKENIZER, max_num_seqs=4, max_model_len=256, decode_steps=4
    )


def compiled(schema):
    rule = grammar.json_rule(schema, "schema")
    return grammar.compiler(TOKENIZER, STOPS).compile(f"start: {rule}", "schema")


def request(text: str, temperature: float = 0.0, schema=None, count: int = 60) -> Request:
    sampling = SamplingParams(count, temperature, seed=len(text), stop_token_ids=STOPS)
    chosen = None if schema is None else compiled(schema)
    return Request(tuple(TOKENIZER.encode(text)), sampling, chosen)


def test_completions_follow_their_schema_and_leave_others_as_they_are(engine):
    plain = [request("Hello", 0.0), request("Hello!", 1.0), request("Hi", 0.0, count=9)]
    before = [one.tokens for one in engine.run(plain)]
    programs = (device.prefill, device.sample_first, device.advance)
    sizes_before = [program._cache_size() for program in programs]
    constrained = [request("x" * i, 1.0, SCHEMA, 200) for i in range(1, 6)]
    found = engine.run([constrained[0], plain[0], *constrained[1:3], *plain[1:], *constrained[3:]])
    assert [found[i].tokens for i in (1, 4, 5)] == before
    assert [program._cache_size() for program in programs] == sizes_before  # nothing compiled
    answers = [found[i] for i in (0, 2, 3, 6, 7)]
    assert {one.finish for one in answers} == {"stop"}
    for one in answers:
        assert json.loads(one.text)["city"] in ("Oslo", "Rome")
        assert json.loads(one.text).keys() <= {"city", "days"}
    alone = [engine.run([one])[0].tokens for one in constrained]
    assert alone == [one.tokens for one in answers]


def test_a_grammar_ends_by_itself_or_at_the_limit(engine):
    (fixed,) = engine.run([request("x", 1.0, {"const": "abc"}, 50)])
    assert (fixed.text, fixed.finish) == ('"abc"', "stop")
    (cut,) = engine.run([request("x", 1.0, {"const": "abc"}, 3)])
    assert (cut.text, cut.finish) == ('"ab', "length")
    (exact,) = engine.run([request("x", 1.0, {"const": "abc"}, 5)])
    assert (exact.text, exact.finish) == ('"abc"', "stop")


def test_a_completion_that_lost_its_slot_starts_its_grammar_again(engine):
    many = [request("y" * i, 1.0, SCHEMA, 200) for i in range(1, 5)]
    expected = [one.text for one in engine.run(many)]
    ids = [i for one in many for i in engine.submit(one, Owner("greedy"))]
    texts = dict.fromkeys(ids, "")
    for _ in range(6):
        for event in engine.step():
            texts[event.request_id] += event.text
    (other,) = engine.submit(request("z", count=3), Owner("other"))  # takes a slot
    texts[other] = ""
    while engine.busy:
        for event in engine.step():
            texts[event.request_id] += event.text
    assert [texts[i] for i in ids] == expected


@pytest.mark.parametrize(
    "schema, word",
    [
        ({"not": {}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "format": "klingon"}, "klingon"),
        ({"oneOf": [{"type": "integer"}, {"minimum": 2}]}, "oneOf"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"$ref": "http://x/y"}, "http://x/y"),
        ({"x-guidance": {"lenient": True}, "not": {}}, "x-guidance"),
        ({"enum": []}, "Unsatisfiable"),
        ({"enum": ["x" * 70_000]}, "bytes"),
        (5, "not an object"),
    ],
)
def test_a_schema_that_is_not_supported_is_refused_by_name(schema, word):
    for _ in range(2):  # also when it was refused before
        with pytest.raises(ConfigError, match=word) as caught:
            compiled(schema)
        assert caught.value.where == "schema" and len(str(caught.value)) < 600


def test_a_compiled_grammar_is_kept():
    assert compiled(SCHEMA) is compiled(dict(SCHEMA))


def test_white_space_is_that_of_formatted_json():
    matcher = compiled({"type": "object"}).start()
    for token in TOKENIZER.encode('{\n    "a": 1'):
        matcher.consume(token)
    assert not matcher.error
    for token in TOKENIZER.encode("\n\n"):
        matcher.consume(token)
    assert matcher.error
