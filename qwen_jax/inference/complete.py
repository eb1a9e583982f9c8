"""Completes prompts and conversations with the engine.

If a conversation ends with an assistant turn, the model continues that turn after its last
character.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from qwen_jax.data.chat.conversations import Turn
from qwen_jax.inference.engine import Engine
from qwen_jax.inference.request import Completion, Request
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.template import tokens as template


class Completer:
    """Completes conversations, rendered by the chat template of the tokenizer.

    Args:
      engine: the generation engine. Its batch size does not affect the completions.
      sampling: the sampling parameters of every completion, except the seed, which is set per
        conversation. A conversation that leaves no room for max_new_tokens is skipped.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, sampling: SamplingParams):
        self._engine, self._tokenizer = engine, tokenizer
        self._sampling = sampling.with_stop_ids(template.stop_ids(tokenizer))

    def stream(
        self, conversations: Sequence[Sequence[Turn]], seeds: Sequence[int]
    ) -> Iterator[tuple[int, Completion | None]]:
        """Yields (index, completion) pairs as they finish; None if max_new_tokens does not fit.

        Raises:
          TokenizerError: a conversation is malformed.
        """
        indices = {}
        for index, (conversation, seed) in enumerate(zip(conversations, seeds, strict=True)):
            tokens = self._prompt(conversation)
            if len(tokens) + self._sampling.max_new_tokens > self._engine.max_model_len:
                yield index, None
                continue
            sampling = dataclasses.replace(self._sampling, seed=seed)
            (request_id,) = self._engine.submit(Request(tuple(tokens), sampling))
            indices[request_id] = index
        parts = {request_id: ([], []) for request_id in indices}
        while parts:
            for event in self._engine.step():
                tokens, texts = parts[event.request_id]
                texts.append(event.text)
                tokens += [event.token] * (event.token is not None)
                if event.finish is not None:
                    del parts[event.request_id]
                    yield (
                        indices[event.request_id],
                        Completion(tuple(tokens), "".join(texts), None, event.finish),
                    )

    def texts(self, conversations: Sequence[Sequence[Turn]]) -> list[str | None]:
        """Returns the texts of the completions, in order, all sampled with seed 0."""
        found = dict(self.stream(conversations, [0] * len(conversations)))
        completions = [found[index] for index in range(len(conversations))]
        return [None if completion is None else completion.text for completion in completions]

    def _prompt(self, conversation: Sequence[Turn]) -> list[int]:
        prefix = ""  # the start of the assistant turn, which the model continues
        if conversation and conversation[-1][0] == "assistant":
            *conversation, (_, prefix) = conversation
        tokens = template.prompt(self._tokenizer, conversation).tolist()
        return [*tokens, *self._tokenizer.encode(prefix)]


def continuations(
    engine: Engine, tokenizer: Tokenizer, prompt: str, sampling: SamplingParams
) -> list[str]:
    """Returns n continuations of a plain prompt; an empty prompt starts a document."""
    request = Request(
        tuple(tokenizer.encode(prompt)) or (tokenizer.end_of_text,),
        sampling.with_stop_ids(template.text_stop_ids(tokenizer)),
    )
    return [completion.text for completion in engine.run([request])]
