"""What a config.json of a folder may not have, and what it may have without any effect.

`transformers` ignores keys that it does not know, and people's tools leave their own in the file
(unsloth_fixed). So only keys that are known to change the math of some model are refused.
"""

import functools
import re
from collections.abc import Iterable

from absl import logging

# Similar models that are not supported, and why.
REFUSED = {
    "qwen2_moe": "its MLPs are mixtures of experts",
    "qwen3_moe": "its MLPs are mixtures of experts",
    "qwen3_next": "most of its layers are not attention layers",
    "qwen3_5": "most of its layers are not attention layers",
    "qwen3_5_moe": "most of its layers are not attention layers",
    "qwen2_vl": "it takes images",
    "qwen2_5_vl": "it takes images",
    "qwen3_vl": "it takes images",
    "qwen3_vl_moe": "it takes images, and its MLPs are mixtures of experts",
    "qwen2_audio": "it takes audio",
    "qwen2_5_omni": "it takes images and audio",
    "qwen3_omni_moe": "it takes images and audio, and its MLPs are mixtures of experts",
    "llama": "it has no QKV bias and a different tokenizer",
    "mistral": "it has no QKV bias and uses a sliding window",
    "mixtral": "its MLPs are mixtures of experts",
}

# Why settings that need unsupported features are rejected.
REASONS = {
    "quantization_config": "quantized weights (GPTQ, AWQ, ...) are not supported; use the "
    "checkpoint before quantization",
    "visual": "this is Qwen-VL, which takes images",
    "audio": "this is Qwen-Audio, which takes audio",
}

# Keys of any config.json of transformers that do not change a decoder: names and versions, special
# tokens, what a call returns, and settings of generation.
UNRELATED = frozenset(
    """
    _attn_implementation _commit_hash _name_or_path add_cross_attention architectures auto_map
    bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward
    cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype
    early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty
    finetuning_task forced_bos_token_id forced_eos_token_id id2label is_decoder is_encoder_decoder
    label2id length_penalty max_length max_new_tokens min_length model_type name_or_path
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions
    output_hidden_states output_scores pad_token_id prefix problem_type pruned_heads
    remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id
    suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder
    tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p use_bfloat16
    use_cache
    """.split()
)

# Words in the names of settings that change a decoder: of models with experts, images or audio, of
# layers without attention, of scaled embeddings, logits and residuals, of other norms, positions,
# heads and biases, and of quantized weights.
_CHANGES_THE_MODEL = re.compile(
    r"expert|moe|router|sparse|vision|visual|image|video|audio|speech|text_config|thinker|talker"
    r"|^linear_|full_attention_interval|mamba|ssm|conv_|recurrent"
    r"|multiplier|scaling|scale_|_scale|softcap|clip_qkv|^mup_|query_pre_attn"
    r"|qk_norm|layernorm|layer_norm|norm_type|^use_norm|post_norm|sandwich"
    r"|alibi|rope|rotary|position_embedding_type|no_rope"
    r"|lora_rank|latent|_gate$|gating|sink|parallel_residual|mtp|nextn|shared_layers|kv_shared"
    r"|_bias$|bias_|hidden_act|activation|attn_window|attention_chunk|dual_chunk|quantiz|bits$"
)


def changes_the_model(key: str) -> bool:
    """Returns whether an unknown key of config.json names something that changes the math."""
    return _CHANGES_THE_MODEL.search(key) is not None


def warn_of_unknown(keys: Iterable[str], where: str) -> None:
    """Warns once per folder of keys that are ignored here, as they are in transformers."""
    if names := tuple(sorted(keys)):
        _warn(names, where)


@functools.cache
def _warn(names: tuple[str, ...], where: str) -> None:
    shown = ", ".join(name[:60] for name in names[:20])
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    logging.warning("%s has unknown settings, which have no effect: %s%s.", where, shown, more)
