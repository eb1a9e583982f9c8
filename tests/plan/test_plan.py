"""The planner: names of slices, the search, estimates, and the real step compiled without a TPU."""

import dataclasses
import json
import re

import pytest

from experiments import plan, pretrain
from qwen_jax import sizes
from qwen_jax.config import MeshConfig
from qwen_jax.errors import ConfigError, QwenJaxError
from qwen_jax.model import spec
from qwen_jax.plan import gpus, search, table, topologies
from qwen_jax.plan.estimate import estimate, model_flops, parsed_flops_ratio, tokens_per_step
from qwen_jax.plan.program import Result, compile_in_subprocess, error_summary
from qwen_jax.pretrained.config_json import write_config
from qwen_jax.pretrained.layouts import LAYOUTS
from qwen_jax.train.telemetry.metrics import flops_per_token
from tests.helpers.tpu_programs import libtpu, tiny_workload


@pytest.mark.parametrize(
    "name, chips, libtpu_name",
    [
        ("v5p-256", 128, "v5p:4x4x8"),
        ("v5p-64", 32, "v5p:2x4x4"),
        ("v5e-16", 16, "v5e:4x4"),
        ("v6e-256", 256, "v6e:16x16"),
        ("v5p:4x8x8", 256, "v5p:4x8x8"),
    ],
)
def test_by_name_counts_chips_as_google_does(name, chips, libtpu_name):
    topology = topologies.by_name(name)
    assert (topology.chips, topology.libtpu) == (chips, libtpu_name)


@pytest.mark.parametrize(
    "name, message",
    [("v5q-8", "v5p"), ("v5p-7", "v5p-256"), ("v5p", "use a name such as"), ("v5p:4x4", "3")],
)
def test_by_name_lists_existing_slices_for_an_unknown_one(name, message):
    with pytest.raises(QwenJaxError, match=message):
        topologies.by_name(name)


def test_chips_clock_is_consistent_with_the_peak():
    """Matrix units of 128 x 128 (v6e: 256 x 256), 4 per core."""
    for kind, side in (("v5e", 128), ("v5p", 128), ("v6e", 256)):
        chip = topologies.CHIPS[kind]
        assert 2 * 4 * side**2 * chip.cores * chip.clock == pytest.approx(chip.peak_flops, rel=0.01)


_STEPS = {  # stage of the 7B recipes -> (batch size, tokens per step)
    "pretrain": (2048, 2048 * 2048),
    "code_qwen": (512, 512 * 8192),
    "math_qwen": (128, 128 * 1024),
    "reward_model": (64, 64 * 2 * 2048),
    "ppo": (128, 128 * 1024 + 512 * 2048),
}
_CHANGED = {
    "code_qwen": {"context_length": 8192},
    "math_qwen": {"context_length": 1024, "dropout": 0.1},
}


@pytest.mark.parametrize("stage", plan.STAGES)
def test_workload_of_equals_the_recipe(stage):
    workload = plan.workload_of(plan.Config(model="7b", training_stage=stage))
    changed = _CHANGED.get(stage, {})
    assert workload.model == dataclasses.replace(pretrain.RECIPES["7b"].model, **changed)
    assert (workload.train.batch_size, tokens_per_step(workload)) == _STEPS[stage]


def test_workload_of_context_length_keeps_the_tokens_per_step_and_run():
    short = plan.workload_of(plan.Config(model="7b"))
    long = plan.workload_of(plan.Config(model="7b", context_length=8192))
    assert tokens_per_step(short) == tokens_per_step(long)
    assert short.train.num_steps == long.train.num_steps
    assert long.train.batch_size == 512


def test_best_returns_layouts_that_divide_and_fit():
    workload = plan.workload_of(plan.Config(model="14b"))
    topology = topologies.by_name("v6e-256")
    found, considered, too_large = search.best(
        workload, topology, number=6, max_tensor=8, max_context=2
    )
    assert len(found) == 6 and considered > too_large > 0
    assert [one.seconds for one in found] == sorted(one.seconds for one in found)
    for one in found:
        mesh, train = one.workload.mesh, one.workload.train
        assert mesh.data * mesh.fsdp * mesh.tensor * mesh.context == 256
        assert train.batch_size % (mesh.data * mesh.fsdp * train.micro_batches) == 0
        assert one.workload.model.num_heads % mesh.tensor == 0
        assert one.bytes <= topology.chip.hbm_bytes


def test_paper_estimate_remat_saves_memory_and_costs_time():
    workload = plan.workload_of(plan.Config(model="7b"))
    chip = topologies.CHIPS["v5p"]
    estimates = [
        search.paper_estimate(
            dataclasses.replace(
                workload,
                mesh=MeshConfig(1, 128, 1, 1),
                model=dataclasses.replace(workload.model, remat=remat),
            ),
            chip,
            128,
        )
        for remat in ("none", "dots", "block")
    ]
    assert estimates[0].bytes > estimates[1].bytes > estimates[2].bytes
    assert estimates[0].seconds <= estimates[1].seconds < estimates[2].seconds


def test_estimate_mfu_is_model_flops_over_peak():
    workload = plan.workload_of(plan.Config(model="7b"))
    topology = topologies.by_name("v5p-256")
    causal, noncausal = model_flops(workload)
    seconds = causal / (topology.chips * topology.chip.peak_flops)
    found = estimate(Result(seconds=seconds, work={"matmuls": seconds}), workload, topology)
    assert found.mfu == pytest.approx(1.0) and found.mfu_noncausal == pytest.approx(
        noncausal / causal
    )
    assert found.tokens_per_second == pytest.approx(2048 * 2048 / seconds)
    assert found.chip_hours == pytest.approx(workload.train.num_steps * seconds * 128 / 3600)
    assert workload.train.num_steps * 2048 * 2048 == pytest.approx(2.4e12, rel=1e-4)


@pytest.mark.parametrize("share, warns", [(1.3, False), (0.4, True)])
def test_plan_warns_if_a_program_was_not_parsed_fully(monkeypatch, share, warns):
    config = plan.Config(
        model="7b", topology="v5p-256", mesh="4,32,1,1", remat="nothing", micro_batches=4
    )
    flops, _ = model_flops(plan.workload_of(config))
    monkeypatch.setattr(
        plan,
        "compile_in_subprocess",
        lambda *_, **__: Result(seconds=5.0, work={"matmuls": 5.0}, flops=share * flops / 128),
    )
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(plan.importlib.metadata, "version", lambda name: "1")
    lines = []
    plan.plan(config, log=lines.append)
    assert any("only 40% of the model's FLOPs" in text for text in lines) == warns


def test_error_summary_of_missing_memory_is_a_row_of_the_table():
    assert (
        error_summary(
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 25.1G of "
            "15.75G hbm. Exceeded"
        )
        == "out of memory: 25.1G of 15.75G"
    )
    assert (
        error_summary(
            "CompileTimeHbmOom: the total memory required for HLO temporaries (151.04G) "
            "exceeds available HBM (15.75G)."
        )
        == "out of memory: 151.04G of 15.75G"
    )
    workload = plan.workload_of(plan.Config(model="7b"))
    workload = dataclasses.replace(workload, mesh=MeshConfig(1, 16, 1, 1))
    result = Result(error="out of memory: 25.1G of 15.75G")
    text = table.line(
        table.PlannedLayout(workload, topologies.by_name("v5e-16"), result, None), price=None
    )
    assert "out of memory: 25.1G" in text
    assert text.count("|") == table.HEADER.splitlines()[0].count("|")


def test_plan_only_estimates_gpus(capsys):
    assert plan.plan(plan.Config(model="7b", topology="h100-64", price=2.0)) == []
    lines = capsys.readouterr().out.splitlines()
    assert "ONLY ESTIMATED" in lines[0]
    assert len(lines) > 2 and all("only estimated" in text for text in lines[2:])
    assert "$" in lines[2]


def test_paper_estimate_matmul_peak_slows_only_matmuls():
    workload = search.with_layout(
        plan.workload_of(plan.Config(model="7b")), MeshConfig(1, 64, 1, 1), "none", 1
    )
    chip = gpus.KINDS["h100"]
    fast, slow = (
        search.paper_estimate(workload, chip, 64, matmul_peak=peak).seconds for peak in (0.6, 0.3)
    )
    matmuls = model_flops(workload)[0] / (64 * chip.peak_flops * 0.6)
    assert slow - fast == pytest.approx(matmuls)


def test_gpus_estimate_has_the_stated_matmul_peak(capsys):
    plan.plan(plan.Config(model="7b", topology="h100-64"))
    shown = [
        float(seconds) for seconds in re.findall(r"([\d.]+) s per step", capsys.readouterr().out)
    ]
    workload = plan.workload_of(plan.Config(model="7b"))
    chip = dataclasses.replace(gpus.KINDS["h100"], link_bandwidth=25e9)
    found, *_ = search.best(
        workload,
        topologies.Topology("h100-64", chip, (64,), "h100-64"),
        number=4,
        memory_fraction=0.9,
        matmul_peak=gpus.SHARE,
        max_tensor=8,
        max_context=1,
    )
    assert shown == pytest.approx([one.seconds for one in found], abs=0.006)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"training_stage": "pretraining"}, "pretrain"),
        ({"model": "7"}, "7b"),
        ({"batch_tokens": 1000}, "not a multiple of the sequence length"),
    ],
)
def test_workload_of_rejects_bad_settings(changes, message):
    with pytest.raises(QwenJaxError, match=message):
        plan.workload_of(plan.Config(**changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mesh": "1,3,1,1"}, "has 3 chips, v5p-256 has 128"),
        ({"model": "14b", "topology": "v5e-4"}, "none of .* should fit"),
        ({"batch_tokens": 2048}, "no layout divides"),
    ],
)
def test_candidates_rejects_impossible_layouts(changes, message):
    config = plan.Config(**changes)
    with pytest.raises(QwenJaxError, match=message):
        plan.candidates(
            config, plan.workload_of(config), topologies.by_name(config.topology), print
        )


@libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, mesh",
    [
        ("pretrain", {"fsdp": 4}),
        ("pretrain", {"fsdp": 2, "context": 2}),
        ("reward_model", {"fsdp": 2, "tensor": 2}),
        ("ppo", {"fsdp": 4}),
    ],
)
def test_compile_in_subprocess_compiles_the_real_step_without_a_tpu(stage, mesh):
    workload, topology = tiny_workload(stage, **mesh), topologies.by_name("v5e:2x2")
    result = compile_in_subprocess(workload, topology)
    assert result.error is None and not result.unknown
    assert result.parameters > 0 and result.workspace > 0 and result.seconds > 0
    assert {"attention forward", "attention backward", "matmuls"} <= set(result.work)
    assert (result.frozen > 0) == (stage == "ppo")
    assert result.collectives
    assert parsed_flops_ratio(result, workload, topology) > 0.97


@libtpu
@pytest.mark.slow
def test_compile_in_subprocess_returns_a_result_for_a_step_that_does_not_fit():
    workload = plan.workload_of(plan.Config(model="1.8b"))
    workload = dataclasses.replace(
        workload, mesh=MeshConfig(fsdp=4), train=dataclasses.replace(workload.train, batch_size=256)
    )
    result = compile_in_subprocess(workload, topologies.by_name("v5e:2x2"))
    assert result.error.startswith("out of memory:")


@pytest.mark.parametrize("size", ["7b", "14b"])
def test_best_finds_the_layouts_of_the_recipes(size):
    """On v5p-256; the mesh is not part of a recipe, as it depends on the slice."""
    found, *_ = search.best(
        plan.workload_of(plan.Config(model=size)),
        topologies.by_name("v5p-256"),
        number=4,
        max_tensor=8,
        max_context=1,
    )
    recipe = pretrain.RECIPES[size]
    assert (recipe.model.remat, recipe.train.micro_batches) in [
        (one.workload.model.remat, one.workload.train.micro_batches) for one in found
    ]


def test_best_prefers_shards_of_full_vectors():
    workload = plan.workload_of(plan.Config(model="7b"))
    found, *_ = search.best(
        workload, topologies.by_name("v5p-256"), number=3, max_tensor=8, max_context=1
    )
    assert all(4096 // one.workload.mesh.fsdp % 128 == 0 for one in found)


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"topology": "h100-64", "mesh": "1,64,1,1"}, "--mesh"),
        ({"topology": "h100-64", "remat": "block", "micro_batches": 2}, "--remat, --micro_batches"),
        ({"topology": "h200-8", "output": "a.json"}, "--output"),
        ({"topology": "a100-8", "compile": 2, "max_tensor": 4}, "--max_tensor, --compile"),
        ({"mesh": "1,128,1,1", "max_context": 4}, "--max_context"),
        ({"mesh": "1,128,1,1", "remat": "block", "micro_batches": 1, "compile": 9}, "--compile"),
    ],
)
def test_plan_refuses_flags_without_effect(settings, named):
    with pytest.raises(ConfigError, match="would have no effect") as caught:
        plan.plan(plan.Config(**settings))
    assert caught.value.where == named


def test_plan_accepts_the_flags_of_a_search():
    for settings in ({"max_tensor": 4, "compile": 1}, {"mesh": "1,128,1,1", "compile": 2}):
        plan.refuse_flags_without_effect(plan.Config(**settings))


def test_workload_of_takes_a_size_or_a_config_json(tmp_path):
    save = write_config(sizes.QWEN3_8B, LAYOUTS["qwen3"], dtype="bfloat16", end_of_text=None)
    (tmp_path / "config.json").write_text(json.dumps(save))
    named, read = (
        plan.workload_of(plan.Config(model=name))
        for name in ("qwen3-8b", str(tmp_path / "config.json"))
    )
    assert named == read and named.train == plan.workload_of(plan.Config(model="7b")).train
    assert spec.count(named.model) == 8_190_735_360 and named.model.variant.qk_norm
    assert (named.model.context_length, named.model.remat) == (2048, "dots")
    # 2 FLOPs per multiplication, three times; 36 layers, half a square of 2048 x 32 heads x 128.
    matmuls = spec.count(named.model) - 151936 * 4096
    causal, _ = flops_per_token(named.model)
    assert causal == 6 * matmuls + 6 * 36 * 2048 * 32 * 128


def test_plan_of_gpus_says_what_the_smallest_layout_needs(capsys):
    plan.plan(plan.Config(model="qwen3-8b", topology="h200-1"))
    *_, last = capsys.readouterr().out.splitlines()
    needed = float(re.search(r"needs about ([\d.]+) GiB", last)[1])
    assert needed > 8_190_735_360 * 16 / 2**30 and "--lora.rank" in last
