"""Texts and conversations in, what follows out: the engine as one function.

A conversation that ends with the assistant's turn is one whose answer has begun: the model goes on
from its last character.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from qwen_jax.data.chat.conversations import Turn
from qwen_jax.inference.engine import Engine
from qwen_jax.inference.request import Completion, Request
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.tokenizer import chatml
from qwen_jax.tokenizer.bpe import Tokenizer


class Completer:
    """Answers in ChatML.

    Args:
      engine: with room for some conversations at a time; the answers do not depend on how many.
      sampling: of every answer, but for the seed, which is each conversation's own. A conversation
        that leaves no room for max_new_tokens is not answered.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, sampling: SamplingParams):
        self._engine, self._tokenizer = engine, tokenizer
        self._sampling = sampling.also_ending_at(chatml.stop_ids(tokenizer))

    def stream(
        self, talks: Sequence[Sequence[Turn]], seeds: Sequence[int]
    ) -> Iterator[tuple[int, Completion | None]]:
        """(place, answer) as they end; None where fewer than max_new_tokens are left for it.

        Raises:
          TokenizerError: a conversation of another form.
        """
        places = {}
        for place, (talk, seed) in enumerate(zip(talks, seeds, strict=True)):
            tokens = self._prompt(talk)
            if len(tokens) + self._sampling.max_new_tokens > self._engine.slots:
                yield place, None
                continue
            sampling = dataclasses.replace(self._sampling, seed=seed)
            (request,) = self._engine.submit(Request(tuple(tokens), sampling))
            places[request] = place
        parts = {request: ([], []) for request in places}
        while parts:
            for event in self._engine.step():
                tokens, texts = parts[event.request_id]
                texts.append(event.text)
                tokens += [event.token] * (event.token is not None)
                if event.finish is not None:
                    del parts[event.request_id]
                    yield (
                        places[event.request_id],
                        Completion(tuple(tokens), "".join(texts), None, event.finish),
                    )

    def texts(self, talks: Sequence[Sequence[Turn]]) -> list[str | None]:
        """The answers alone, in order, all with seed 0."""
        found = dict(self.stream(talks, [0] * len(talks)))
        answers = [found[place] for place in range(len(talks))]
        return [None if answer is None else answer.text for answer in answers]

    def _prompt(self, talk: Sequence[Turn]) -> list[int]:
        begun = ""
        if talk and talk[-1][0] == "assistant":
            *talk, (_, begun) = talk
        return [*chatml.prompt(talk, self._tokenizer).tolist(), *self._tokenizer.encode(begun)]


def continuations(
    engine: Engine, tokenizer: Tokenizer, prompt: str, sampling: SamplingParams
) -> list[str]:
    """The n texts that follow a prompt as it stands; an empty one is the start of a document."""
    request = Request(
        tuple(tokenizer.encode(prompt)) or (tokenizer.end_of_text,),
        sampling.also_ending_at((tokenizer.end_of_text,)),
    )
    return [answer.text for answer in engine.run([request])]
