"""The model of an agent on our engine."""

import dataclasses
from collections.abc import Sequence

from qwen_jax.agent.events import Reply
from qwen_jax.agent.messages import parse
from qwen_jax.agent.models.protocol import Messages, Replying
from qwen_jax.inference.engine import Engine
from qwen_jax.inference.request import Request
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.dialects.select import dialect_of, with_tools
from qwen_jax.tokenizer.template import tokens as template

_END_OF_CALL = "</tool_call>"


class EngineModel:
    """A model on our engine.

    Args:
      sampling: of every reply; the seed of reply i is `seed + i`. Its max_new_tokens is ignored,
        since the budgets of the loop limit tokens.
      parallel: whether a reply may have several calls (Hermes only; a reply of ReAct stops before
        the first observation).

    Raises:
      TokenizerError: the chat template has no tools, or calls them in an unknown dialect.
    """

    feedback_role = "tool"

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        sampling: SamplingParams,
        *,
        parallel: bool = True,
    ):
        tokenizer = with_tools(tokenizer)
        self.dialect = dialect_of(tokenizer.settings)
        self._engine, self._tokenizer = engine, tokenizer
        stops = (*self.dialect.stops, *sampling.stop)
        if self.dialect.name == "hermes":
            # The role of results is a user's, but some models write the results themselves.
            stops += ("<tool_response>",) if parallel else ("<tool_response>", _END_OF_CALL)
        self._sampling = dataclasses.replace(
            sampling.with_stop_ids(template.stop_ids(tokenizer)), stop=stops
        )

    def room(self, messages: Messages, tools: Messages) -> int:
        """Returns how many tokens fit after the prompt."""
        return self._engine.max_model_len - len(self._prompt(messages, tools))

    def reply(self, messages: Messages, tools: Messages, *, max_tokens: int, turn: int) -> Replying:
        """Samples a reply; see Model."""
        prompt = self._prompt(messages, tools)
        seed = (self._sampling.seed + turn) % 2**32
        sampling = dataclasses.replace(self._sampling, max_new_tokens=max_tokens, seed=seed)
        (request_id,) = self._engine.submit(Request(tuple(prompt), sampling))
        texts, tokens, finish, seen = [], [], None, 0
        try:
            while finish is None:
                for event in self._engine.step():
                    if event.request_id != request_id:
                        continue
                    if event.token is not None:
                        tokens.append(event.token)
                    finish = event.finish
                    texts.append(event.text)
                # Also without text, so that the loop can stop a reply that has none yet.
                new = "".join(texts[seen:])
                seen = len(texts)
                yield new
        finally:
            if finish is None:
                self._engine.cancel(request_id)
                while self._engine.busy:
                    self._engine.step()
        content = "".join(texts)
        if content.rfind("<tool_call>") > content.rfind(_END_OF_CALL) and finish == "stop":
            if _END_OF_CALL in sampling.stop and self._stopped_at_end_of_call(tokens):
                content += _END_OF_CALL
        assert finish is not None
        _, parsed = parse(self.dialect, content)
        return Reply(content, parsed, tuple(tokens), len(tokens), finish, len(prompt))

    def _prompt(self, messages: Messages, tools: Messages) -> list[int]:
        return template.prompt(self._tokenizer, messages, tools).tolist()

    def _stopped_at_end_of_call(self, tokens: Sequence[int]) -> bool:
        return _END_OF_CALL in self._tokenizer.decode(tokens[-32:])
