"""load_pretrained and save_pretrained: the same bits both ways, and the original's logits."""

import dataclasses
import json
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qwen_jax import sizes
from qwen_jax.attention_config import AttentionVariant
from qwen_jax.config import ContextExtension, MeshConfig
from qwen_jax.errors import CheckpointError, ConfigError, ShardingError
from qwen_jax.model import transformer
from qwen_jax.model.spec import param_specs
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.parallel.sharding import sharding_for
from qwen_jax.pretrained.config_json import write_config
from qwen_jax.pretrained.huggingface import load_pretrained, save_pretrained
from qwen_jax.pretrained.layouts import LAYOUTS
from qwen_jax.types import Params
from qwen_jax.utils.files import write_json

QWEN = sizes.TINY
# Every dimension differs, heads are grouped, and heads times head size is not the hidden size.
GROUPED = dataclasses.replace(
    sizes.TINY,
    num_kv_heads=2,
    head_size=10,
    rope_base=1e6,
    extension=ContextExtension(False, False),
)
TIED = dataclasses.replace(
    sizes.TINY, tie_embeddings=True, extension=ContextExtension(False, False)
)


forward = jax.jit(transformer.forward, static_argnames="config")


def random_params(config, dtype="float32") -> Params:
    """Distinct values everywhere, also in biases and norms, to detect any mix-up."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda spec: jax.device_put(rng.normal(size=spec.shape, scale=0.5).astype(dtype)),
        param_specs(config),
    )


def assert_same_bits(left: Params, right: Params) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def tensors_of(folder) -> dict[str, np.ndarray]:
    return {
        name: array
        for file in folder.glob("*.safetensors")
        for name, array in load_file(file).items()
    }


def edit_config(folder, **changes) -> None:
    """Changes keys of config.json; the value ... removes a key."""
    file = folder / "config.json"
    raw = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}))


def released_folder(folder, layout, config, *, shards=3) -> dict[str, np.ndarray]:
    """Writes a random checkpoint in several files with safetensors; returns its tensors."""
    rng, tensors = np.random.default_rng(1), {}
    for group in layout.groups(param_specs(config)):
        for name in group.names():
            tensors[name] = rng.normal(size=group.shape()).astype(ml_dtypes.bfloat16)
    folder.mkdir()
    names, weight_map = list(tensors), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        in_shard = names[shard::shards]  # puts the tensors of a layer in different files
        save_file({name: tensors[name] for name in in_shard}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(in_shard, file)
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    write_json(
        folder / "config.json", write_config(config, layout, dtype="bfloat16", end_of_text=None)
    )
    return tensors


@pytest.fixture
def qwen2_folder(tmp_path):
    save_pretrained(tmp_path / "qwen2", GROUPED, random_params(GROUPED), layout="qwen2")
    return tmp_path / "qwen2"


@pytest.fixture(scope="module")
def original(shared):
    return shared / "reference" / "qwen1_tiny"


def test_load_pretrained_reads_the_original_tiny_checkpoint(original):
    config, params = load_pretrained(original)
    assert (config.vocab_size, config.hidden_size, config.num_layers) == (512, 64, 3)
    assert config.ffn_size == 176, "intermediate_size is twice the width"
    assert config.context_length == 32 and config.extension == ContextExtension()
    assert config.param_dtype == config.compute_dtype == "float32"
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("length", [7, 32])
def test_load_pretrained_gives_the_logits_of_the_original_code(original, length):
    config, params = load_pretrained(original)
    expected = np.load(original / "expected.npz")
    logits = forward(params, expected[f"ids_{length}"].astype(np.int32), config=config)
    np.testing.assert_allclose(logits, expected[f"logits_{length}"], rtol=0, atol=2e-4)


def test_save_pretrained_qwen_to_qwen2_to_qwen_keeps_all_bits(original, tmp_path):
    config, params = load_pretrained(original)
    save_pretrained(tmp_path / "two", config, params, layout="qwen2")
    _, through_qwen2 = load_pretrained(tmp_path / "two")
    save_pretrained(tmp_path / "one", config, through_qwen2, layout="qwen")
    before, after = tensors_of(original), tensors_of(tmp_path / "one")
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    assert load_pretrained(tmp_path / "one")[0] == config


def test_save_pretrained_splits_qkv_and_names_gate_and_up_for_qwen2(original, tmp_path):
    config, params = load_pretrained(original)
    save_pretrained(tmp_path / "two", config, params, layout="qwen2")
    one, two = tensors_of(original), tensors_of(tmp_path / "two")
    fused, block = one["transformer.h.1.attn.c_attn.weight"], "model.layers.1."
    for start, name in ((0, "q"), (64, "k"), (128, "v")):
        assert np.array_equal(
            two[f"{block}self_attn.{name}_proj.weight"], fused[start : start + 64]
        )
    assert np.array_equal(two[block + "mlp.gate_proj.weight"], one["transformer.h.1.mlp.w2.weight"])
    assert np.array_equal(two[block + "mlp.up_proj.weight"], one["transformer.h.1.mlp.w1.weight"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "config, layout", [(QWEN, "qwen"), (QWEN, "qwen2"), (GROUPED, "qwen2"), (TIED, "qwen2")]
)
def test_load_pretrained_inverts_save_pretrained(tmp_path, config, layout, dtype):
    params = random_params(config, dtype)
    save_pretrained(tmp_path / "out", config, params, layout=layout)
    loaded_config, loaded = load_pretrained(tmp_path / "out")
    assert_same_bits(loaded, params)
    want = dataclasses.replace(config, param_dtype=dtype, compute_dtype=dtype)
    if layout == "qwen2":  # which has neither
        want = dataclasses.replace(want, extension=ContextExtension(False, False))
    assert loaded_config == want


def test_save_pretrained_keeps_the_bits_of_nan_and_negative_zero(tmp_path):
    params = random_params(QWEN, "bfloat16")
    odd = np.array(params.final_norm)
    odd[:4] = np.array([np.nan, -0.0, np.inf, 1e-40], ml_dtypes.bfloat16)
    params = params.replace(final_norm=jax.device_put(odd))
    save_pretrained(tmp_path / "out", QWEN, params, allow_nonfinite=True)
    assert_same_bits(load_pretrained(tmp_path / "out", allow_nonfinite=True)[1], params)


def test_write_tensors_aligns_the_data_to_8_bytes(tmp_path):
    save_pretrained(tmp_path / "out", QWEN, random_params(QWEN))
    with open(tmp_path / "out" / "model.safetensors", "rb") as file:
        assert int.from_bytes(file.read(8), "little") % 8 == 0


def test_save_pretrained_in_shards_writes_an_index_and_keeps_all_bits(tmp_path):
    params = random_params(QWEN)
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    save_pretrained(tmp_path / "out", QWEN, params, max_shard_size=total * 2 // 5)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {
        f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)
    }
    assert index["metadata"]["total_size"] == total
    assert_same_bits(load_pretrained(tmp_path / "out")[1], params)


@pytest.mark.parametrize(
    "layout, config, mesh",
    [
        (LAYOUTS["qwen"], QWEN, None),
        (LAYOUTS["qwen"], QWEN, MeshConfig(fsdp=8)),
        (LAYOUTS["qwen2"], GROUPED, MeshConfig(data=2, fsdp=2, tensor=2)),
        (LAYOUTS["qwen2"], TIED, MeshConfig(fsdp=4, tensor=2)),
    ],
)
def test_save_pretrained_reproduces_a_checkpoint_in_3_shards(tmp_path, layout, config, mesh):
    before = released_folder(tmp_path / "in", layout, config)
    mesh = mesh and make_mesh(mesh)
    read, params = load_pretrained(tmp_path / "in", mesh=mesh)
    if mesh is not None:
        assert params.embed.sharding == sharding_for(param_specs(config), mesh).embed
    size, written = sum(tensor.nbytes for tensor in before.values()), []
    save_pretrained(
        tmp_path / "out",
        read,
        params,
        layout=layout.model_type,
        max_shard_size=size * 2 // 5,
        progress=written.append,
    )
    after = tensors_of(tmp_path / "out")
    assert before.keys() == after.keys() and sum(written) == size
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype and after[name].shape == tensor.shape
        assert after[name].tobytes() == tensor.tobytes(), name
    assert len(list((tmp_path / "out").glob("model-*-of-00003.safetensors"))) == 3
    old, new = (json.loads((tmp_path / side / "config.json").read_text()) for side in ("in", "out"))
    assert old == new


def test_load_pretrained_rejects_a_bad_mesh_and_a_mesh_with_shardings(qwen2_folder):
    with pytest.raises(
        ShardingError, match="layers.attention.wk: kv_heads of size 2 over tensor of size 4"
    ):
        load_pretrained(qwen2_folder, mesh=make_mesh(MeshConfig(tensor=4)))
    with pytest.raises(ConfigError, match="both a mesh and shardings"):
        load_pretrained(qwen2_folder, mesh=make_mesh(), shardings=param_specs(GROUPED))


def test_load_pretrained_in_small_chunks_gives_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr("qwen_jax.pretrained.released._CHUNK_BYTES", 300)
    monkeypatch.setattr("qwen_jax.pretrained.export.write._CHUNK_BYTES", 700)
    before = released_folder(tmp_path / "in", LAYOUTS["qwen2"], GROUPED)
    config, params = load_pretrained(tmp_path / "in", mesh=make_mesh(MeshConfig(data=4, fsdp=2)))
    save_pretrained(tmp_path / "out", config, params, layout="qwen2")
    after = tensors_of(tmp_path / "out")
    assert all(after[name].tobytes() == before[name].tobytes() for name in before)


@pytest.mark.parametrize("layout", ["qwen", "qwen2"])
def test_save_pretrained_warns_that_layer_wise_windows_are_lost(tmp_path, monkeypatch, layout):
    warnings = []
    monkeypatch.setattr(
        "absl.logging.warning", lambda text, *values: warnings.append(text % values)
    )
    config = dataclasses.replace(QWEN, extension=ContextExtension(windows=(8, 16)))
    save_pretrained(tmp_path / "out", config, random_params(config), layout=layout)
    assert len(warnings) == 1 and "layer-wise windows" in warnings[0]
    assert warnings[0].endswith("beyond 16 tokens.")
    assert ("dynamic NTK and no LogN" in warnings[0]) == (layout == "qwen2")


def test_param_dtype_casts_when_loading_and_saving(tmp_path):
    params = random_params(QWEN)
    half = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params)
    save_pretrained(tmp_path / "out", QWEN, params, param_dtype="bfloat16")
    config, loaded = load_pretrained(tmp_path / "out")
    assert_same_bits(loaded, half)
    config, loaded = load_pretrained(tmp_path / "out", param_dtype="float32")
    assert (config.param_dtype, config.compute_dtype) == ("float32", "bfloat16")
    assert_same_bits(loaded, jax.tree.map(lambda leaf: leaf.astype("float32"), half))


def test_save_pretrained_rejects_a_cast_that_overflows(tmp_path):
    params = random_params(QWEN).replace(final_norm=jax.numpy.full((32,), 1e5, "float32"))
    with pytest.raises(CheckpointError, match="transformer.ln_f.weight.*beyond the range"):
        save_pretrained(tmp_path / "out", QWEN, params, param_dtype="float16")
    assert list(tmp_path.iterdir()) == [], "a failed export leaves no files"


def test_load_pretrained_loads_each_weight_onto_its_sharding(tmp_path):
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    params = random_params(QWEN)
    save_pretrained(tmp_path / "out", QWEN, params)
    mesh = Mesh(np.array(jax.devices()[:2]), ("x",))
    last_axis = jax.tree.map(
        lambda spec: NamedSharding(mesh, PartitionSpec(*[None] * (len(spec.shape) - 1), "x")),
        param_specs(QWEN),
    )
    _, loaded = load_pretrained(tmp_path / "out", shardings=last_axis)
    assert_same_bits(loaded, params)
    for leaf, sharding in zip(jax.tree.leaves(loaded), jax.tree.leaves(last_axis), strict=True):
        assert leaf.sharding == sharding
    save_pretrained(tmp_path / "again", QWEN, loaded)
    assert_same_bits(load_pretrained(tmp_path / "again")[1], params)


def test_load_pretrained_reads_the_config_keys_of_the_first_release(tmp_path):
    save_pretrained(tmp_path / "out", QWEN, random_params(QWEN))
    edit_config(
        tmp_path / "out",
        hidden_size=...,
        n_embd=32,
        num_hidden_layers=...,
        n_layer=2,
        num_attention_heads=...,
        n_head=4,
        intermediate_size=...,
        ffn_hidden_size=96,
        vocab_size=100,
        padded_vocab_size=128,
        max_position_embeddings=...,
        n_positions=6144,
        pos_emb="rotary",
        resid_pdrop=0.1,
        model_type=...,
    )
    config, _ = load_pretrained(tmp_path / "out")
    assert config == QWEN


LFS_POINTER = "version https://git-lfs.github.com/spec/v1\n"


@pytest.mark.parametrize(
    "model_type, reason",
    [
        ("qwen3_next", "not attention layers"),
        ("qwen3_moe", "experts"),
        ("qwen2_moe", "experts"),
        ("llama", "no QKV bias"),
        ("qwen2_vl", "images"),
        ("gemma", "Known: qwen, qwen2, qwen3"),
        ("qwen3_5_text", "is not supported.*use a dense checkpoint"),
        ("qwen9", "is not supported.*use a dense checkpoint"),
    ],
)
def test_load_pretrained_rejects_another_model_type_with_the_reason(
    qwen2_folder, model_type, reason
):
    edit_config(qwen2_folder, model_type=model_type)
    with pytest.raises(ConfigError, match=f"(?s)'{model_type}'.*{reason}"):
        load_pretrained(qwen2_folder)


def test_load_pretrained_rejects_qwen_vl(tmp_path):
    save_pretrained(tmp_path / "out", QWEN, random_params(QWEN))
    edit_config(tmp_path / "out", visual={"width": 1664})
    with pytest.raises(ConfigError, match="Qwen-VL, which takes images"):
        load_pretrained(tmp_path / "out")


def test_load_pretrained_lists_all_unsupported_features(qwen2_folder):
    edit_config(
        qwen2_folder,
        rope_scaling={"type": "longrope", "factor": 4.0},
        num_experts=8,
        quantization_config={"quant_method": "gptq"},
        final_logit_softcapping=30.0,
        layer_types=["full_attention", "linear_attention"],
    )
    with pytest.raises(ConfigError) as error:
        load_pretrained(qwen2_folder)
    for name in (
        "scaled rotary positions with rope_type='longrope'",
        "num_experts=8 (unknown)",
        "gptq",
        "quantized weights (GPTQ, AWQ, ...) are not supported",
        "final_logit_softcapping=30.0",
        "linear_attention",
    ):
        assert name in error.value.what


def test_load_pretrained_reads_plain_rotary_settings_of_transformers_5(qwen2_folder):
    edit_config(
        qwen2_folder, rope_theta=..., rope_parameters={"rope_type": "default", "rope_theta": 5e5}
    )
    assert load_pretrained(qwen2_folder)[0].rope_base == 5e5


def test_load_pretrained_lists_missing_config_keys(qwen2_folder):
    edit_config(qwen2_folder, rms_norm_eps=..., num_key_value_heads=..., rope_theta=...)
    with pytest.raises(ConfigError, match="num_key_value_heads, rope_theta, rms_norm_eps"):
        load_pretrained(qwen2_folder)


def test_load_pretrained_lists_all_bad_tensors(qwen2_folder):
    tensors = load_file(qwen2_folder / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["model.layers.0.self_attn.q_norm.weight"] = np.ones(10, np.float32)
    tensors["model.layers.0.rotary_emb.inv_freq"] = np.ones(5, np.float32)  # harmless, old
    tensors["model.layers.1.mlp.down_proj.weight"] = np.zeros((32, 47), np.float32)
    tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((48, 32), np.int8)
    save_file(tensors, qwen2_folder / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_pretrained(qwen2_folder)
    for part in (
        "4 wrong tensors",
        "model.norm.weight is missing",
        "q_norm.weight is not part",
        "down_proj.weight has shape [32, 47], not [32, 48]",
        "up_proj.weight is I8",
    ):
        assert part in error.value.what
    assert "inv_freq" not in error.value.what


def test_load_pretrained_requires_a_tied_head_to_equal_the_embedding(tmp_path):
    save_pretrained(tmp_path / "out", TIED, random_params(TIED), layout="qwen2")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}, file)
    assert load_pretrained(tmp_path / "out")[1].head is None
    other = tensors["model.embed_tokens.weight"].copy()
    other[100, 3] += 1
    save_file(tensors | {"lm_head.weight": other}, file)
    with pytest.raises(CheckpointError, match="lm_head.weight differs"):
        load_pretrained(tmp_path / "out")


def test_load_pretrained_reads_mixed_dtypes_as_float32(tmp_path):
    save_pretrained(tmp_path / "out", QWEN, random_params(QWEN, "bfloat16"))
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    tensors["transformer.ln_f.weight"] = np.linspace(0, 1, 32, dtype=np.float32)
    save_file(tensors, file)
    config, params = load_pretrained(tmp_path / "out")
    assert config.param_dtype == "float32"
    assert np.array_equal(params.final_norm, tensors["transformer.ln_f.weight"])


def test_load_pretrained_names_damaged_and_missing_files(tmp_path):
    save_pretrained(tmp_path / "out", QWEN, random_params(QWEN), max_shard_size=40_000)
    first, second, *_ = sorted((tmp_path / "out").glob("model-*"))
    first.write_bytes(first.read_bytes()[:-1])
    second.unlink()
    with pytest.raises(CheckpointError) as error:
        load_pretrained(tmp_path / "out")
    assert f"{first.name} is corrupted" in error.value.what
    assert f"{second.name} is missing" in error.value.what


def test_load_pretrained_names_pointers_of_git_lfs(tmp_path):
    save_pretrained(tmp_path / "out", QWEN, random_params(QWEN))
    for name in ("model.safetensors", "config.json"):  # the latter is read first
        (tmp_path / "out" / name).write_text(f"{LFS_POINTER}oid sha256:0\nsize 9\n")
        with pytest.raises(CheckpointError, match=f"{name} is a pointer of Git LFS") as error:
            load_pretrained(tmp_path / "out")
        assert "git lfs pull" in error.value.fix


def test_load_pretrained_says_that_gguf_is_not_read(tmp_path):
    save_pretrained(tmp_path / "out", QWEN, random_params(QWEN))
    (tmp_path / "out" / "model.safetensors").rename(tmp_path / "out" / "model-q8.gguf")
    with pytest.raises(CheckpointError, match=r"only model-q8.gguf\.\n") as error:
        load_pretrained(tmp_path / "out")
    assert "GGUF is not read" in error.value.fix


def test_load_pretrained_explains_folders_without_weights_or_config(tmp_path):
    with pytest.raises(CheckpointError, match="folder does not exist"):
        load_pretrained("no/such/Qwen-7B")
    with pytest.raises(CheckpointError, match="config.json not found"):
        load_pretrained(tmp_path)
    save_pretrained(tmp_path / "out", QWEN, random_params(QWEN))
    (tmp_path / "out" / "model.safetensors").rename(tmp_path / "out" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="only pytorch_model.bin") as error:
        load_pretrained(tmp_path / "out")
    assert "execute arbitrary code" in error.value.what and "weights_only=True" in error.value.fix


def test_load_pretrained_suggests_a_command_that_converts_pickled_weights(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    params = random_params(TIED)
    save_pretrained(tmp_path / "out", TIED, params, layout="qwen2")
    tensors = {
        name: torch.from_numpy(array) for name, array in tensors_of(tmp_path / "out").items()
    }
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]  # shared memory
    torch.save(tensors, tmp_path / "out" / "pytorch_model-00001-of-00001.bin")
    (tmp_path / "out" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError) as error:
        load_pretrained(tmp_path / "out")
    command = error.value.fix.splitlines()[1].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True, cwd=tmp_path / "out")
    assert_same_bits(load_pretrained(tmp_path / "out")[1], params)


def test_save_pretrained_rejects_what_the_qwen_layout_cannot_express(tmp_path):
    config = dataclasses.replace(GROUPED, tie_embeddings=True)
    with pytest.raises(ConfigError) as error:
        save_pretrained(tmp_path / "out", config, random_params(config), layout="qwen")
    for part in ("num_kv_heads=2", "tie_embeddings", "head_size = 40"):
        assert part in error.value.what
    assert "qwen2" in error.value.fix
    with pytest.raises(ConfigError, match="qkv_bias=True; variant.qk_norm=False"):
        save_pretrained(tmp_path / "out", QWEN, random_params(QWEN), layout="qwen3")
    for changes in ({"qk_norm": True}, {"qkv_bias": False}):
        config = dataclasses.replace(QWEN, variant=AttentionVariant(**changes))
        with pytest.raises(ConfigError, match="(?s)variant.*keep the run folder"):
            save_pretrained(tmp_path / "out", config, random_params(config), layout="qwen2")


def test_save_pretrained_lists_weights_that_do_not_fit_the_config(tmp_path):
    params = random_params(QWEN)
    config = dataclasses.replace(QWEN, vocab_size=256)
    with pytest.raises(CheckpointError) as error:
        save_pretrained(tmp_path / "out", config, params)
    assert "params.embed has shape [128, 32], not [256, 32]" in error.value.what
    assert "params.head has shape [32, 128]" in error.value.what
    with pytest.raises(CheckpointError, match=r"params.head is not in the config"):
        save_pretrained(tmp_path / "out", TIED, params, layout="qwen2")
    with pytest.raises(ConfigError, match="(?s)'qwen4'.*did you mean"):
        save_pretrained(tmp_path / "out", QWEN, params, layout="qwen4")


def test_save_pretrained_replaces_only_an_earlier_export(tmp_path):
    save_pretrained(tmp_path / "out", QWEN, random_params(QWEN), max_shard_size=40_000)
    newer = jax.tree.map(lambda leaf: leaf * np.float32(2), random_params(QWEN))
    save_pretrained(tmp_path / "out", QWEN, newer)
    assert_same_bits(load_pretrained(tmp_path / "out")[1], newer)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="thesis.tex"):
        save_pretrained(tmp_path / "out", QWEN, newer)
    (tmp_path / "out" / "thesis.tex").unlink()
    save_file(
        load_file(tmp_path / "out" / "model.safetensors"), tmp_path / "out" / "model.safetensors"
    )  # without our producer mark
    with pytest.raises(
        CheckpointError, match="not an export by qwen_jax: it contains model.safetensors"
    ):
        save_pretrained(tmp_path / "out", QWEN, newer)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_save_pretrained_keeps_the_earlier_export_on_failure(tmp_path, monkeypatch, error):
    params = random_params(QWEN)
    save_pretrained(tmp_path / "out", QWEN, params)

    def write_some(folder, tensors, **unused):
        (folder / "model.safetensors").write_bytes(b"some")
        raise error

    monkeypatch.setattr("qwen_jax.pretrained.export.write.write_tensors", write_some)
    newer = jax.tree.map(lambda leaf: leaf * np.float32(2), params)
    with pytest.raises(CheckpointError if isinstance(error, OSError) else KeyboardInterrupt):
        save_pretrained(tmp_path / "out", QWEN, newer)
    assert_same_bits(load_pretrained(tmp_path / "out")[1], params)
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


def test_save_pretrained_checks_the_disk_space_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(CheckpointError, match="needs .* MB, 0.0 MB are free"):
        save_pretrained(tmp_path / "out", QWEN, random_params(QWEN))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("config", [QWEN, GROUPED, TIED], ids=["plain", "grouped", "tied"])
def test_load_pretrained_and_transformers_read_each_others_config(tmp_path, config):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    save_pretrained(tmp_path / "out", config, random_params(config), layout="qwen2")
    theirs = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert theirs.model_type == "qwen2" and theirs.num_key_value_heads == config.kv_heads
    assert theirs.intermediate_size == config.ffn_size and theirs.rms_norm_eps == 1e-6
    theirs.save_pretrained(tmp_path / "out")  # overwrites config.json in their format
    want = dataclasses.replace(config, extension=ContextExtension(False, False))
    assert load_pretrained(tmp_path / "out")[0] == want


@pytest.mark.parametrize("config", [QWEN, GROUPED, TIED], ids=["plain", "grouped", "tied"])
def test_save_pretrained_gives_transformers_our_logits(tmp_path, config):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    params = random_params(config)
    save_pretrained(tmp_path / "out", config, params, layout="qwen2")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert theirs.dtype == torch.float32
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (2, config.context_length))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    assert np.std(expected) > 0.5, "the logits must be far from constant"
    logits = forward(params, tokens.astype(np.int32), config=config)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-4)


def test_save_pretrained_gives_transformers_the_original_logits(original, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config, params = load_pretrained(original)
    save_pretrained(tmp_path / "out", config, params, layout="qwen2")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    expected = np.load(original / "expected.npz")
    for length in (7, 32):
        with torch.no_grad():
            logits = theirs(torch.from_numpy(expected[f"ids_{length}"])).logits.numpy()
        np.testing.assert_allclose(logits, expected[f"logits_{length}"], rtol=0, atol=2e-4)
