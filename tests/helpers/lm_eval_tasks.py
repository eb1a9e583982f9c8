"""Tasks of ours for lm-eval, as YAML and JSON files, and a model that transformers reads too."""

import dataclasses
import json
import pathlib
import random

import jax
import jax.numpy as jnp
import numpy as np

from qwen_jax import sizes
from qwen_jax.model.spec import init_params
from qwen_jax.pretrained.huggingface import save_pretrained
from qwen_jax.tokenizer.bpe import Tokenizer

# Merges across boundaries: ":A" is a token, and so are " A" and two letters.
_MERGED = (b":A", b" A", b" B", b"an", b" an", b"th", b"the", b" th", b" the", b"\n\n")
TOKENIZER = Tokenizer(
    {bytes([byte]): byte for byte in range(256)} | {one: 256 + i for i, one in enumerate(_MERGED)}
)
CONTEXT = 192
CONFIG = dataclasses.replace(
    sizes.TINY, vocab_size=480, context_length=CONTEXT, initializer_range=0.3
)
CHOICES = "lm_choices"
TEXTS = "lm_texts"
ANSWERS = "lm_answers"


def write_model(folder: pathlib.Path) -> pathlib.Path:
    """Writes a random model in the Qwen2 layout, which greedily samples ASCII only.

    Special tokens, halves of characters and ids without a token are shown in ways of their own by
    every program.
    """
    params = jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(1))
    head = np.zeros(params.head.shape, np.float32)
    for written in (slice(10, 128), slice(256, 256 + len(_MERGED))):
        head[:, written] = np.asarray(params.head[:, written])
    params = params.replace(head=jnp.asarray(head))
    save_pretrained(folder, CONFIG, params, layout="qwen2", tokenizer=TOKENIZER)
    # Its max_new_tokens would take precedence over the maximum that lm-eval gives transformers.
    settings = json.loads((folder / "generation_config.json").read_text())
    del settings["max_new_tokens"]
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def write_tasks(folder: pathlib.Path, count: int = 12) -> pathlib.Path:
    """Writes one task of each kind of request: choices, whole texts, and completions."""
    rng, words = random.Random(4), "the anthem of another thin path and a theme".split()

    def text(n: int) -> str:
        return " ".join(rng.choice(words) for _ in range(n))

    rows = [
        {
            "question": f"{text(3 + i * 2)}{['', ' ', chr(10)][i % 3]}",
            "choices": [" A", " B", f" {text(2)}", f" {text(4)}."],
            "gold": i % 4,
            "text": text(5 + 17 * i % 90),  # some longer than the context
        }
        for i in range(count)
    ]
    rows[1]["question"] = ""  # no context
    data = folder / "rows.json"
    data.write_text("\n".join(map(json.dumps, rows)))
    head = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "num_fewshot": 0,
    }
    tasks = {
        CHOICES: {
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "gold",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
        TEXTS: {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "word_perplexity"}],
        },
        ANSWERS: {
            "output_type": "generate_until",
            "doc_to_text": "{{text}}:",
            "doc_to_target": "{{gold}}",
            "generation_kwargs": {
                "until": ["the", "\n\n", "a", "b", "c", "0"],
                "max_gen_toks": 12,
                "do_sample": False,
            },
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    for name, task in tasks.items():
        # JSON is YAML.
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **head, **task}))
    return folder
