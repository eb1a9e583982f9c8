"""Chat with a model in the terminal.

python -m experiments.chat --checkpoint=runs/mine
python -m experiments.chat --checkpoint=runs/base --no_chat_template   # a base model

Ctrl-C stops a response. At the prompt, Ctrl-C twice or Ctrl-D exits. /help lists the commands.
When the context is full, the oldest turns are dropped. The first prompt appears after the model has
been compiled; compiled programs are kept in ~/.cache/qwen_jax for the next start. A message that
needs another program says so.
"""

import dataclasses

from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.inference import chat
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.inference.terminal import Conversation
from qwen_jax.inference.warmup import mesh_of, start_engine
from qwen_jax.pretrained.from_run import training_stage
from qwen_jax.pretrained.load import load_model
from qwen_jax.ranges import ONE_OR_MORE, Checked, limits_of
from qwen_jax.tokenizer import chatml


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """The model and its sampling settings."""

    checkpoint: str = option("", "model to load: a run folder, or a released dense Qwen to Qwen3")
    tokenizer: str | None = option(None, "folder or file of a tokenizer; None: the one in the model's folder")
    allow_nonfinite: bool = option(False, "accept weights with NaN or infinity")
    no_chat_template: bool = option(
        False, "continue the text as it is, without ChatML (for base models)", alias="plain"
    )
    system: str = option(
        chatml.DEFAULT_SYSTEM, "text of the system message", empty=True, kind="text"
    )
    max_new_tokens: int = option(
        512, "maximum tokens in a response", limits_of(SamplingParams, "max_new_tokens")
    )
    temperature: float = option(
        0.7,
        "sampling temperature, which divides the logits; 0: greedy decoding",
        limits_of(SamplingParams, "temperature"),
    )
    top_k: int | None = option(
        None,
        "sample only from the k most probable tokens; None: from all",
        limits_of(SamplingParams, "top_k"),
    )
    top_p: float = option(
        0.8,
        "nucleus sampling: probability mass to sample from (0.8 in the released chat models)",
        limits_of(SamplingParams, "top_p"),
    )
    repetition_penalty: float = option(
        1.0,
        "penalty for tokens seen before; above 1: they become less probable",
        limits_of(SamplingParams, "repetition_penalty"),
    )
    seed: int = option(
        0,
        "random seed for the first response; the next one uses seed + 1",
        limits_of(SamplingParams, "seed"),
    )
    context: int | None = option(
        None,
        "maximum tokens of prompt and response; None: the longest supported",
        ONE_OR_MORE,
    )
    cache_dtype: str | None = option(None, "KV cache dtype; None: the compute dtype")
    tensor: int = option(
        1, "number of devices that weights and KV cache are sharded over", ONE_OR_MORE
    )

    @property
    def sampling(self) -> SamplingParams:
        """The sampling parameters from the flags, validated."""
        fields = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed")
        return SamplingParams.named("--{}", **{name: getattr(self, name) for name in fields})


def main(config: Config) -> None:
    """Loads the model and runs the conversation."""
    sampling = config.sampling  # reports invalid flags before the model is loaded
    mesh = mesh_of(config.tensor)
    model, params, tokenizer = load_model(
        config.checkpoint, config.tokenizer, mesh=mesh, allow_nonfinite=config.allow_nonfinite
    )
    context, sentence = chat.context(model, config.context)
    longest = min(sampling.max_new_tokens, context // 2)
    first = [("system", config.system), ("user", "Hello")]
    length = 1 if config.no_chat_template else len(chatml.prompt(first, tokenizer))
    engine = start_engine(
        params,
        model,
        tokenizer,
        max_num_seqs=1,
        context=context,
        cache_dtype=config.cache_dtype,
        mesh=mesh,
        prompt_lengths=(min(length, context // 2),),  # that of the first message
    )
    conversation = Conversation(
        engine,
        tokenizer,
        dataclasses.replace(sampling, max_new_tokens=longest),
        context=context,
        system=None if config.no_chat_template else config.system,
    )
    if not config.no_chat_template and training_stage(config.checkpoint) == "pretrain":
        print("note: this run is a base model, which continues text: use --no_chat_template.")
    print(f"context: {sentence}; up to {longest} tokens per response. Type /help for commands.")
    conversation.run()


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
