"""A run or released folder -> the released Qwen layout, or the Qwen2 one `transformers` reads.

python -m experiments.export --input=runs/mine --output=exported --layout=qwen2 \\
    --tokenizer=data/mine/tokenizer.tiktoken
"""

import dataclasses
from typing import Literal

from experiments import flags
from qwen_jax.errors import ConfigError
from qwen_jax.export.huggingface import load_pretrained, save_pretrained
from qwen_jax.tokenizer.bpe import Tokenizer


@dataclasses.dataclass(frozen=True)
class Config:
    """One export."""

    input: str = ""  # a run folder, or a folder in either layout
    output: str = ""  # a new or empty folder, or an earlier export, which is replaced
    layout: Literal["qwen", "qwen2"] = "qwen2"  # qwen keeps dynamic NTK and LogN
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"  # report 2.4
    tokenizer: str | None = None  # the .tiktoken file; None: weights alone


def main(config: Config) -> None:
    """Loads, casts, writes; reads nothing but the weights of the newest good checkpoint."""
    if not config.input or not config.output:
        raise ConfigError("nothing to read, or nowhere to write.", "--input, --output",
                          "name both; --help shows how.")
    model, params = load_pretrained(config.input)
    tokenizer = Tokenizer.from_file(config.tokenizer) if config.tokenizer else None
    save_pretrained(config.output, model, params, layout=config.layout, tokenizer=tokenizer,
                    param_dtype=config.dtype)
    print(f"{config.output}: {config.layout} layout, {config.dtype}")


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
