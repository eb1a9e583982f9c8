"""A step of each stage from Qwen2.5 and Qwen3: transformers and peft read what comes out.

The folders are tied, of FP16 and BF16, with a padded and an unpadded vocabulary.
"""

import dataclasses

import jax
import numpy as np
import pytest

from benchmarks.released import checks, folders
from experiments import convert, dpo, ppo, reward_model, sft
from qwen_jax.model.lora import LoRAConfig
from qwen_jax.pretrained.huggingface import load_pretrained
from tests.helpers import released_chat
from tests.helpers.alignment import config_of, run

TIED = {"tie_word_embeddings": True, "hidden_size": 32, "intermediate_size": 48}
MODELS = {
    "Qwen2.5": ("FP16", TIED),
    "Qwen3": ("unpadded", TIED | {"torch_dtype": "bfloat16"}),
}
STAGES = {
    "sft": (sft, {"conversations": "conversations"}, {}),
    "lora": (sft, {"conversations": "conversations"}, {"lora": LoRAConfig(rank=2, alpha=4.0)}),
    "reward_model": (reward_model, {"pairs": "pairs"}, {}),
    "dpo": (dpo, {"pairs": "pairs"}, {}),
    "ppo": (
        ppo,
        {"prompts": "conversations"},
        {"reward_functions": ("qwen_jax.align.rewards:arithmetic",)},
    ),
}
# Keys that transformers' models for classification have.
_LABELS = ("architectures", "id2label", "label2id", "num_labels", "pad_token_id")


@pytest.fixture(scope="module")
def inputs(shared, tmp_path_factory):
    """Family -> its folder, and the folder of data."""
    pytest.importorskip("jinja2", reason="jinja2 is not installed")
    root, ranks = tmp_path_factory.mktemp("stages"), folders.read_ranks(shared, 600)
    for family, (kind, changes) in MODELS.items():
        folders.write(root / family, family, kind, shared, ranks=ranks, changes=changes)
    released_chat.write_data(root / "data")
    return root


def config(stage, family, inputs, run_dir, **train):
    module, data, changes = STAGES[stage]
    files = {key: (f"{inputs}/data/{name}.jsonl",) for key, name in data.items()}
    length = {"max_prompt_tokens": 900} if stage == "ppo" else {"context_length": 1024}
    steps = {"num_steps": 1, "save_every": 1} | train
    if stage != "ppo":
        steps |= {"batch_size": 8, "eval_every": None}
    return config_of(
        module, inputs / "data", run_dir, init_from=str(inputs / family), data=files | length,
        train=steps, optimizer=dataclasses.replace(module.SMOKE.optimizer, warmup_steps=0),
        **changes,
    )  # fmt: skip


def export(run_dir, output, **settings):
    convert.main(convert.Config(input=str(run_dir), output=str(output), **settings))
    return output


@pytest.mark.slow  # ten runs, and transformers
@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("stage", STAGES)
def test_what_a_stage_exports_is_read_by_transformers(inputs, tmp_path, family, stage):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    start, run_dir = inputs / family, tmp_path / "run"
    run(STAGES[stage][0], config(stage, family, inputs, run_dir))
    out = export(run_dir, tmp_path / "out")
    may_change = _LABELS if stage == "reward_model" else ()
    assert checks.compare_files(start, out, may_change) == []
    dtypes = {str(array.dtype) for array in checks.tensors_of(out).values()}
    assert dtypes == {str(array.dtype) for array in checks.tensors_of(start).values()}
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    assert theirs.eos_token == "<|im_end|>" and theirs.pad_token == "<|endoftext|>"
    if stage == "reward_model":
        model = transformers.AutoModelForSequenceClassification.from_pretrained(out)
        assert model.config.num_labels == 1
        with torch.no_grad():
            scores = model.eval()(torch.arange(1, 9)[None]).logits
        assert scores.shape == (1, 1) and torch.isfinite(scores).all()
        return
    checks.as_transformers(out)


@pytest.mark.slow
@pytest.mark.parametrize("family", MODELS)
def test_adapters_are_read_by_peft(inputs, tmp_path, family):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    peft = pytest.importorskip("peft", reason="peft is not installed")
    run(sft, config("lora", family, inputs, tmp_path / "run"))
    adapter = export(tmp_path / "run", tmp_path / "adapter", layout="peft")
    base = transformers.AutoModelForCausalLM.from_pretrained(inputs / family, dtype=torch.float32)
    checks.as_transformers(adapter, peft.PeftModel.from_pretrained(base, adapter))


@pytest.mark.slow
def test_a_qwen3_run_that_is_interrupted_ends_with_the_same_bits(inputs, tmp_path):
    for name, until in (("full", None), ("resumed", "step 1/"), ("resumed", None)):
        made = config("sft", "Qwen3", inputs, tmp_path / name, num_steps=3)
        output = run(sft, made, until=until)
    assert "resuming after step" in output
    full, resumed = (load_pretrained(tmp_path / name)[1] for name in ("full", "resumed"))
    for a, b in zip(jax.tree.leaves(full), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
