"""PEFT adapters, both ways: what goes out comes in with the same bits, and PEFT agrees."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from experiments import convert
from qwen_jax import sizes
from qwen_jax.attention_config import AttentionVariant, ContextExtension
from qwen_jax.checkpoint.checkpointer import Checkpointer
from qwen_jax.errors import CheckpointError, ConfigError
from qwen_jax.model.lora import LoRAConfig, lora_specs
from qwen_jax.model.spec import param_specs
from qwen_jax.model.transformer import forward
from qwen_jax.pretrained.adapters import merged
from qwen_jax.pretrained.huggingface import load_pretrained, open_pretrained, save_pretrained
from qwen_jax.pretrained.start import adopt, weights_of
from qwen_jax.types import TrainState

QWEN2 = dataclasses.replace(
    sizes.TINY, num_kv_heads=2, extension=ContextExtension(False, False), param_dtype="float32"
)
QWEN3 = dataclasses.replace(
    QWEN2, head_size=10, variant=AttentionVariant(qkv_bias=False, qk_norm=True), tie_embeddings=True
)
LORA = LoRAConfig(rank=3, alpha=5.0)
SOME = LoRAConfig(rank=2, alpha=8.0, targets=("wq", "wo", "w_down"))
CASES = {"qwen2": (QWEN2, LORA), "qwen3": (QWEN3, LORA), "some": (QWEN3, SOME)}


def random_weights(specs, scale=0.2):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda spec: scale * rng.standard_normal(spec.shape, np.float32), specs)


def lora_run(folder, config, lora):
    """Writes a released base and a run of adapters on top of it; returns the run."""
    layout = "qwen2" if config.variant.qkv_bias else "qwen3"
    save_pretrained(folder / "base", config, random_weights(param_specs(config)), layout=layout)
    run = folder / "run"
    run.mkdir()
    settings = {"model": dataclasses.asdict(config), "lora": dataclasses.asdict(lora)}
    (run / "config.json").write_text(json.dumps(settings))
    base = merged.identify(folder / "base", open_pretrained(folder / "base"))
    (run / merged.NAME).write_text(json.dumps(dataclasses.asdict(base)))
    checkpoints = Checkpointer(run / "checkpoints", keep=1)
    params = random_weights(lora_specs(config, lora), 0.3)
    checkpoints.save(1, TrainState(step=jnp.int32(1), params=params, opt_state=()), {})
    checkpoints.close()
    return run


def exported(tmp_path, case="qwen3"):
    run = lora_run(tmp_path, *CASES[case])
    convert.main(convert.Config(input=str(run), output=str(tmp_path / "peft"), layout="peft"))
    return run, tmp_path / "peft"


@pytest.mark.parametrize("case", CASES)
def test_adapters_come_in_again_as_the_merged_run(tmp_path, case):
    run, adapter = exported(tmp_path, case)
    config, expected = load_pretrained(run)
    found_config, found = load_pretrained(adapter)
    assert dataclasses.replace(found_config, compute_dtype="float32") == config
    for path, (a, b) in enumerate(zip(*map(jax.tree.leaves, (found, expected)), strict=True)):
        # Sums of a few products, in another order.
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6, err_msg=str(path))
    assert not np.array_equal(found.layers.attention.wq, load_pretrained(tmp_path / "base")[1]
                              .layers.attention.wq)  # fmt: skip


def test_training_starts_from_an_adapter_as_from_its_merged_model(tmp_path):
    run, adapter = exported(tmp_path)
    config, expected = load_pretrained(run)
    assert adopt(config, str(adapter)).head_size == 10
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), expected
    )
    started = weights_of(str(adapter), like=config)(abstract)
    np.testing.assert_allclose(started.layers.mlp.w_up, expected.layers.mlp.w_up, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_peft_gives_our_logits(tmp_path, case):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    peft = pytest.importorskip("peft", reason="peft is not installed")
    transformers = pytest.importorskip("transformers")
    run, adapter = exported(tmp_path, case)
    config, params = load_pretrained(run)
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (2, 12), np.int32)
    base = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", attn_implementation="eager", dtype=torch.float32
    )
    model = peft.PeftModel.from_pretrained(base, adapter).eval()
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()
    ours = forward(params, tokens, config=config)
    assert np.std(theirs) > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)  # sums in another order
    model.save_pretrained(tmp_path / "again")
    again = forward(load_pretrained(tmp_path / "again")[1], tokens, config=config)
    np.testing.assert_allclose(again, theirs, rtol=0, atol=1e-4)


def change(adapter, **settings):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_alpha_patterns_and_rank_stabilized_scales_are_those_of_peft(tmp_path):
    _, adapter = exported(tmp_path)
    base = load_pretrained(tmp_path / "base")[1].layers.mlp.w_up

    def delta():
        return load_pretrained(adapter)[1].layers.mlp.w_up - base

    before = delta()
    change(adapter, use_rslora=True)
    np.testing.assert_allclose(delta(), before * 3**0.5, atol=1e-6)
    change(adapter, use_rslora=False, alpha_pattern={r"layers.1.mlp.up_proj": 10})
    np.testing.assert_allclose(delta()[0], before[0], atol=1e-6)
    np.testing.assert_allclose(delta()[1], 2 * before[1], atol=1e-6)


def test_an_adapter_with_other_features_or_tensors_is_refused(tmp_path):
    run, adapter = exported(tmp_path)
    with pytest.raises(ConfigError, match="use_dora=True; modules_to_save=.*embed"):
        change(adapter, use_dora=True, modules_to_save=["embed_tokens"])
        open_pretrained(adapter)
    change(adapter, use_dora=False, modules_to_save=None)
    for name, value in (
        ("init_lora_weights", "pissa_niter_4"),  # PEFT subtracts what it starts from from the base
        ("init_lora_weights", "olora"),
        ("kasa_config", {"beta": 1}),
        ("use_qalora", True),
        ("use_of_tomorrow", True),
    ):
        with pytest.raises(ConfigError, match=f"does not implement: {name}="):
            change(adapter, **{name: value})
            open_pretrained(adapter)
        change(adapter, **{name: None})
    change(adapter, init_lora_weights="gaussian", eva_config={"rho": 2.0}, use_rslora=False)
    open_pretrained(adapter)
    weights = adapter / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    save_file({k: v for k, v in tensors.items() if k != name}, weights)
    with pytest.raises(CheckpointError, match="up_proj.lora_A.weight is missing"):
        open_pretrained(adapter)
    save_file(tensors | {"base_model.model.lm_head.lora_A.weight": tensors[name]}, weights)
    with pytest.raises(CheckpointError, match="lm_head.lora_A.weight has no place"):
        open_pretrained(adapter)


def test_convert_refuses_a_run_without_adapters_and_a_base_that_peft_cannot_load(tmp_path):
    run, _ = exported(tmp_path)
    options = {"output": str(tmp_path / "x"), "layout": "peft"}
    with pytest.raises(ConfigError, match="--dtype would have no effect"):
        convert.main(convert.Config(input=str(run), dtype="float32", **options))
    with pytest.raises(ConfigError, match="--base would have no effect"):
        convert.main(convert.Config(input=str(run), output=str(tmp_path / "x"), base="b"))
    plain = dataclasses.replace(QWEN2, num_kv_heads=None)
    (tmp_path / "other").mkdir()
    run = lora_run(tmp_path / "other", plain, LORA)
    base = tmp_path / "other" / "base"
    params = random_weights(param_specs(plain))
    save_pretrained(base, plain, params, layout="qwen")
    with pytest.raises(ConfigError, match="PEFT cannot load the base .* a qwen folder"):
        convert.main(convert.Config(input=str(run), **options))
    convert.main(convert.Config(input=str(run), base="me/base", **options))
    written = json.loads((tmp_path / "x" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "me/base"
