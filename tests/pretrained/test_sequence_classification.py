"""Reward models as transformers' ForSequenceClassification with one label, out and in."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments import convert
from qwen_jax import sizes
from qwen_jax.attention_config import AttentionVariant, ContextExtension
from qwen_jax.checkpoint.checkpointer import Checkpointer
from qwen_jax.errors import CheckpointError, ConfigError
from qwen_jax.model.value_head import scores, scoring_specs
from qwen_jax.pretrained.huggingface import load_pretrained
from qwen_jax.pretrained.scoring import open_scoring
from qwen_jax.pretrained.start import adopt, is_scoring_run, scoring_weights_of
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.carry import save_tokenizer
from qwen_jax.train.run_folder import Identity
from qwen_jax.types import TrainState

BYTES = Tokenizer({bytes([byte]): byte for byte in range(256)})
QWEN2 = dataclasses.replace(
    sizes.TINY, vocab_size=464, num_kv_heads=2, extension=ContextExtension(False, False)
)
QWEN3 = dataclasses.replace(
    QWEN2, head_size=10, variant=AttentionVariant(qkv_bias=False, qk_norm=True), tie_embeddings=True
)
CASES = {"Qwen2": QWEN2, "Qwen3": QWEN3}


def reward_run(folder, config):
    """Writes a reward model run with its tokenizer; returns its weights."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda spec: 0.4 * rng.standard_normal(spec.shape, np.float32), scoring_specs(config)
    )
    folder.mkdir()
    record = Identity("reward_model", "params")._asdict() | {"model": dataclasses.asdict(config)}
    (folder / "config.json").write_text(json.dumps(record))
    save_tokenizer(folder, BYTES)
    checkpoints = Checkpointer(folder / "checkpoints", keep=1)
    checkpoints.save(1, TrainState(step=np.int32(1), params=params, opt_state=()), {})
    checkpoints.close()
    return params


def exported(tmp_path, case):
    params = reward_run(tmp_path / "run", CASES[case])
    convert.main(convert.Config(input=str(tmp_path / "run"), output=str(tmp_path / "out")))
    return params, tmp_path / "out"


@pytest.mark.parametrize("case", CASES)
def test_a_reward_model_comes_in_again_bit_for_bit(tmp_path, case):
    params, out = exported(tmp_path, case)
    raw = json.loads((out / "config.json").read_text())
    assert raw["architectures"] == [f"{case}ForSequenceClassification"]
    assert raw["id2label"] == {"0": "LABEL_0"} and raw["pad_token_id"] == BYTES.end_of_text
    assert not (out / "generation_config.json").exists()
    assert load_file(out / "model.safetensors")["score.weight"].shape == (1, 32)
    assert is_scoring_run(str(out))
    assert adopt(CASES[case], str(out)) == CASES[case]
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
        ),
        params,
    )
    found = scoring_weights_of(str(out), seed=0)(abstract)
    for a, b in zip(*map(jax.tree.leaves, (found, params)), strict=True):
        assert np.array_equal(a, b)
    # And out once more, without a run.
    convert.main(convert.Config(input=str(out), output=str(tmp_path / "again")))
    files = [folder / "model.safetensors" for folder in (out, tmp_path / "again")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert (out / "config.json").read_bytes() == (tmp_path / "again" / "config.json").read_bytes()


@pytest.mark.parametrize("case", CASES)
def test_transformers_gives_our_scores_of_padded_texts(tmp_path, case):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers")
    params, out = exported(tmp_path, case)
    tokens = np.random.default_rng(1).integers(0, 256, (3, 9)).astype(np.int32)
    lengths = [9, 5, 7]
    for row, length in zip(tokens, lengths, strict=True):
        row[length - 1], row[length:] = BYTES.im_end, BYTES.end_of_text
    mask = np.arange(9) < np.array(lengths)[:, None]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        out, attn_implementation="eager", dtype=torch.float32
    ).eval()
    assert model.config.num_labels == 1
    with torch.no_grad():
        theirs = model(
            torch.from_numpy(tokens.astype(np.int64)),
            attention_mask=torch.from_numpy(mask.astype(np.int64)),
        ).logits[:, 0]
    ours = scores(params, tokens, mask.astype(np.int32), config=CASES[case])
    ends = np.asarray(ours)[np.arange(3), np.array(lengths) - 1]
    assert np.std(ends) > 0.01
    np.testing.assert_allclose(ends, theirs.numpy(), rtol=0, atol=1e-4)  # sums in another order
    model.save_pretrained(tmp_path / "theirs")  # as transformers writes it
    again = open_scoring(str(tmp_path / "theirs"))
    assert np.array_equal(again.read("score", (slice(0, 32),)), params.score)


def test_a_reward_model_is_no_language_model(tmp_path):
    _, out = exported(tmp_path, "Qwen2")
    with pytest.raises(CheckpointError, match="this is a reward model"):
        load_pretrained(out)
    for layout in ("run", "qwen"):
        with pytest.raises(ConfigError, match="ForSequenceClassification"):
            convert.main(convert.Config(input=str(out), output=str(tmp_path / "x"), layout=layout))
