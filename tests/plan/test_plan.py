"""Planning: names of slices, the search, estimates, and the real step compiled without a TPU."""

import dataclasses
import importlib.util

import pytest

from experiments import plan, pretrain
from qwen_jax import sizes
from qwen_jax.config import MeshConfig
from qwen_jax.errors import QwenJaxError
from qwen_jax.plan import search, table, topologies
from qwen_jax.plan.estimate import estimate, flops_found, model_flops, tokens_per_step
from qwen_jax.plan.program import Result, compile_apart, refused

libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install 'jax[tpu]' compiles for TPUs without one",
)


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
def test_names_count_what_google_counts(name, chips, libtpu_name):
    topology = topologies.by_name(name)
    assert (topology.chips, topology.libtpu) == (chips, libtpu_name)


@pytest.mark.parametrize(
    "name, message",
    [("v5q-8", "v5p"), ("v5p-7", "v5p-256"), ("v5p", "write it as"), ("v5p:4x4", "3")],
)
def test_a_slice_that_does_not_exist_is_answered_with_those_that_do(name, message):
    with pytest.raises(QwenJaxError, match=message):
        topologies.by_name(name)


def test_the_clock_is_that_of_the_peak():
    """Units of 128 x 128 (v6e: 256 x 256), 4 in a core."""
    for kind, side in (("v5e", 128), ("v5p", 128), ("v6e", 256)):
        chip = topologies.CHIPS[kind]
        assert 2 * 4 * side**2 * chip.cores * chip.clock == pytest.approx(chip.peak_flops, rel=0.01)


@pytest.mark.parametrize("stage", plan.STAGES)
def test_a_workload_is_the_recipe(stage):
    workload = plan.workload_of(plan.Config(model="7b", stage=stage))
    batch_size = {"pretrain": 2048, "reward_model": 64, "ppo": 128}[stage]
    assert workload.model == pretrain.RECIPES["7b"].model
    assert workload.train.batch_size == batch_size
    assert (
        tokens_per_step(workload)
        == {"pretrain": 2048 * 2048, "reward_model": 64 * 2 * 2048, "ppo": 128 * 1024 + 512 * 2048}[
            stage
        ]
    )


def test_longer_rows_keep_the_tokens_of_a_step_and_of_the_run():
    short = plan.workload_of(plan.Config(model="7b"))
    long = plan.workload_of(plan.Config(model="7b", context_length=8192))
    assert tokens_per_step(short) == tokens_per_step(long)
    assert short.train.num_steps == long.train.num_steps
    assert long.train.batch_size == 512


def test_the_search_keeps_to_what_divides_and_fits():
    workload = plan.workload_of(plan.Config(model="14b"))
    topology = topologies.by_name("v6e-256")
    found, looked_at, too_large = search.best(
        workload, topology, number=6, max_tensor=8, max_context=2
    )
    assert len(found) == 6 and looked_at > too_large > 0
    assert [one.seconds for one in found] == sorted(one.seconds for one in found)
    for one in found:
        mesh, train = one.workload.mesh, one.workload.train
        assert mesh.data * mesh.fsdp * mesh.tensor * mesh.context == 256
        assert train.batch_size % (mesh.data * mesh.fsdp * train.micro_batches) == 0
        assert one.workload.model.num_heads % mesh.tensor == 0
        assert one.bytes <= topology.chip.hbm_bytes


def test_keeping_more_takes_more_memory_and_less_time():
    workload = plan.workload_of(plan.Config(model="7b"))
    chip = topologies.CHIPS["v5p"]
    kept = [
        search.paper(
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
    assert kept[0].bytes > kept[1].bytes > kept[2].bytes
    assert kept[0].seconds <= kept[1].seconds < kept[2].seconds


def test_mfu_is_model_flops_over_peak():
    workload = plan.workload_of(plan.Config(model="7b"))
    topology = topologies.by_name("v5p-256")
    a, b = model_flops(workload)
    seconds = a / (topology.chips * topology.chip.peak_flops)
    found = estimate(Result(seconds=seconds, work={"products": seconds}), workload, topology)
    assert found.mfu == pytest.approx(1.0) and found.mfu_noncausal == pytest.approx(b / a)
    assert found.tokens_per_second == pytest.approx(2048 * 2048 / seconds)
    assert found.chip_hours == pytest.approx(workload.train.num_steps * seconds * 128 / 3600)
    assert workload.train.num_steps * 2048 * 2048 == pytest.approx(2.4e12, rel=1e-4)


@pytest.mark.parametrize("share, doubted", [(1.3, False), (0.4, True)])
def test_a_program_that_was_not_read_whole_says_so(monkeypatch, share, doubted):
    config = plan.Config(
        model="7b", topology="v5p-256", mesh="4,32,1,1", remat="nothing", micro_batches=4
    )
    a, _ = model_flops(plan.workload_of(config))
    monkeypatch.setattr(
        plan,
        "compile_apart",
        lambda *_, **__: Result(seconds=5.0, work={"products": 5.0}, flops=share * a / 128),
    )
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(plan.importlib.metadata, "version", lambda name: "1")
    lines = []
    plan.plan(config, log=lines.append)
    assert any("40% were found" in text for text in lines) == doubted


def test_what_does_not_fit_is_a_line():
    assert (
        refused(
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 25.1G of "
            "15.75G hbm. Exceeded"
        )
        == "out of memory: 25.1G of 15.75G"
    )
    assert (
        refused(
            "CompileTimeHbmOom: the total memory required for HLO temporaries (151.04G) "
            "exceeds available HBM (15.75G)."
        )
        == "out of memory: 151.04G of 15.75G"
    )
    workload = plan.workload_of(plan.Config(model="7b"))
    workload = dataclasses.replace(workload, mesh=MeshConfig(1, 16, 1, 1))
    result = Result(error="out of memory: 25.1G of 15.75G")
    text = table.line(
        table.Planned(workload, topologies.by_name("v5e-16"), result, None), price=None
    )
    assert "out of memory: 25.1G" in text
    assert text.count("|") == table.HEADER.splitlines()[0].count("|")


def test_gpus_are_only_estimated(capsys):
    assert plan.plan(plan.Config(model="7b", topology="h100-64", price=2.0)) == []
    lines = capsys.readouterr().out.splitlines()
    assert "ONLY ESTIMATED" in lines[0]
    assert len(lines) > 2 and all("only estimated" in text for text in lines[2:])
    assert "$" in lines[2]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"stage": "pretraining"}, "pretrain"),
        ({"model": "7"}, "7b"),
        ({"batch_tokens": 1000}, "whole number of rows"),
    ],
)
def test_bad_settings_are_answered(changes, message):
    with pytest.raises(QwenJaxError, match=message):
        plan.workload_of(plan.Config(**changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mesh": "1,3,1,1"}, "is of 3 chips, v5p-256 has 128"),
        ({"model": "14b", "topology": "v5e-4"}, "none should fit"),
        ({"batch_tokens": 2048}, "no layout divides"),
    ],
)
def test_layouts_that_cannot_be_are_answered(changes, message):
    config = plan.Config(**changes)
    with pytest.raises(QwenJaxError, match=message):
        plan.candidates(
            config, plan.workload_of(config), topologies.by_name(config.topology), print
        )


def tiny(stage: str, **mesh):
    workload = plan.workload_of(plan.Config(model="1.8b", stage=stage))
    model = dataclasses.replace(
        sizes.TINY,
        hidden_size=256,
        num_heads=2,
        ffn_size=512,
        vocab_size=1024,
        context_length=1024,
        compute_dtype="bfloat16",
        remat="dots",
    )
    return dataclasses.replace(
        workload,
        model=model,
        mesh=MeshConfig(**mesh),
        train=dataclasses.replace(workload.train, batch_size=8),
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
def test_the_real_step_compiles_without_a_tpu(stage, mesh):
    workload, topology = tiny(stage, **mesh), topologies.by_name("v5e:2x2")
    result = compile_apart(workload, topology)
    assert result.error is None and not result.unknown
    assert result.parameters > 0 and result.workspace > 0 and result.seconds > 0
    assert {"attention forward", "attention backward", "products"} <= set(result.work)
    assert (result.held > 0) == (stage == "ppo")
    assert result.collectives
    assert flops_found(result, workload, topology) > 0.97


@libtpu
@pytest.mark.slow
def test_a_step_that_does_not_fit_is_a_result():
    workload = plan.workload_of(plan.Config(model="1.8b"))
    workload = dataclasses.replace(
        workload, mesh=MeshConfig(fsdp=4), train=dataclasses.replace(workload.train, batch_size=256)
    )
    result = compile_apart(workload, topologies.by_name("v5e:2x2"))
    assert result.error.startswith("out of memory:")


@pytest.mark.parametrize("size", ["7b", "14b"])
def test_recipes_have_the_layouts_that_plan_found(size):
    """On v5p-256; the mesh is a flag, as it is the slice's and not the recipe's."""
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


def test_pieces_that_are_no_whole_vectors_come_last():
    workload = plan.workload_of(plan.Config(model="7b"))
    found, *_ = search.best(
        workload, topologies.by_name("v5p-256"), number=3, max_tensor=8, max_context=1
    )
    assert all(4096 // one.workload.mesh.fsdp % 128 == 0 for one in found)
