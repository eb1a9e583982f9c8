"""Qwen2 and Qwen3 folders of every kind: the logits, and the same bytes after a round trip."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from qwen_jax import sizes
from qwen_jax.attention_config import AttentionVariant, ContextExtension, RopeScaling
from qwen_jax.config import MeshConfig
from qwen_jax.inference.decode import generate
from qwen_jax.model import transformer
from qwen_jax.model.lora import TARGETS, LoRAConfig, lora_specs, merge_adapters, with_adapters
from qwen_jax.model.spec import count, param_specs
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.parallel.sharding import sharding_for
from qwen_jax.pretrained.from_run import save_run
from qwen_jax.pretrained.huggingface import load_pretrained, save_pretrained
from qwen_jax.pretrained.load import model_config
from qwen_jax.train.language_model import make_objective
from qwen_jax.types import Batch
from tests.helpers import numpy_qwen

PLAIN = dataclasses.replace(
    sizes.TINY, context_length=32, rope_base=1e4, extension=ContextExtension(False, False)
)
GROUPED = {"num_kv_heads": 2, "head_size": 10}  # 4 heads of 10, and a hidden size of 32
WINDOW = {"sliding_window": 5, "sliding_layers": (1,)}
YARN = RopeScaling("yarn", 4.0, original_length=8)
BASE = {"qwen2": AttentionVariant(), "qwen3": AttentionVariant(qkv_bias=False, qk_norm=True)}
# Case -> (fields of the config, fields of its variant, arguments of save_pretrained).
CASES = {
    "untied": ({}, {}, {}),
    "tied": ({"tie_embeddings": True}, {}, {}),
    "grouped": (GROUPED, {}, {}),
    "bfloat16": (GROUPED, {}, {"param_dtype": "bfloat16"}),
    "float16": (GROUPED, {}, {"param_dtype": "float16"}),
    "sharded": (GROUPED, {}, {"max_shard_size": 20_000}),
    "yarn": (GROUPED, {"rope_scaling": YARN}, {}),
    "linear": (GROUPED, {"rope_scaling": RopeScaling("linear", 4.0)}, {}),
    "sliding": (GROUPED, WINDOW, {}),
}
# Each is a program; those of one layout are also the other's, but for QK-norm and bias.
ALWAYS = {("qwen2", "yarn"), ("qwen2", "sliding")} | {("qwen3", case) for case in CASES}
forward = jax.jit(transformer.forward, static_argnames="config")


CELLS = [
    pytest.param(layout, case, id=f"{layout}-{case}")
    if (layout, case) in ALWAYS
    else pytest.param(layout, case, id=f"{layout}-{case}", marks=pytest.mark.slow)
    for layout in BASE
    for case in CASES
]


def config_of(layout, case):
    fields, of_variant, _ = CASES[case]
    variant = dataclasses.replace(BASE[layout], **of_variant)
    return dataclasses.replace(PLAIN, variant=variant, **fields)


def random_params(config):
    """Distinct values everywhere, also in biases and norms."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda spec: jax.device_put(rng.normal(size=spec.shape, scale=0.4).astype(np.float32)),
        param_specs(config),
    )


def folder_of(tmp_path, layout, case):
    config, folder = config_of(layout, case), tmp_path / "in"
    save_pretrained(folder, config, random_params(config), layout=layout, **CASES[case][2])
    return folder


def tokens_of(length, *, vocab_size=PLAIN.vocab_size):
    return np.random.default_rng(1).integers(0, vocab_size, (2, length), np.int32)


def loaded_in_float32(folder):
    config, params = load_pretrained(folder, param_dtype="float32")
    return dataclasses.replace(config, compute_dtype="float32"), params


@pytest.mark.parametrize("layout, case", CELLS)
def test_load_pretrained_gives_the_logits_of_the_definition(tmp_path, layout, case):
    folder = folder_of(tmp_path, layout, case)
    config, params = loaded_in_float32(folder)
    tokens = tokens_of(24)
    expected = np.stack([numpy_qwen.logits(folder, sequence) for sequence in tokens])
    assert np.std(expected) > 0.5, "the logits must be far from constant"
    # float32 against float64: rounding of sums.
    np.testing.assert_allclose(forward(params, tokens, config=config), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout, case", CELLS)
def test_load_pretrained_gives_the_logits_of_transformers(tmp_path, layout, case):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = folder_of(tmp_path, layout, case)
    config, params = loaded_in_float32(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    tokens = tokens_of(24)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()
    ours = forward(params, tokens, config=config)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)
    theirs.save_pretrained(tmp_path / "again")  # in the format of transformers 5
    again, _ = loaded_in_float32(tmp_path / "again")
    assert again == config


@pytest.mark.parametrize("layout, case", CELLS)
def test_save_pretrained_writes_the_folder_that_was_loaded(tmp_path, layout, case):
    folder = folder_of(tmp_path, layout, case)
    config, params = load_pretrained(folder)
    found = dataclasses.replace(config, param_dtype="float32", compute_dtype="float32")
    assert found == config_of(layout, case)
    arguments = {key: value for key, value in CASES[case][2].items() if key != "param_dtype"}
    save_pretrained(tmp_path / "out", config, params, layout=layout, **arguments)
    assert (case == "sharded") == (len(list(folder.glob("*.safetensors"))) > 1)
    names = sorted(file.name for file in folder.iterdir())
    assert names == sorted(file.name for file in (tmp_path / "out").iterdir())
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name
    if layout == "qwen3":
        tensors = load_file(folder / names[2]) if case != "sharded" else {}
        assert not any(name.endswith("bias") for name in tensors)


def batch_of(tokens):
    return Batch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        loss_weights=np.ones(tokens[:, 1:].shape, np.float32),
        segment_ids=np.ones(tokens[:, 1:].shape, np.int32),
        positions=np.tile(np.arange(tokens.shape[1] - 1, dtype=np.int32)[None], (2, 1)),
    )


def loss_and_gradients(config, params, batch):
    objective = make_objective(config)

    def loss(params):
        sums = objective(params, batch, None)
        return sums.loss_sum / sums.weight_sum

    return jax.device_get(jax.jit(jax.value_and_grad(loss))(params))


# Everything at once.
HARD = dataclasses.replace(
    PLAIN,
    variant=dataclasses.replace(BASE["qwen3"], rope_scaling=YARN, **WINDOW),
    tie_embeddings=True,
    **GROUPED,
)


def test_make_objective_trains_a_qwen3_model_with_its_windows_and_positions(tmp_path):
    save_pretrained(tmp_path / "in", HARD, random_params(HARD), layout="qwen3")
    config, params = load_pretrained(tmp_path / "in")
    tokens = tokens_of(25)
    value, gradients = loss_and_gradients(config, params, batch_of(tokens))
    logits = np.stack([numpy_qwen.logits(tmp_path / "in", each[:-1]) for each in tokens])
    log_z = np.log(np.exp(logits).sum(axis=-1))
    chosen = np.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(value, np.mean(log_z - chosen), rtol=1e-5)
    for name in ("q_norm", "k_norm", "wq", "wk"):
        assert np.all(np.any(getattr(gradients.layers.attention, name), axis=-1)), name


def test_make_objective_has_the_gradients_of_transformers(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    save_pretrained(tmp_path / "in", HARD, random_params(HARD), layout="qwen3")
    config, params = load_pretrained(tmp_path / "in")
    tokens = tokens_of(25)
    value, gradients = loss_and_gradients(config, params, batch_of(tokens))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "in", attn_implementation="eager"
    )
    ids = torch.from_numpy(tokens.astype(np.int64))
    loss = theirs(ids[:, :-1]).logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).mean().neg()
    loss.backward()
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    save_pretrained(tmp_path / "gradients", config, gradients, layout="qwen3")
    ours = load_file(tmp_path / "gradients" / "model.safetensors")
    for name, weight in theirs.named_parameters():
        wanted = weight.grad.numpy()
        # Sums of 48 tokens in another order.
        np.testing.assert_allclose(ours[name], wanted, atol=1e-4 * np.abs(wanted).max())


def test_with_adapters_of_zero_gives_the_logits_of_a_qwen3_base():
    lora, params, tokens = LoRAConfig(rank=2), random_params(HARD), tokens_of(12)
    specs = lora_specs(HARD, lora)
    assert specs.layers.attention.q_norm is None and specs.layers.attention.wq.a.shape == (2, 32, 2)
    adapters = jax.tree.map(lambda spec: np.ones(spec.shape, np.float32) * spec.std, specs)
    adapted = with_adapters(params, adapters, lora)
    ours, base = (forward(each, tokens, config=HARD) for each in (adapted, params))
    np.testing.assert_allclose(ours, base, atol=1e-5)


def test_load_pretrained_reads_a_qwen3_run_and_shards_it_over_a_mesh(tmp_path):
    params = random_params(HARD)
    save_run(tmp_path / "run", HARD, params)
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    config, loaded = load_pretrained(tmp_path / "run", mesh=mesh)
    assert config == HARD and jax.tree.structure(loaded) == jax.tree.structure(params)
    shardings = sharding_for(param_specs(HARD), mesh)
    for found, want, sharding in zip(
        *map(jax.tree.leaves, (loaded, params, shardings)), strict=True
    ):
        assert found.sharding == sharding and np.array_equal(found, want)


def test_merge_adapters_keeps_the_norms_of_a_qwen3_base():
    lora, params = LoRAConfig(rank=2), random_params(HARD)
    specs = lora_specs(HARD, lora)
    adapters = jax.tree.map(lambda spec: np.ones(spec.shape, np.float32), specs)
    merged = merge_adapters(params, adapters, lora, dtype="float32")
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    changed = {
        path[-1].name
        for path, same in jax.tree_util.tree_leaves_with_path(
            jax.tree.map(lambda a, b: np.array_equal(a, b), merged, params)
        )
        if not same
    }
    assert changed == set(TARGETS)


def test_generate_continues_as_transformers_does(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    save_pretrained(tmp_path / "in", HARD, random_params(HARD), layout="qwen3")
    config, params = load_pretrained(tmp_path / "in")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "in").eval()
    prompts = tokens_of(9)
    settings = {"do_sample": False, "max_new_tokens": 16, "pad_token_id": 0, "eos_token_id": None}
    with torch.no_grad():
        expected = theirs.generate(torch.from_numpy(prompts.astype(np.int64)), **settings)
    ours = generate(params, prompts, config=config, max_new_tokens=16)
    assert [list(map(int, each)) for each in ours] == expected[:, 9:].tolist()


def released(name):
    """Returns the config.json of a released model."""
    common = {
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    }
    qwen3 = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "eos_token_id": 151645,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "num_key_value_heads": 8,
        "rope_scaling": None,
        "sliding_window": None,
    }
    sizes_of = {
        "qwen3-0.6b": (1024, 3072, 28, 16, True),
        "qwen3-8b": (4096, 12288, 36, 32, False),
    }
    hidden, ffn, layers, heads, tied = sizes_of[name]
    return (
        common
        | qwen3
        | {
            "hidden_size": hidden,
            "intermediate_size": ffn,
            "num_hidden_layers": layers,
            "max_window_layers": layers,
            "num_attention_heads": heads,
            "tie_word_embeddings": tied,
        }
    )


@pytest.mark.parametrize("name, total", [("qwen3-0.6b", 596_049_920), ("qwen3-8b", 8_190_735_360)])
def test_model_config_reads_a_released_config(tmp_path, name, total):
    (tmp_path / "config.json").write_text(json.dumps(released(name)))
    config = model_config(str(tmp_path / "config.json"))
    assert count(config) == total
    size = sizes.by_name(name)
    assert dataclasses.replace(size, compute_dtype=config.compute_dtype) == config
    assert model_config(str(tmp_path)) == config and model_config(name) == size
