"""Report 2.5, Table 3: dynamic NTK, LogN and windows beyond the training length, without training.

Two models, trained at 128 and 256 tokens, read the same held-out text at up to 8 times that length.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.reproduce import family
from benchmarks.reproduce.bootstrap import difference
from benchmarks.reproduce.claim import Cell, Curve, Measured, Outcome, verdict_of
from benchmarks.reproduce.lab import Claim, Lab, rows_of
from benchmarks.reproduce.learner import TextRows, train
from benchmarks.reproduce.tables import row
from experiments.long_context import extensions, ramp
from qwen_jax.config import ModelConfig
from qwen_jax.model.transformer import forward
from qwen_jax.types import Params

SIZE, LENGTHS, MULTIPLES = "0.6m", (128, 256), (1, 2, 4, 8)
_CHUNKS = 24  # of the longest length: the items of the bootstrap
_FAR = 4  # times the training length: where the rules compare
_REPORT = {"plain": "469.81 at 8192", "+ dynamic ntk": "3.66", "+ dynamic ntk + logn": "3.56"}


def cells(lab: Lab) -> list[Cell]:
    """Returns a cell for each training length, with every extension; three seeds."""
    cost = lab.cost(
        family.SIZES[SIZE], lab.form.steps(family.BASE_STEPS), family.BASE_BATCH, family.LENGTH
    )
    return [
        Cell(f"trained at {length}", seed, lambda n=length, seed=seed: _run(lab, n, seed), **cost)
        for seed in lab.form.costly().seeds
        for length in LENGTHS
    ]


def _run(lab: Lab, length: int, seed: int) -> dict[str, Any]:
    """Returns "EXTENSION at MULTIPLE" -> nats per token of each chunk of the held-out text."""
    model, params = _model(lab, length, seed)
    longest = max(MULTIPLES) * length
    text = family.text(lab).held_out["docs"]
    chunks = max(1, min(len(text) // longest - 1, lab.form.items * _CHUNKS // 500, _CHUNKS))
    found: dict[str, Any] = {}
    for name, config in extensions(model, ramp(model)).items():
        for multiple in MULTIPLES:
            found[f"{name} at {multiple}"] = [
                _loss(config, params, text[i * longest : (i + 1) * longest + 1], multiple * length)
                for i in range(chunks)
            ]
    return found


def _loss(config: ModelConfig, params: Params, tokens: np.ndarray, length: int) -> float:
    """Returns the mean nats of tokens[1:], read in sequences of this length."""
    rows = tokens.astype(np.int32)
    shape = (-1, length)
    return float(_scorer(config)(params, rows[:-1].reshape(shape), rows[1:].reshape(shape)))


@functools.cache
def _scorer(config: ModelConfig):
    def loss(params, tokens_BT, targets_BT):
        logits_BTV = forward(params, tokens_BT, config=config)
        chosen = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
        return jnp.mean(jax.nn.logsumexp(logits_BTV, axis=-1) - chosen)

    return jax.jit(loss)


def _model(lab: Lab, length: int, seed: int) -> tuple[ModelConfig, Params]:
    """Returns a base model with rows of this length and as many tokens as the others."""
    if length == family.LENGTH:
        return family.base(lab, SIZE, seed=seed)
    model = dataclasses.replace(family.SIZES[SIZE], context_length=length)
    schedule = family.base_schedule(lab, SIZE)
    batch = schedule.batch_size * family.LENGTH // length

    def make() -> Params:
        tokens = family.text(lab).mixture(family.SHARES, schedule.steps * batch * length)
        shorter = dataclasses.replace(schedule, batch_size=batch)
        return train(model, TextRows(tokens, length), shorter, seed=seed)

    return model, lab.model(f"base_{SIZE}_{length}_{seed}", model, family.tokenizer(lab), make)


def _judge(first: str, second: str, what: str):
    def judge(lab: Lab, measured: Measured) -> Outcome:
        """Compares the loss of two extensions at four times the training length, at the first."""
        rows, curves = [], []
        names = list(next(iter(next(iter(measured.values())).values())))
        for arm in measured:
            rows += [
                row(
                    measured, arm, name, f"{arm}: {name} (nats per token)", percent=False,
                    report=_REPORT.get(name.split(" at ")[0], "") if name.endswith("4") else "",
                )
                for name in names
            ]  # fmt: skip
            lines: dict[str, list[tuple[float, float]]] = {}
            for name in names:
                values = rows_of(measured, arm, name)
                mean = sum(map(sum, values)) / sum(map(len, values))
                extension, multiple = name.rsplit(" at ", 1)
                lines.setdefault(extension, []).append((float(multiple), mean))
            curves.append(Curve(f"Loss, {arm}", "times the training length", "nats", lines))
        arm = f"trained at {LENGTHS[-1]}"
        found = difference(rows_of(measured, arm, first), rows_of(measured, arm, second))
        return Outcome(
            rows,
            verdict_of(found.low, found.high),
            (found.low, found.high),
            f"at {_FAR} times a training length of {LENGTHS[-1]}, {what} lowers the loss by "
            f"{found.estimate:+.3f} nats per token",
            curves,
        )

    return judge


CLAIMS = (
    Claim(
        number=4,
        name="long_context_ntk",
        report="2.5, Table 3",
        title="Dynamic NTK extends the context without training",
        statement="At 4 times the training length the perplexity of the 7B is 469.81 without and "
        "3.66 with dynamic NTK.",
        rule="holds if the 95 % interval of the loss without minus with dynamic NTK, at 4 times a "
        "training length of 256, lies above zero",
        cells=cells,
        judge=_judge(f"plain at {_FAR}", f"+ dynamic ntk at {_FAR}", "dynamic NTK"),
    ),
    Claim(
        number=4,
        name="long_context_logn",
        report="2.5, Table 3",
        title="LogN scaling helps on top of dynamic NTK",
        statement="At 4 times the training length the perplexity falls from 3.66 to 3.56, at 8 "
        "times from 5.71 to 4.62.",
        rule="holds if the 95 % interval of the loss without minus with LogN, both with dynamic "
        "NTK, at 4 times a training length of 256, lies above zero",
        cells=cells,
        judge=_judge(
            f"+ dynamic ntk at {_FAR}", f"+ dynamic ntk + logn at {_FAR}", "LogN on top of NTK"
        ),
        group="long_context_ntk",
    ),
    Claim(
        number=4,
        name="long_context_windows",
        report="2.5, Table 3",
        title="Shorter windows in lower layers help on top of both",
        statement="At 4 times the training length the perplexity falls from 3.56 to 3.49 with "
        "windows, at 8 times from 4.62 to 4.32.",
        rule="holds if the 95 % interval of the loss without minus with windows, at 4 times a "
        "training length of 256, lies above zero",
        cells=cells,
        judge=_judge(
            f"+ dynamic ntk + logn at {_FAR}",
            f"+ dynamic ntk + logn + window at {_FAR}",
            "a window for each layer",
        ),
        group="long_context_ntk",
    ),
)
