"""The Qwen Technical Report (arXiv 2309.16609) in JAX.

>>> import qwen_jax
>>> config, params = qwen_jax.load_pretrained("path/to/Qwen")
>>> tokenizer = qwen_jax.load_tokenizer("path/to/Qwen")
>>> ids = qwen_jax.generate(params, tokenizer.encode("Once"), config=config, max_new_tokens=50)

The names below are imported on first use, which keeps `import qwen_jax` fast.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"  # setup.py reads it here

if TYPE_CHECKING:
    from qwen_jax import sizes as sizes
    from qwen_jax.config import ModelConfig as ModelConfig
    from qwen_jax.inference.decode import generate as generate
    from qwen_jax.kernels.attention import attention as attention
    from qwen_jax.model.transformer import forward as forward
    from qwen_jax.pretrained.huggingface import load_pretrained as load_pretrained
    from qwen_jax.pretrained.huggingface import save_pretrained as save_pretrained
    from qwen_jax.tokenizer.bpe import Tokenizer as Tokenizer
    from qwen_jax.tokenizer.load import load_tokenizer as load_tokenizer

_MODULES = {
    "ModelConfig": "config",
    "Tokenizer": "tokenizer.bpe",
    "attention": "kernels.attention",
    "forward": "model.transformer",
    "generate": "inference.decode",
    "load_pretrained": "pretrained.huggingface",
    "load_tokenizer": "tokenizer.load",
    "save_pretrained": "pretrained.huggingface",
    "sizes": "sizes",
}
__all__ = sorted(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]  (names are declared above)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'qwen_jax' has no attribute {name!r}")
    module = importlib.import_module(f"qwen_jax.{_MODULES[name]}")
    value = module if name == _MODULES[name] else getattr(module, name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(set(globals()) | set(_MODULES))
