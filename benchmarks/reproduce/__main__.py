"""Tests every claim of the report at a size that two CPU cores can train.

    python -m benchmarks.reproduce --form=smoke             # minutes, one seed
    python -m benchmarks.reproduce --form=middle            # two hours, two seeds
    python -m benchmarks.reproduce --claims=math_masking    # one claim in full, five seeds
    ... --form=middle --claims=gate                         # whether the toy worlds can be learned
    ... --form=middle --claims=rlhf --seeds=0,1,2           # other seeds, to choose settings

A claim states its cost before it starts, and every trained model and finished cell is a file in
--output: after an interruption, run the command again. The rows are written to --results and the
page to OUTPUT/index.html; both hold what has been run so far.
"""

import dataclasses
import math
import pathlib
from typing import Any, Literal

from benchmarks.common.timing import machine
from benchmarks.reproduce import page
from benchmarks.reproduce.claim import FORMS, Measured, Outcome
from benchmarks.reproduce.claims import CLAIMS
from benchmarks.reproduce.lab import Claim, Lab
from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.errors import unknown_name
from qwen_jax.parallel import compilation_cache
from qwen_jax.utils.files import read_json, write_json


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a reproduction."""

    form: Literal["smoke", "middle", "full"] = option("full", "how much is run")
    claims: tuple[str, ...] = option((), "names or numbers of claims; none: all of them")
    seeds: tuple[int, ...] = option(
        (),
        "seeds instead of the form's; settings were chosen on 0, 1 and 2, which are not confirmed",
    )
    output: str = option("", "folder of models and cells; empty: runs/reproduce/FORM")
    results: str = option("", "JSON file of the rows; empty: OUTPUT/reproduce.json")


def main(config: Config) -> None:
    """Runs the claims, and writes the rows and the page after each."""
    compilation_cache.enable()
    chosen = _chosen(config.claims)
    folder = pathlib.Path(config.output or f"runs/reproduce/{config.form}")
    form = FORMS[config.form]
    lab = Lab(folder, dataclasses.replace(form, seeds=config.seeds or form.seeds), flags.log)
    folder.mkdir(parents=True, exist_ok=True)
    path = pathlib.Path(config.results or folder / "reproduce.json")
    for claim in chosen:
        measured, cost = lab.run(claim)
        outcome = claim.judge(lab, measured)
        flags.log(f"claim {claim.number}, {claim.name}: {outcome.verdict}; {outcome.why}")
        _record(path, lab, claim, outcome, cost, measured)
        page.write(folder / "index.html", read_json(path))
    flags.log(f"open {folder / 'index.html'}")


def _chosen(names: tuple[str, ...]) -> list[Claim]:
    known = {claim.name: claim for claim in CLAIMS} | {str(c.number): c for c in reversed(CLAIMS)}
    for name in names:
        if name not in known:
            raise unknown_name("claim", name, known, "--claims")
    return [c for c in CLAIMS if not names or c.name in names or str(c.number) in names]


def _record(
    path: pathlib.Path,
    lab: Lab,
    claim: Claim,
    outcome: Outcome,
    cost: dict[str, Any],
    measured: Measured,
) -> None:
    """Writes a claim's outcome into the JSON file, next to those of the other claims."""
    content = read_json(path) if path.exists() else {"claims": []}
    others = [each for each in content["claims"] if each["name"] != claim.name]
    entry = {
        "number": claim.number,
        "name": claim.name,
        "report": claim.report,
        "title": claim.title,
        "statement": claim.statement,
        "rule": claim.rule,
        "form": lab.form.name,
        "rows": [dataclasses.asdict(row) for row in outcome.rows],
        "curves": [dataclasses.asdict(curve) for curve in outcome.curves],
        "seeds": sorted({seed for by_seed in measured.values() for seed in by_seed}),
        "interval": outcome.interval,
        "verdict": outcome.verdict,
        "why": outcome.why,
        "cost": cost,
        "group": claim.group,
        "machine": machine(),
        "command": f"python -m benchmarks.reproduce --form={lab.form.name} --claims={claim.name}",
    }
    if lab.form.seeds != FORMS[lab.form.name].seeds:
        entry["command"] += f" --seeds={','.join(map(str, lab.form.seeds))}"
    order = [each.name for each in CLAIMS]
    claims = sorted([*others, entry], key=lambda each: order.index(each["name"]))
    write_json(path, _without_nan({"claims": claims}))


def _without_nan(value: Any) -> Any:
    """Returns JSON with None for each NaN: the interval of one seed is unknown."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
