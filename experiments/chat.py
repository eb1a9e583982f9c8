"""Chat with a model in the terminal.

python -m experiments.chat --checkpoint=runs/mine
python -m experiments.chat --checkpoint=runs/base --no_chat_template   # a base model

Ctrl-C stops a response. At the prompt, Ctrl-C twice or Ctrl-D exits. /help lists the commands.
When the context is full, the oldest turns are dropped. The first prompt appears after the model has
been compiled; compiled programs are kept in ~/.cache/qwen_jax for the next start. A message that
needs another program says so.
"""

import dataclasses
from typing import Any

from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.errors import ConfigError
from qwen_jax.inference import chat
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.inference.terminal import Conversation
from qwen_jax.inference.warmup import mesh_of, start_engine
from qwen_jax.pretrained.from_run import training_stage
from qwen_jax.pretrained.load import load_model
from qwen_jax.ranges import ONE_OR_MORE, Checked, limits_of
from qwen_jax.tokenizer import generation_config
from qwen_jax.tokenizer.settings import Settings
from qwen_jax.tokenizer.template.tokens import (
    VARIABLES_HELP,
    check_variables,
    parse_variables,
    prompt,
)

_OURS = {"temperature": 0.7, "top_k": None, "top_p": 0.8, "repetition_penalty": 1.0}


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """The model and its sampling settings."""

    checkpoint: str = option(
        "", "model to load: a run folder, or a released dense Qwen to Qwen3", kind="stored"
    )
    tokenizer: str | None = option(None, "folder or file; None: the one in the model's folder")
    allow_nonfinite: bool = option(False, "accept weights with NaN or infinity")
    no_chat_template: bool = option(
        False, "continue the text as it is, without ChatML (for base models)", alias="plain"
    )
    system: str | None = option(
        None,
        "text of the system message; None: that of the chat template",
        empty=True,
        kind="text",
    )
    chat_template_kwargs: str | None = option(None, VARIABLES_HELP, kind="text")
    max_new_tokens: int = option(
        512, "maximum tokens in a response", limits_of(SamplingParams, "max_new_tokens")
    )
    temperature: float | None = option(
        None,
        "sampling temperature, which divides the logits; 0: greedy decoding; None: that of "
        "generation_config.json, or 0.7",
        limits_of(SamplingParams, "temperature"),
    )
    top_k: int | None = option(
        None,
        "sample only from the k most probable tokens; None: that of generation_config.json, or all",
        limits_of(SamplingParams, "top_k"),
    )
    top_p: float | None = option(
        None,
        "nucleus sampling: probability mass to sample from; None: that of "
        "generation_config.json, or 0.8",
        limits_of(SamplingParams, "top_p"),
    )
    repetition_penalty: float | None = option(
        None,
        "penalty for tokens seen before; above 1: they become less probable; None: that of "
        "generation_config.json, or 1",
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

    def __post_init__(self):
        super().__post_init__()
        if self.no_chat_template and (self.system or self.chat_template_kwargs):
            raise ConfigError(
                "without a chat template there are neither a system message nor variables.",
                "--no_chat_template",
                "omit it, or --system and --chat_template_kwargs.",
            )
        _ = self.variables  # they are checked
        self.sampling(Settings())

    @property
    def variables(self) -> dict[str, Any]:
        """The variables of the chat template."""
        return parse_variables(self.chat_template_kwargs, "--chat_template_kwargs")

    def sampling(self, settings: Settings) -> tuple[SamplingParams, str]:
        """Returns the sampling parameters, and a phrase that says which ones are the model's.

        Args:
          settings: of the tokenizer, with the model's generation_config.json.
        """
        fields = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed")
        given = {name: getattr(self, name) for name in fields}
        found, said = generation_config.resolve(settings, given, _OURS)
        return SamplingParams.named("--{}", **found), said


def main(config: Config) -> None:
    """Loads the model and runs the conversation."""
    mesh = mesh_of(config.tensor)
    model, params, tokenizer = load_model(
        config.checkpoint, config.tokenizer, mesh=mesh, allow_nonfinite=config.allow_nonfinite
    )
    sampling, said = config.sampling(tokenizer.settings)
    check_variables(tokenizer, config.variables)
    context, sentence = chat.context(model, config.context)
    longest = min(sampling.max_new_tokens, context // 2)
    system = [] if config.system is None else [("system", config.system)]
    length = 1
    if not config.no_chat_template:
        length = len(prompt(tokenizer, [*system, ("user", "Hello")], **config.variables))
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
        system=config.system,
        template=not config.no_chat_template,
        variables=config.variables,
    )
    if not config.no_chat_template and training_stage(config.checkpoint) == "pretrain":
        print("note: this run is a base model, which continues text: use --no_chat_template.")
    if said:
        print(f"sampling: {said}")
    print(f"context: {sentence}; up to {longest} tokens per response. Type /help for commands.")
    conversation.run()


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
