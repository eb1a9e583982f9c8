"""Report 2.3: each choice of the architecture undone, at equal parameters.

The changed models are replaced functions (benchmarks/ablations), but for tied embeddings and the
bias, which other models of the family have. Of each arm the best of three learning rates counts.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from benchmarks.ablations import undone as ablations
from benchmarks.reproduce import family
from benchmarks.reproduce.bootstrap import difference, mean
from benchmarks.reproduce.claim import Cell, Measured, Outcome, Row, verdict_of
from benchmarks.reproduce.lab import Claim, Lab, rows_of
from benchmarks.reproduce.learner import (
    Schedule,
    TextRows,
    forget,
    held_out_losses,
    train,
)
from qwen_jax.attention_config import AttentionVariant
from qwen_jax.config import ModelConfig
from qwen_jax.utils.files import read_json, write_json

SIZE, STEPS, BATCH = "0.6m", 2500, 2
RATES = (2.5e-3, 5e-3, 2e-2)
REPORT = "as in the report"
_CHUNKS = 32  # held-out parts of 2,048 tokens: the items of the bootstrap
_DIVERGED = 0.5  # nats above the report's arm at its best rate
_LENGTHS = {"loss": 1, "loss at twice the length": 2}


def model_of(arm: str) -> ModelConfig:
    """Returns the model of an arm, with as many parameters as the report's (within 1 %)."""
    model = family.SIZES[SIZE]
    if arm == "tied embeddings":
        wider = model.vocab_size // (3 * model.num_layers) // 2 * 2
        return dataclasses.replace(model, tie_embeddings=True, ffn_size=model.ffn_size + wider)
    if arm == "no QKV bias":
        return dataclasses.replace(model, variant=AttentionVariant(qkv_bias=False))
    return model


def _cells(choice: str) -> Callable[[Lab], list[Cell]]:
    def cells(lab: Lab) -> list[Cell]:
        """Returns the report's architecture and the other one; three seeds."""
        steps = lab.form.steps(STEPS)
        cost = lab.cost(family.SIZES[SIZE], len(RATES) * steps, BATCH, family.LENGTH)
        return [
            Cell(arm, seed, lambda arm=arm, seed=seed: _run(lab, arm, seed), **cost)
            for arm in (REPORT, choice)
            for seed in lab.form.costly().seeds
        ]

    return cells


def _run(lab: Lab, arm: str, seed: int) -> dict[str, Any]:
    """Returns learning rate -> held-out losses, at the trained length and at twice that.

    The report's arm is measured once for all claims of this file.
    """
    path = lab.folder / "architecture" / f"{arm.replace(' ', '_')}-{seed}.json"
    if path.exists():
        return read_json(path)
    replaced = arm if arm in ablations.CHOICES else None
    forget()
    try:
        with ablations.undone(replaced):
            found = {f"{rate:g}": _measured(lab, arm, seed, rate) for rate in RATES}
    finally:
        forget()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    return found


def _measured(lab: Lab, arm: str, seed: int, rate: float) -> dict[str, list[float]]:
    model, steps = model_of(arm), lab.form.steps(STEPS)
    tokens = family.text(lab).mixture(family.SHARES, steps * BATCH * family.LENGTH)
    schedule = Schedule(steps, rate, BATCH)
    params = train(model, TextRows(tokens, family.LENGTH), schedule, seed=seed)
    text = family.text(lab).held_out["docs"]
    return {
        name: [
            loss if math.isfinite(loss) else 100.0  # JSON has no NaN
            for loss in held_out_losses(
                model, params, text, multiple * family.LENGTH, chunks=_CHUNKS
            )
        ]
        for name, multiple in _LENGTHS.items()
    }


def _of_rate(measured: Measured, arm: str, rate: float, key: str) -> list[list[float]]:
    by_seed = {seed: found[f"{rate:g}"] for seed, found in measured[arm].items()}
    return rows_of({arm: by_seed}, arm, key)


def _best(measured: Measured, arm: str) -> float:
    """Returns the learning rate with the lowest held-out loss."""
    return min(RATES, key=lambda rate: mean(_of_rate(measured, arm, rate, "loss")).estimate)


def _diverged(measured: Measured, arm: str) -> list[list[float]]:
    """Returns whether a run diverged, [seeds, rates]."""
    limit = mean(_of_rate(measured, REPORT, _best(measured, REPORT), "loss")).estimate + _DIVERGED
    by_rate = [_of_rate(measured, arm, rate, "loss") for rate in RATES]
    return [
        [float(sum(losses) / len(losses) > limit) for losses in of_seed]
        for of_seed in zip(*by_rate, strict=True)
    ]


def _judge(choice: str, key: str) -> Callable[[Lab, Measured], Outcome]:
    def judge(lab: Lab, measured: Measured) -> Outcome:
        """Compares the choice undone with the report's."""
        rows = []
        for arm in (REPORT, choice):
            for rate in RATES:
                for name in _LENGTHS:
                    values = _of_rate(measured, arm, rate, name)
                    rows.append(
                        Row(
                            f"{arm}, rate {rate:g}: {name} (nats per token)",
                            *mean(values),
                            per_seed=tuple(sum(each) / len(each) for each in values),
                            percent=False,
                        )
                    )
            rows.append(Row(f"{arm}: runs that diverge", *mean(_diverged(measured, arm))))
        if key == "diverged":
            found = difference(_diverged(measured, choice), _diverged(measured, REPORT))
            why = f"{100 * found.estimate:+.0f} points more runs diverge with {choice}"
        else:
            sides = [_of_rate(measured, a, _best(measured, a), key) for a in (choice, REPORT)]
            found = difference(*sides)
            why = f"with {choice}, each at its best rate, the {key} is {found.estimate:+.4f} higher"
        return Outcome(
            rows,
            verdict_of(found.low, found.high),
            (found.low, found.high),
            f"{why} (nats)" if key != "diverged" else why,
        )

    return judge


_FAR = "loss at twice the length"
# Choice undone -> (name, title, what the report says, measure that decides).
_CHOICES = {
    "tied embeddings": (
        "untied", "Untied embeddings beat tied ones",
        "Untied embeddings are chosen for better performance, at the price of memory.", "loss",
    ),
    "no QKV bias": (
        "qkv_bias", "QKV bias improves extrapolation",
        "Biases of the QKV layer enhance the ability to extrapolate.", _FAR,
    ),
    "bfloat16 frequencies": (
        "frequencies", "FP32 inverse frequencies matter",
        "The inverse frequency matrix is in FP32 for better performance and accuracy.", _FAR,
    ),
    "post-norm": (
        "pre_norm", "Pre-norm is more stable than post-norm",
        "Pre-norm is the most widely used approach and improves training stability.", "diverged",
    ),
    "LayerNorm": (
        "rms_norm", "RMSNorm is as good as LayerNorm",
        "RMSNorm replaces LayerNorm: equal performance, and more efficient.", "loss",
    ),
    "GELU": (
        "swiglu", "SwiGLU beats GELU",
        "Activations based on GLU beat others such as GELU.", "loss",
    ),
}  # fmt: skip

CLAIMS = tuple(
    Claim(
        number=3,
        name=f"architecture_{name}",
        report="2.3",
        title=title,
        statement=statement,
        rule=f"holds if the 95 % interval of the {key if key != 'diverged' else 'share of runs'} "
        f"{'that diverge over learning rates ' if key == 'diverged' else ''}with {choice} minus "
        "that of the report's architecture lies above zero",
        cells=_cells(choice),
        judge=_judge(choice, key),
    )
    for choice, (name, title, statement, key) in _CHOICES.items()
)
