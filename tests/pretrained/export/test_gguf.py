"""GGUF: llama.cpp's own script converts our exports, and llama.cpp decodes the same ids.

Needs a checkout of llama.cpp in $LLAMA_CPP, the packages of its script, and llama-cpp-python.
"""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.attention_config import AttentionVariant, ContextExtension
from qwen_jax.inference.decode import generate
from qwen_jax.model.spec import param_specs
from qwen_jax.pretrained.huggingface import load_pretrained, save_pretrained
from qwen_jax.tokenizer.load import load_tokenizer

pytestmark = pytest.mark.slow
QWEN2 = dataclasses.replace(
    sizes.TINY,
    vocab_size=151936,
    hidden_size=64,
    num_kv_heads=2,
    context_length=64,
    extension=ContextExtension(False, False),
)
QWEN3 = dataclasses.replace(
    QWEN2, head_size=32, variant=AttentionVariant(qkv_bias=False, qk_norm=True)
)
CASES = {"qwen2": QWEN2, "qwen3": QWEN3}


@pytest.fixture(params=CASES)
def converted(request, tmp_path, shared):
    """An export with random weights and Qwen's vocabulary, and its GGUF file in float32."""
    pytest.importorskip("gguf", reason="gguf is not installed")
    pytest.importorskip("torch", reason="torch is not installed")
    script = pathlib.Path(os.environ.get("LLAMA_CPP", "")) / "convert_hf_to_gguf.py"
    if not script.is_file():
        pytest.skip("$LLAMA_CPP is not a checkout of llama.cpp")
    rng, config = np.random.default_rng(0), CASES[request.param]
    params = jax.tree.map(
        lambda spec: (0.3 * rng.standard_normal(spec.shape)).astype(np.float32),
        param_specs(config),
    )
    folder, file = tmp_path / "export", tmp_path / "model.gguf"
    tokenizer = load_tokenizer(shared / "reference" / "qwen.tiktoken")
    save_pretrained(folder, config, params, layout=request.param, tokenizer=tokenizer)
    command = [sys.executable, script, folder, "--outfile", file, "--outtype", "f32"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, file


def test_the_gguf_file_has_our_weights_ids_and_settings(converted):
    import gguf

    folder, file = converted
    config, params = load_pretrained(folder)
    reader = gguf.GGUFReader(file)
    tensors = {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}
    assert np.array_equal(tensors["token_embd.weight"], params.embed)
    assert np.array_equal(tensors["blk.1.ffn_up.weight"], params.layers.mlp.w_up[1].T)
    query = np.asarray(params.layers.attention.wq[0]).reshape(config.hidden_size, -1).T
    assert np.array_equal(tensors["blk.0.attn_q.weight"], query)
    name = reader.fields["general.architecture"].contents()
    assert reader.fields[f"{name}.context_length"].contents() == config.context_length
    assert reader.fields[f"{name}.attention.head_count_kv"].contents() == 2
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    tokenizer = load_tokenizer(folder)
    assert len(tokens) == config.vocab_size and tokens[tokenizer.im_end] == "<|im_end|>"
    assert reader.fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer.end_of_text


def test_llama_cpp_decodes_our_greedy_ids(converted):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    folder, file = converted
    config, params = load_pretrained(folder)
    prompt = load_tokenizer(folder).encode("The answer is 通义千问")
    model = llama_cpp.Llama(str(file), n_ctx=64, verbose=False)
    assert model.tokenize("The answer is 通义千问".encode(), add_bos=False) == prompt
    theirs = []
    for token in model.generate(prompt, temp=0.0, repeat_penalty=1.0):
        theirs.append(token)
        if len(theirs) == 16:
            break
    assert generate(params, prompt, config=config, max_new_tokens=16) == theirs
