"""experiments.convert: all directions keep all bits, and a difference is located."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments import convert
from qwen_jax import sizes
from qwen_jax.attention_config import AttentionVariant, RopeScaling
from qwen_jax.cli import flags
from qwen_jax.config import ContextExtension
from qwen_jax.errors import CheckpointError, ConfigError, TokenizerError
from qwen_jax.model.spec import param_specs
from qwen_jax.model.transformer import forward
from qwen_jax.pretrained.export import verify
from qwen_jax.pretrained.from_run import save_run
from qwen_jax.pretrained.huggingface import load_pretrained, save_pretrained
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.load import load_tokenizer
from qwen_jax.train.attempts.carried import read_released

CONFIG = dataclasses.replace(sizes.TINY, vocab_size=512, num_layers=3)
GROUPED = dataclasses.replace(
    CONFIG, num_kv_heads=2, rope_base=1e6, extension=ContextExtension(False, False)
)


QWEN3 = dataclasses.replace(
    GROUPED,
    head_size=10,
    tie_embeddings=True,
    variant=AttentionVariant(
        qkv_bias=False, qk_norm=True, rope_scaling=RopeScaling("yarn", 4.0, original_length=8)
    ),
)


def tokenizer() -> Tokenizer:
    return Tokenizer({bytes([byte]): byte for byte in range(256)} | {b"th": 256, b"the": 257})


def write(folder, config, layout) -> dict[str, np.ndarray]:
    """Writes a random model with its tokenizer in 3 files; returns its tensors."""
    params = weights(config)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    save_pretrained(
        folder, config, params, layout=layout, tokenizer=tokenizer(), max_shard_size=size * 2 // 5
    )
    assert len(list(folder.glob("model-*-of-00003.safetensors"))) == 3
    return tensors(folder)


def weights(config):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda spec: rng.normal(size=spec.shape).astype(np.float32), param_specs(config)
    )


def tensors(folder) -> dict[str, np.ndarray]:
    return {
        name: array
        for file in folder.glob("*.safetensors")
        for name, array in load_file(file).items()
    }


def run(source, output, **options) -> None:
    convert.main(convert.Config(input=str(source), output=str(output), **options))


@pytest.mark.parametrize(
    "config, layouts",
    [
        (CONFIG, ("qwen", "run", "qwen2", "qwen")),
        (GROUPED, ("qwen2", "run", None)),
        (QWEN3, ("qwen3", "run", None)),
    ],
)
def test_convert_round_trips_through_a_run_keep_bits_tokenizer_and_config(
    tmp_path, capsys, config, layouts
):
    before = write(tmp_path / "0", config, layouts[0])
    for step, layout in enumerate(layouts[1:], 1):
        run(tmp_path / str(step - 1), tmp_path / str(step), layout=layout)
    first, last = tmp_path / "0", tmp_path / str(len(layouts) - 1)
    after = tensors(last)
    assert before.keys() == after.keys()
    assert all(after[name].tobytes() == before[name].tobytes() for name in before)
    assert load_tokenizer(last).fingerprint == load_tokenizer(first).fingerprint
    # The Qwen2 layout cannot express the context extension, so it is lost.
    lost = (
        {
            "use_dynamic_ntk": False,
            "use_logn_attn": False,
            "max_position_embeddings": CONFIG.context_length,
        }
        if "qwen" in layouts
        else {}
    )
    assert json.loads((last / "config.json").read_text()) == (
        json.loads((first / "config.json").read_text()) | lost
    )
    output = capsys.readouterr().out
    for part in ("GB free", "vocabulary of", "converting: 100%"):
        assert part in output


@pytest.mark.parametrize("stage, ends", [("pretrain", False), ("sft", True), ("dpo", True)])
def test_convert_of_a_model_trained_to_chat_ends_completions_with_its_turns(
    tmp_path, stage, ends, capsys
):
    own, base = tokenizer(), tmp_path / "base"
    released = b'{"eos_token_id": %d,  "top_k": 20, "do_sample": true}\n' % own.end_of_text
    write(base, GROUPED, "qwen2")
    (base / "generation_config.json").write_bytes(released)
    config, params = load_pretrained(base)
    save_run(tmp_path / "run", config, params, tokenizer=own, released=read_released(base))
    raw = json.loads((tmp_path / "run/config.json").read_text())
    raw |= {"training_stage": stage}
    (tmp_path / "run/config.json").write_text(json.dumps(raw))
    run(tmp_path / "run", tmp_path / "out", layout="qwen2")
    found = (tmp_path / "out/generation_config.json").read_bytes()
    card, printed = (tmp_path / "out/README.md").read_text(), capsys.readouterr().out
    if not ends:
        assert found == released and "<|im_end|>" not in card + printed
        return
    assert json.loads(found) == {
        "eos_token_id": [own.end_of_text, own.im_end], "top_k": 20, "do_sample": True
    }  # fmt: skip
    sentence = f"{own.im_end} (<|im_end|>) also ends a completion"
    assert sentence in card and sentence in printed
    run(tmp_path / "out", tmp_path / "again", layout="run")  # what has it already is kept
    run(tmp_path / "again", tmp_path / "out2", layout="qwen2")
    assert (tmp_path / "out2/generation_config.json").read_bytes() == found


def test_convert_applies_dtype_and_max_shard_size(tmp_path):
    write(tmp_path / "in", CONFIG, "qwen")
    run(tmp_path / "in", tmp_path / "out", layout="qwen2", dtype="bfloat16", max_shard_size="50KB")
    assert {str(tensor.dtype) for tensor in tensors(tmp_path / "out").values()} == {"bfloat16"}
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    for ours, theirs in zip(
        *(jax.tree.leaves(load_pretrained(tmp_path / side)[1]) for side in ("in", "out")),
        strict=True,
    ):
        assert np.array_equal(ours.astype("bfloat16"), theirs)


def test_convert_rejects_the_impossible_before_writing(tmp_path, monkeypatch):
    write(tmp_path / "in", GROUPED, "qwen2")
    with pytest.raises(ConfigError, match="set both"):
        convert.main(convert.Config(input="x"))
    with pytest.raises(ConfigError, match="max_shard_size"):
        run(tmp_path / "in", tmp_path / "out", max_shard_size="0GB")
    with pytest.raises(ConfigError, match="num_kv_heads=2"):
        run(tmp_path / "in", tmp_path / "out", layout="qwen")
    other = dataclasses.replace(CONFIG, num_layers=1, variant=AttentionVariant(qk_norm=True))
    save_run(tmp_path / "run", other, weights(other))
    with pytest.raises(ConfigError, match="(?s)qwen3 lacks variant.qkv_bias=True.*--layout=run"):
        run(tmp_path / "run", tmp_path / "out")
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.tex").write_text("years of work")
    for layout in ("run", "qwen2"):
        with pytest.raises(CheckpointError, match="not empty|thesis.tex"):
            run(tmp_path / "in", tmp_path / "used", layout=layout)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    for layout in ("run", "qwen2"):
        with pytest.raises(CheckpointError, match="is free"):
            run(tmp_path / "in", tmp_path / "out", layout=layout)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "used"]


def test_verify_without_its_packages_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ConfigError, match=r"(?s)torch.*qwen_jax\[verify\]"):
        run(tmp_path, tmp_path / "out", verify=True)


def test_verify_locates_a_difference_and_exits_with_code_1(tmp_path, monkeypatch, capsys):
    """Uses a fake transformers; test_verify_agrees_with_transformers uses the real one."""
    write(tmp_path / "in", GROUPED, "qwen2")

    def their_logits(folder, tokens):
        config, params = load_pretrained(folder)
        logits = np.array(forward(params, tokens, config=config))
        logits[1, 5, 77] += 3
        return logits

    monkeypatch.setattr(verify, "require", lambda: None)
    monkeypatch.setattr(verify, "_their_logits", their_logits)
    with pytest.raises(SystemExit) as error:
        flags.run(
            convert.main,
            "",
            {"default": convert.Config()},
            argv=[
                "convert",
                f"--input={tmp_path / 'in'}",
                f"--output={tmp_path / 'out'}",
                "--verify",
            ],
        )
    output = capsys.readouterr()
    assert error.value.code == 1
    assert "largest difference 3.00e+00" in output.out
    assert "sequence 1, position 5, token 77" in output.out
    assert "the logits differ by 3.00e+00" in output.err


def test_difference_with_nan_does_not_agree():
    fine = verify.Difference(
        worst=1e-4,
        largest=1.0,
        sequence=0,
        position=0,
        token=0,
        ours=0.0,
        theirs=0.0,
        same_argmax=1.0,
    )
    assert fine.agrees
    assert not dataclasses.replace(fine, worst=float("nan")).agrees
    assert not dataclasses.replace(fine, worst=1.1e-3).agrees


@pytest.mark.parametrize(
    "source, layout, dtype",
    [
        ("qwen", "qwen2", "bfloat16"),
        ("qwen2", "run", None),
        ("qwen2", "run", "bfloat16"),
        ("qwen3", None, "bfloat16"),
        ("qwen3", "run", None),
    ],
)
def test_verify_agrees_with_transformers(tmp_path, capsys, source, layout, dtype):
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    write(tmp_path / "in", QWEN3 if source == "qwen3" else CONFIG, source)
    run(tmp_path / "in", tmp_path / "out", layout=layout, dtype=dtype, verify=True)
    assert "same argmax at 100.0 % of positions" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_verify_compares_templates_and_greedy_text_and_finds_a_difference(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="torch is not installed")
    write(tmp_path / "in", GROUPED, "qwen2")
    folder = tmp_path / "in"
    assert verify.compare_templates(folder) == 6
    config, params = load_pretrained(folder)
    text = verify.compare_greedy(config, params, folder, tokenizer())
    # The first token and the rest differ for other weights.
    other = dataclasses.replace(params, embed=params.embed[::-1])
    with pytest.raises(CheckpointError, match="transformers decodes"):
        verify.compare_greedy(config, other, folder, tokenizer())
    assert verify.compare_greedy(config, params, folder, tokenizer()) == text
    monkeypatch.setattr(Tokenizer, "apply_chat_template", lambda *_, **__: "other text")
    with pytest.raises(TokenizerError, match="'other text'"):
        verify.compare_templates(folder)


def test_former_flag_max_shard_gb_is_read_in_gb(tmp_path):
    _, config = flags.parse("", {"default": convert.Config()}, ["convert", "--max_shard_gb=2.5"])
    assert config.max_shard_size == "2.5"
