"""Every cell of the newer claims runs with models of one layer, and its claim is judged."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("tokenizers")

from benchmarks.reproduce import family, learner
from benchmarks.reproduce.claim import FORMS
from benchmarks.reproduce.claims import gate
from benchmarks.reproduce.claims.base import (
    architecture,
    data_plan,
    long_context,
    sizes,
)
from benchmarks.reproduce.claims.chat import tools
from benchmarks.reproduce.claims.specialists import code, code_stages, long_code
from benchmarks.reproduce.lab import Lab
from qwen_jax.tokenizer import extend
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.template.builtin import DEFAULT_SYSTEM

pytestmark = pytest.mark.slow

_MODULES = (
    gate, sizes, architecture, long_context, data_plan, tools, code, code_stages,
    long_code,
)  # fmt: skip
_CLAIMS = {claim.name: claim for module in _MODULES for claim in module.CLAIMS}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A lab with text of a few sentences, a small vocabulary and models of one layer."""
    tiny = dataclasses.replace(
        family.SIZES["0.6m"], hidden_size=32, num_heads=1, ffn_size=64, num_layers=1,
        unroll_layers=1,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abdeiklmnorstu"), rng.integers(3, 8))) for _ in range(400)]

    words += ["the", "of", "to", "and", "that", "with", "be", "have"] * 25

    def sentence() -> str:
        return f"{' '.join(rng.choice(words, rng.integers(8, 15)))}."

    documents = ["\n".join(sentence() for _ in range(30)) for _ in range(240)]
    worlds = family.world_documents(1000, seed=0)
    marks = [f"system\n{DEFAULT_SYSTEM}\nuser\nassistant\n"] * 200
    tokenizer = Tokenizer(
        extend.train([*documents[:60], *worlds, *marks], vocab_size=1500, allow_fewer=True)
    )  # conversations about stories fit into rows of 128 tokens
    folder = tmp_path_factory.mktemp("lab")
    tokenizer.save(folder / "tokenizer.tiktoken")
    form = dataclasses.replace(FORMS["smoke"], items=12, share=0.005)
    with pytest.MonkeyPatch.context() as patch:
        one = functools.partial(learner.make_mesh, devices=jax.devices()[:1])
        patch.setattr(learner, "make_mesh", one)
        patch.setattr(architecture, "RATES", (5e-3,))
        patch.setattr(long_context, "MULTIPLES", (1, 4))
        patch.setattr(family, "SIZES", dict.fromkeys(family.SIZES, tiny))
        patch.setattr(family, "tokenizer", lambda lab: tokenizer)
        patch.setattr(
            family,
            "all_documents",
            lambda lab: {
                "docs": documents,
                "code": [f"def f{i}(x):\n    return x + {i}\n" * 60 for i in range(120)],
                "worlds": worlds,
            },
        )
        yield Lab(folder, form, lambda line: None)


@pytest.mark.parametrize("name", _CLAIMS)
def test_a_claim_runs_and_is_judged(lab, name):
    claim = _CLAIMS[name]
    outcome = claim.judge(lab, lab.run(claim)[0])
    assert outcome.verdict in ("holds", "does not show", "contradicted")
    assert outcome.why and outcome.interval is not None
    assert len({row.name for row in outcome.rows}) == len(outcome.rows)
