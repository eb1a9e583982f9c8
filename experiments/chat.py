"""A conversation with a model in the terminal.

python -m experiments.chat --checkpoint=runs/mine
python -m experiments.chat --checkpoint=runs/base --plain   # a model that was not taught ChatML

Ctrl-C stops an answer; at the prompt, two of them or Ctrl-D end the program. /help lists commands.
The oldest turns make room for new ones. The first prompt appears once the model is compiled.
"""

import dataclasses

from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.inference import chat
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.inference.terminal import Conversation
from qwen_jax.inference.warmup import mesh_of, start_engine
from qwen_jax.pretrained.load import load_model
from qwen_jax.tokenizer import chatml


@dataclasses.dataclass(frozen=True)
class Config:
    """How answers are made."""

    checkpoint: str = option("", "a run folder, or a folder in the Qwen or Qwen2 layout")
    tokenizer: str | None = option(None, "a .tiktoken file; None: the one in the model's folder")
    plain: bool = option(False, "continue the text as it stands, without ChatML")
    system: str = option(chatml.DEFAULT_SYSTEM, "what the model is told first")
    max_new_tokens: int = option(512, "the longest answer")
    temperature: float = option(0.7, "0: the most probable token, always")
    top_k: int | None = option(None, "draw from the k most probable tokens alone")
    top_p: float = option(0.8, "the released chat models'")
    repetition_penalty: float = option(1.0, "above 1: what was said becomes less probable")
    seed: int = option(0, "of the first answer; each has the next one")
    context: int | None = option(
        None, "tokens of prompt and answer; None: as far as it makes sense"
    )
    cache_dtype: str | None = option(None, "of keys and values; None: the compute dtype")
    tensor: int = option(1, "devices that the weights and the cache are cut over")

    @property
    def sampling(self) -> SamplingParams:
        """The flags of an answer, checked."""
        fields = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed")
        return SamplingParams.named("--{}", **{name: getattr(self, name) for name in fields})


def main(config: Config) -> None:
    """Loads, then question and answer in turn."""
    sampling = config.sampling  # a flag out of its range is named before the model is read
    mesh = mesh_of(config.tensor)
    model, params, tokenizer = load_model(config.checkpoint, config.tokenizer, mesh=mesh)
    context, sentence = chat.context(model, config.context)
    longest = min(sampling.max_new_tokens, context // 2)
    engine = start_engine(
        params,
        model,
        tokenizer,
        max_num_seqs=1,
        context=context,
        cache_dtype=config.cache_dtype,
        mesh=mesh,
    )
    conversation = Conversation(
        engine,
        tokenizer,
        dataclasses.replace(sampling, max_new_tokens=longest),
        context=context,
        system=None if config.plain else config.system,
    )
    print(f"context: {sentence}; up to {longest} of them an answer. /help for help")
    conversation.run()


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
