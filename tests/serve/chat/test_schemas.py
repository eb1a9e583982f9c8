"""Schemas of JSON Schema's own test suite, and 500 random ones: finished answers are valid."""

import dataclasses
import json
import random
import zipfile

import jax
import pytest

from qwen_jax import sizes
from qwen_jax.errors import ConfigError
from qwen_jax.inference.constraints import grammar
from qwen_jax.inference.engine import Engine
from qwen_jax.inference.request import Request
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.model.spec import init_params
from tests.helpers.tool_models import HERMES, tokenizer_with

pytest.importorskip("llguidance", reason="llguidance is not installed: qwen_jax[grammar]")
jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
TOKENIZER = tokenizer_with(HERMES)
STOPS = (258, 256)
CONFIG = dataclasses.replace(
    sizes.TINY, vocab_size=320, context_length=512, num_layers=1, initializer_range=0.3
)


def random_schema(rng: random.Random, depth: int = 3) -> dict:
    """Returns a schema that some value follows, with keywords that are implemented."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "pattern", "format"]
    if depth:
        kinds += ["object", "object", "array", "anyOf", "ref", "recursion", "allOf"]
    kind = rng.choice(kinds)
    if kind == "string":
        low = rng.randint(0, 3)
        return {"type": "string", "minLength": low, "maxLength": low + rng.randint(0, 5)}
    if kind in ("integer", "number"):
        low = rng.randint(-50, 50)
        return {"type": kind, "minimum": low, rng.choice(["maximum", "exclusiveMaximum"]): low + 9}
    if kind == "enum":
        return {"enum": rng.sample([1, "a", None, 2.5, [1], {"b": "\u00e9"}, True], 3)}
    if kind == "const":
        return {"const": rng.choice(["x", 7, {"y": [None, "z"]}])}
    if kind == "pattern":
        return {"type": "string", "pattern": rng.choice(["^[a-z]{2,4}$", "^a|b$", "^\\d+-\\d$"])}
    if kind == "format":
        return {"type": "string", "format": rng.choice(["date", "uuid", "ipv4"])}
    if kind == "object":
        names = rng.sample(["a", "b", "c d", "\u4f60"], rng.randint(1, 3))
        schema: dict = {
            "type": "object",
            "properties": {name: random_schema(rng, depth - 1) for name in names},
            "required": rng.sample(names, rng.randint(0, len(names))),
        }
        extra = rng.choice([False, None, {"type": "integer"}])
        return schema if extra is None else schema | {"additionalProperties": extra}
    if kind == "array":
        low = rng.randint(0, 2)
        return {
            "type": "array",
            "items": random_schema(rng, depth - 1),
            "minItems": low,
            "maxItems": low + rng.randint(0, 2),
        }
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth - 1) for _ in range(rng.randint(1, 3))]}
    if kind == "allOf":
        return {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 30}]}
    if kind == "recursion":
        node = {
            "type": "object",
            "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}},
            "required": ["v"],
            "additionalProperties": False,
        }
        return {"$ref": "#/$defs/node", "$defs": {"node": node}}
    return {"$ref": "#/$defs/x", "$defs": {"x": {"type": "boolean"}}}


def with_definitions(schema: dict) -> dict:
    """Moves all definitions to the top, where their references look for them."""
    definitions: dict = {}

    def move(value):
        if isinstance(value, dict):
            for name, one in value.pop("$defs", {}).items():
                definitions[name] = one
            for one in value.values():
                move(one)
        elif isinstance(value, list):
            for one in value:
                move(one)

    move(schema)
    return schema | ({"$defs": definitions} if definitions else {})


def check(schemas: list, answers: int, new_tokens: int) -> tuple[int, int, list[str]]:
    """Returns how many answers were finished and how many not, and why schemas were refused."""
    params = jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(0))
    engine = Engine(params, CONFIG, tokenizer=TOKENIZER, max_num_seqs=8, max_model_len=512)
    compiler = grammar.compiler(TOKENIZER, STOPS)
    of_request, refused = [], []
    for schema in schemas:
        try:
            lark = f"start: {grammar.json_rule(schema, 'schema')}"
            compiled = compiler.compile(lark, "schema")
        except ConfigError as error:
            refused.append(error.what)
            continue
        for seed in range(answers):
            sampling = SamplingParams(new_tokens, 1.0, seed=seed, stop_token_ids=STOPS)
            of_request.append((schema, Request((1, 2), sampling, compiled)))
    finished = 0
    found = engine.run([request for _, request in of_request])
    for (schema, _), completion in zip(of_request, found, strict=True):
        if completion.finish == "stop":
            finished += 1
            validator = jsonschema.Draft202012Validator(schema)
            validator.validate(json.loads(completion.text))
    return finished, len(found) - finished, refused


def test_answers_to_random_schemas_are_valid():
    rng = random.Random(1)
    finished, cut, refused = check(
        [with_definitions(random_schema(rng)) for _ in range(12)], 1, 120
    )
    assert not refused and finished >= 6, (finished, cut, refused)


@pytest.mark.slow
def test_answers_to_500_random_schemas_are_valid():
    rng = random.Random(0)
    schemas = [with_definitions(random_schema(rng)) for _ in range(500)]
    finished, cut, refused = check(schemas, 1, 400)
    print(f"{finished} finished, {cut} cut off, {len(refused)} refused: {sorted(set(refused))}")
    assert not refused and finished > 9 * cut


@pytest.mark.slow
def test_answers_to_schemas_of_the_json_schema_test_suite_are_valid(shared):
    path = shared / "data" / "agents" / "json_schema_tests_2020_12.zip"
    schemas = []
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".json"):
                schemas += [group["schema"] for group in json.loads(archive.read(name))]
    # jsonschema uses Python's regular expressions, which do not have this one.
    schemas = [schema for schema in schemas if "p{Letter}" not in json.dumps(schema)]
    finished, cut, refused = check(schemas, 2, 400)
    print(f"{finished} finished, {cut} cut off, {len(refused)} refused:")
    print("\n".join(sorted(set(refused))))
    assert finished > 150 and finished > 9 * cut
    assert all(reason.startswith("the schema") for reason in refused)
