"""generation_config.json of a model that was trained to chat: it has to stop where a turn ends."""

import json
import os
import pathlib
from collections.abc import Mapping

from qwen_jax.errors import CheckpointError
from qwen_jax.pretrained.from_run import is_run
from qwen_jax.tokenizer import generation_config
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.template.tokens import source_of
from qwen_jax.train.attempts.carried import GENERATION
from qwen_jax.train.run_folder import identity
from qwen_jax.utils.files import read_json

_CHAT = ("sft", "dpo", "ppo", "grpo")
_NAME = "<|im_end|>"


def with_end_of_turn(
    folder: str | os.PathLike, released: Mapping[str, bytes], tokenizer: Tokenizer | None
) -> tuple[dict[str, bytes], str]:
    """Returns the settings of an export, in which <|im_end|> ends a completion if training says so.

    generation_config.json of a base model has only <|endoftext|>. After a run that trains turns of
    ChatML, `transformers` would generate beyond them.

    Args:
      folder: what is exported, a run or a released folder.
      released: its settings, from read_released.

    Returns:
      The settings, and a sentence about the change; "": there is none.

    Raises:
      CheckpointError, TokenizerError: a file cannot be read.
    """
    unchanged = dict(released), ""
    path = pathlib.Path(folder) / "config.json"
    if tokenizer is None or GENERATION not in released or not path.is_file():
        return unchanged
    raw = read_json(path, error=CheckpointError)
    if not is_run(raw) or identity(raw).training_stage not in _CHAT:
        return unchanged
    end, source = tokenizer.special_tokens.get(_NAME), source_of(tokenizer)
    if end is None or source is not None and _NAME not in source:
        return unchanged
    settings = json.loads(released[GENERATION])
    ids = generation_config.ids_of(settings)
    if end in ids:
        return unchanged
    settings["eos_token_id"] = [*ids, end]
    changed = json.dumps(settings, indent=2, ensure_ascii=False).encode()
    before = ", ".join(map(str, ids)) or "none"
    sentence = (
        f"{GENERATION} is that of the parent, but {end} ({_NAME}) also ends a completion, as in "
        f"the turns that this model was trained on (before: {before})"
    )
    return {**released, GENERATION: changed}, sentence
