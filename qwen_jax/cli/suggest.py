"""The flag that somebody meant: of an unknown name, the closest one that exists.

Names that other trainers have for a setting come first; then names are compared without their
section, because the section is the part that is easily right (model.) or forgotten.
"""

import difflib
from collections.abc import Iterable

from qwen_jax.errors import ConfigError, QwenJaxError, unknown_name

# Last part of a name elsewhere (transformers, TRL, Megatron, nanoGPT, lm-eval) -> here.
_ELSEWHERE = {
    "context_length": "max_seq_len max_seq_length seq_len seq_length max_position_embeddings "
    "block_size max_length model_max_length n_ctx context",
    "max_length": "max_seq_len max_model_len context context_length",
    "peak_learning_rate": "lr learning_rate max_lr peak_lr",
    "num_steps": "steps max_steps train_iters max_iters total_steps",
    "warmup_steps": "warmup warmup_iters",
    "batch_size": "per_device_train_batch_size global_batch_size batchsize bs",
    "micro_batches": "gradient_accumulation_steps grad_accum accumulation_steps",
    "num_layers": "n_layers n_layer layers num_hidden_layers",
    "num_heads": "n_heads n_head heads num_attention_heads",
    "num_kv_heads": "n_kv_heads num_key_value_heads kv_heads",
    "hidden_size": "d_model n_embd dim hidden hidden_dim",
    "ffn_size": "d_ff intermediate_size ffn_hidden_size",
    "compute_dtype": "dtype precision bf16 torch_dtype",
    "clip_norm": "max_grad_norm grad_clip clip",
    "beta1": "adam_beta1",
    "beta2": "adam_beta2",
    "save_every": "save_steps save_interval checkpoint_every",
    "eval_every": "eval_steps eval_interval",
    "log_every": "logging_steps log_interval",
    "run_dir": "output_dir out_dir output",
    "output": "output_dir output_path out_dir",
    "wandb_project": "wandb",
    "init_from": "model_name_or_path resume pretrained",
    "checkpoint": "model model_name_or_path pretrained ckpt",
    "tasks": "task",
    "sources": "path dataset dataset_name data_path train_data",
    "samples": "n n_samples num_samples num_return_sequences",
    "temperature": "temp",
    "max_new_tokens": "max_tokens max_gen_toks",
}


_FIRST = ("model", "train", "optimizer")  # sections that a name without one is looked for in


def closest(name: str, known: Iterable[str]) -> str | None:
    """Returns the flag that `name` most probably means, or None if none is close.

    Example:
      >>> closest("model.max_seq_len", ["model.context_length", "model.head_size"])
      'model.context_length'
    """
    flags = sorted(known, key=lambda flag: (flag.partition(".")[0] not in _FIRST, flag))
    section, _, leaf = name[:100].rpartition(".")
    if exact := [flag for flag in flags if flag.rpartition(".")[2] == leaf]:
        return max(exact, key=lambda flag: _alike(section, flag.rpartition(".")[0]))
    for here, elsewhere in _ELSEWHERE.items():
        if leaf.lower() in elsewhere.split():
            same = [flag for flag in flags if flag.rpartition(".")[2] == here]
            if same:
                return max(same, key=lambda flag: _alike(section, flag.rpartition(".")[0]))
    found = max(flags, key=lambda flag: _likeness(section, leaf, flag), default=None)
    return found if found and _likeness(section, leaf, found) >= 0.62 else None


def unknown_flag(kind: str, name: str, known: Iterable[str], where: str) -> QwenJaxError:
    """Returns the error for an unknown flag or setting; suggests one, or lists all."""
    known = list(known)
    if (near := closest(name, known)) is None:
        return unknown_name(kind, name, known, where)
    shown = name if len(name) <= 100 else f"{name[:100]}..."
    listed = "--help lists all." if kind == "flag" else f"Known: {', '.join(sorted(known))}."
    return ConfigError(f"unknown {kind} {shown!r}.", where, f"did you mean {near!r}? {listed}")


def _likeness(section: str, leaf: str, flag: str) -> float:
    """How much a flag's name is like the unknown one, up to 1; the section counts little."""
    own_section, _, own_leaf = flag.rpartition(".")
    return 0.8 * _alike(leaf, own_leaf) + 0.2 * _alike(section, own_section)


def _alike(first: str, second: str) -> float:
    if not first and not second:
        return 1.0
    return difflib.SequenceMatcher(None, first.lower(), second.lower(), autojunk=False).ratio()
