"""Conversations in, the next answers out: the engine as one function, for data that a model writes.

A conversation that ends with the assistant's turn is one whose answer has begun: the model goes on
from its last character.
"""

from collections.abc import Iterator, Sequence

from qwen_jax.data.chat.conversations import Turn
from qwen_jax.inference.engine import Engine
from qwen_jax.inference.request import Completion, Request
from qwen_jax.tokenizer import chatml
from qwen_jax.tokenizer.bpe import Tokenizer


class Completer:
    """Answers in ChatML.

    Args:
      engine: with room for some conversations at a time; the answers do not depend on how many.
      max_new_tokens: of an answer; a conversation that leaves no room for them is not answered.
      temperature, top_p: of every answer; the seed is each conversation's own.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
    ):
        self._engine, self._tokenizer = engine, tokenizer
        self._settings = {
            "temperature": temperature,
            "top_p": top_p,
            "stop_ids": chatml.stop_ids(tokenizer),
        }
        self._max_new_tokens = max_new_tokens

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
            if len(tokens) + self._max_new_tokens > self._engine.slots:
                yield place, None
                continue
            (request,) = self._engine.submit(
                Request(
                    tuple(tokens), max_new_tokens=self._max_new_tokens, seed=seed, **self._settings
                )
            )
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
        return [None if found[place] is None else found[place].text for place in range(len(talks))]

    def _prompt(self, talk: Sequence[Turn]) -> list[int]:
        begun = ""
        if talk and talk[-1][0] == "assistant":
            *talk, (_, begun) = talk
        return [*chatml.prompt(talk, self._tokenizer).tolist(), *self._tokenizer.encode(begun)]
