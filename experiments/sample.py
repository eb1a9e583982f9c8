"""What a model says: continues a prompt, greedily or by drawing.

python -m experiments.sample --model=runs/quickstart --prompt="class Queue(" --temperature=0.7
"""

import dataclasses
import pathlib

from experiments import flags
from qwen_jax.errors import ConfigError
from qwen_jax.export.huggingface import load_pretrained
from qwen_jax.generate.decode import generate
from qwen_jax.tokenizer.bpe import Tokenizer


@dataclasses.dataclass(frozen=True)
class Config:
    """One prompt."""

    model: str = ""  # a run folder, or a folder in the Qwen or Qwen2 layout
    tokenizer: str | None = None  # a .tiktoken file; None: the one in the model's folder
    prompt: str = ""  # empty: the beginning of a document
    max_new_tokens: int = 200
    num_samples: int = 1
    temperature: float = 0.7  # 0: the most probable token, always
    top_p: float = 0.95
    seed: int = 0


def main(config: Config) -> None:
    """Loads, generates, prints."""
    if not config.model:
        raise ConfigError("no model.", "--model", "name a folder; --help shows how.")
    tokenizer = Tokenizer.from_file(config.tokenizer or find_tokenizer(config.model))
    model, params = load_pretrained(config.model)
    prompt = tokenizer.encode(config.prompt) or [tokenizer.end_of_text]
    rows = generate(params, [prompt] * config.num_samples, config=model, seed=config.seed,
                    max_new_tokens=config.max_new_tokens, temperature=config.temperature,
                    top_p=config.top_p, stop_ids=[tokenizer.end_of_text],
                    vocab_size=tokenizer.vocab_size)
    for row in rows:
        print(config.prompt + tokenizer.decode(row), end="\n\n")


def find_tokenizer(folder: str) -> pathlib.Path:
    """The one .tiktoken file of a model's folder.

    Raises:
      ConfigError: there is none, or more than one.
    """
    found = sorted(pathlib.Path(folder).glob("*.tiktoken"))
    if len(found) != 1:
        raise ConfigError(f"{len(found)} .tiktoken files in the model's folder.", folder,
                          "name one with --tokenizer.")
    return found[0]


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
