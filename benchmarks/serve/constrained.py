"""Measures decoding with JSON schemas: tokens per second with and without, alone and mixed.

python -m benchmarks.serve.constrained --output=constrained.json

The engine has random weights and a vocabulary of random words of the size of --vocab_size. A
schema ends sooner than max_tokens, so it is an array of integers that goes on. Every case runs in
each round, because the speed of a machine drifts.
"""

import argparse
import dataclasses
import json
import statistics
import time

import jax
import numpy as np

from benchmarks.common.timing import machine
from qwen_jax import sizes
from qwen_jax.inference.constraints import grammar, masks
from qwen_jax.inference.engine import Engine
from qwen_jax.inference.request import Request
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.model.spec import init_params
from qwen_jax.tokenizer.bpe import Tokenizer

SCHEMA = {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}},
          "required": ["n"], "additionalProperties": False}, "minItems": 10_000}  # fmt: skip
NEW_TOKENS = 128


def tokenizer_of(vocab_size: int) -> Tokenizer:
    """Returns single bytes and random words of 2 to 8 letters."""
    rng = np.random.default_rng(0)
    tokens = dict.fromkeys(bytes([byte]) for byte in range(256))
    while len(tokens) < vocab_size - 208:
        letters = rng.choice(np.frombuffer(b'etaoinshrdlu {}":,0123', np.uint8), rng.integers(2, 9))
        tokens.setdefault(letters.tobytes())
    return Tokenizer({token: index for index, token in enumerate(tokens)})


def requests(tokenizer: Tokenizer, plain: int, constrained: int) -> list[Request]:
    """Returns requests that generate NEW_TOKENS each."""
    rule = grammar.json_rule(SCHEMA, "schema")
    compiled = grammar.compiler(tokenizer, (tokenizer.im_end,)).compile(f"start: {rule}", "schema")
    return [
        Request(
            (100 + i, 101), SamplingParams(NEW_TOKENS, 1.0, seed=i), None if i < plain else compiled
        )
        for i in range(plain + constrained)
    ]


def speeds(engine: Engine, tokenizer: Tokenizer, plain: int, constrained: int) -> dict[str, float]:
    """Returns tokens per second of the completions of each kind, until the kind's last token."""
    given = requests(tokenizer, plain, constrained)
    ids = [engine.submit(one)[0] for one in given]
    kinds = {
        i: "plain" if one.grammar is None else "constrained"
        for i, one in zip(ids, given, strict=True)
    }
    counts, ends = {"plain": 0, "constrained": 0}, {}
    began = time.perf_counter()
    while engine.busy:
        for event in engine.step():
            counts[kinds[event.request_id]] += event.token is not None
            ends[kinds[event.request_id]] = time.perf_counter() - began
    return {kind: counts[kind] / seconds for kind, seconds in ends.items()}


def mask_seconds(tokenizer: Tokenizer) -> float:
    """Returns the median time of one mask inside of the schema."""
    (request,) = requests(tokenizer, 0, 1)
    assert request.grammar is not None
    matcher, times = request.grammar.start(), []
    words = np.zeros(matcher.num_words, np.int32)
    rng = np.random.default_rng(0)
    for _ in range(200):
        began = time.perf_counter()
        matcher.fill(words)
        times.append(time.perf_counter() - began)
        allowed = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
        matcher.consume(int(rng.choice(allowed)))
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--vocab_size", type=int, default=32_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="toy_8m")
    parser.add_argument("--mixed_steps", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--output")
    flags = parser.parse_args()
    tokenizer = tokenizer_of(flags.vocab_size)
    config = dataclasses.replace(sizes.by_name(flags.model), vocab_size=flags.vocab_size)
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    engine = Engine(params, config, tokenizer=tokenizer, max_num_seqs=8, max_model_len=256)
    cases = [("plain", 4, 0, None), ("constrained", 0, 4, None)]
    cases += [(f"mixed_{steps}", 4, 4, steps) for steps in flags.mixed_steps]
    found: dict[str, dict[str, list[float]]] = {}
    for rounds in range(flags.rounds + 1):
        for name, plain, constrained, steps in cases:
            masks.MIXED_STEPS = steps or masks.MIXED_STEPS
            for kind, speed in speeds(engine, tokenizer, plain, constrained).items():
                if rounds:  # the first one compiles
                    found.setdefault(name, {}).setdefault(kind, []).append(speed)
    medians = {
        name: {kind: round(statistics.median(speed), 1) for kind, speed in kinds.items()}
        for name, kinds in found.items()
    }
    result = {
        "tokens_per_second": medians,
        "mask_microseconds": round(mask_seconds(tokenizer) * 1e6, 1),
        "settings": {**vars(flags), "slots": 8, "new_tokens": NEW_TOKENS},
        "machine": machine(),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if flags.output:
        with open(flags.output, "w") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
