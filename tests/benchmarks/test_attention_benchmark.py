"""The attention benchmark: a small run, operation counts, tile tuning, the validation tool."""

import dataclasses
import json
import sys
import types

import jax
import pytest

from benchmarks.attention import attention, attention_tune, attention_validation
from benchmarks.attention.attention_peers import contestants, documents
from benchmarks.common.timing import Timing
from qwen_jax.errors import ConfigError, KernelError
from qwen_jax.kernels import tiles
from qwen_jax.kernels.validation import Case


@pytest.fixture(autouse=True)
def kernels_for_other_devices(monkeypatch):
    """Replaces kernels that are tested elsewhere and take seconds to import."""
    for name, platform in (
        ("tpu.backend", "tpu"),
        ("hopper.backend", "gpu"),
        ("hopper.deterministic", "gpu"),
    ):
        module = types.SimpleNamespace(PLATFORM=platform, refuse=lambda call: None)
        monkeypatch.setitem(sys.modules, f"qwen_jax.kernels.{name}", module)


def test_attention_benchmark_smoke_run(tmp_path, monkeypatch, capsys):
    # tests/kernels checks the errors themselves, and compiles as long as the rest of this run.
    monkeypatch.setattr(attention, "error_ratios", lambda case, name: {"out": case.H / 128})
    attention.main(dataclasses.replace(attention.SMOKE, masks=("four",), output=str(tmp_path)))
    (path,) = tmp_path.glob("*.json")
    result = json.loads(path.read_text())
    rows = {(row["mask"], row["name"]): row for row in result["rows"]}
    for name in ("qwen_jax xla", "jax.nn xla"):
        row = rows["four", name]
        for which in attention.PASSES:
            assert 0 < row[which]["min"] <= row[which]["median"] <= row[which]["max"]
            assert row[which]["share"] == pytest.approx(
                row[which]["tflops"] / result["matmul_tflops"]["float32"]
            )
    assert "GPU" in rows["four", "qwen_jax cudnn"]["refused"]
    assert result["errors"] == {
        f"qwen_jax xla, float32, head 64, {mask}": {"out": 0.5} for mask in ("causal", "packed")
    }
    assert path.with_suffix(".png").stat().st_size > 10_000
    assert "qwen_jax xla" in capsys.readouterr().out


def test_attention_benchmark_does_not_time_a_wrong_backend(monkeypatch):
    monkeypatch.setattr(attention, "error_ratios", lambda case, name: {"out": float("nan")})
    with pytest.raises(SystemExit, match="exceed the tolerance"):
        attention.main(attention.SMOKE)


def test_operations_count_the_visible_half_of_every_document():
    full = attention.operations(Case(T=64, B=2, N=4, H=64))
    assert full["forward"] == 4 * 64**2 * 64 * 4 * 2 / 2
    assert full["both"] == full["forward"] + full["backward"] == 3.5 * full["forward"]
    packed = attention.operations(Case(T=64, B=2, N=4, H=64, documents=documents("four", 64)))
    assert packed["forward"] == full["forward"] / 4


def test_figures_mark_host_bound_times():
    times = {name: Timing(2e-5, 1e-5, 3e-5) for name in attention.PASSES}
    work = dict.fromkeys(attention.PASSES, 1e6)
    assert attention.figures(times, work, 1.0, dispatch=1e-5)["host_bound"]
    assert not attention.figures(times, work, 1.0, dispatch=1e-6)["host_bound"]


@pytest.mark.parametrize("T", [100, 1024, 5000])
def test_documents_fill_the_sequence(T):
    for mask in ("one", "four", "mix"):
        assert sum(documents(mask, T)) == T and min(documents(mask, T)) > 0
    assert len(documents("four", T)) == 4 and documents("causal", T) is None


def test_for_device_refuses_an_unknown_mask():
    with pytest.raises(ConfigError, match="sliding"):
        attention.main(dataclasses.replace(attention.SMOKE, masks=("sliding",)))


def test_contestants_agree_on_packed_documents():
    case = Case(T=96, N=2, K=2, dtype="float32", documents=(50, 46))
    (q, k, v, _), options = case.arrays(), case.options()
    able = [who for who in contestants(q, k, options["segment_ids"]) if who.attend]
    assert len(able) >= 2
    outs = [who.attend(q, k, v, **options) for who in able]
    for out in outs[1:]:
        assert float(abs(out - outs[0]).max()) < 1e-5


@pytest.mark.slow  # compiles a program per tile
def test_attention_tune_writes_a_row_that_lookup_finds(tmp_path, monkeypatch):
    table = tmp_path / "tiles.json"
    other = {"kernel": "other", "kind": "X", "head_size": 64, "dtype": "float32", "tiles": {}}
    table.write_text(json.dumps([other]))
    monkeypatch.setattr(tiles, "TABLE", table)
    monkeypatch.setitem(attention_tune.GRID, "xla", {"xla": {"query": (32, 64), "key": (64,)}})
    case = Case(T=128, N=2, K=1, dtype="float32")
    (row,) = attention_tune.run([(case, "causal")], rounds=1, seconds=0.001, table=table)
    assert row["tiles"] in ({"query": 32, "key": 64}, {"query": 64, "key": 64})
    assert {"date", "jax", "milliseconds"} <= set(row)
    found = tiles.lookup(
        "xla",
        kind=jax.devices()[0].device_kind,
        head_size=64,
        dtype="float32",
        default={"query": 1, "key": 1},
    )
    assert found == row["tiles"] and other in tiles.table()
    tiles.table.cache_clear()


@pytest.mark.parametrize(
    "error, raises",
    [(KernelError("refused.", "attention", "none."), True), (ValueError("no such form"), False)],
)
def test_attention_tune_skips_uncompilable_sizes_but_not_refusals(
    monkeypatch, capsys, error, raises
):
    def programs(*arguments):
        raise error

    monkeypatch.setattr(attention_tune, "programs", programs)
    case, grid = Case(T=128, N=2, K=1, dtype="float32"), {"query": (32, 64)}

    def tune():
        return attention_tune.best(case, "xla", "xla", grid, rounds=1, seconds=0.001)

    if raises:
        with pytest.raises(KernelError, match="refused"):
            tune()
    else:
        assert tune() is None and capsys.readouterr().out.count("no such form") == 2


@pytest.mark.slow  # compiles a program per case
def test_attention_validation_counts_cases_and_fails_on_an_error(tmp_path, monkeypatch, capsys):
    config = attention_validation.Config(
        lengths=(1, 7), head_sizes=(64,), dtypes=("float32",), output=str(tmp_path)
    )
    monkeypatch.setattr(attention_validation, "HEADS", ((2, 1),))
    attention_validation.main(config)
    found = json.loads((tmp_path / "attention_validation_xla.json").read_text())["dtypes"][
        "float32"
    ]
    assert found["cases"] == 10 and all(worst["ratio"] <= 1 for worst in found["worst"].values())
    assert "10 cases" in capsys.readouterr().out
    monkeypatch.setattr(attention_validation, "error_ratios", lambda case, name: {"dq": 1.5})
    with pytest.raises(SystemExit, match="exceeds its tolerance"):
        attention_validation.main(config)
    with pytest.raises(KernelError, match="xla"):
        attention_validation.main(dataclasses.replace(config, name="xlo"))
