"""Which tokens of a conversation the assistant wrote: those that training has in the loss.

Each turn of the assistant is trained with its end token, in the place where the model will write
it: after the prompt that the template makes of the messages before it. Three cases, in this order:

    the template marks what is generated     its marks; transformers' {% generation %}
    each prompt is a beginning of the text   one example; the turns go on from their prompts
    otherwise                                one example for each turn, the last one of which is
                                             trained. Qwen3's template leaves out the thoughts of
                                             earlier turns, so a later text is another one.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from qwen_jax.errors import TokenizerError
from qwen_jax.tokenizer import chatml
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.dialects import react
from qwen_jax.tokenizer.template import builtin, jinja
from qwen_jax.tokenizer.template.chat import plain_messages
from qwen_jax.tokenizer.template.tokens import (
    Messages,
    Rendered,
    as_mappings,
    check_variables,
    source_of,
)


class Written(NamedTuple):
    """The tokens of a conversation, and who wrote them."""

    tokens: np.ndarray  # int32 [T]
    writer: np.ndarray  # int32 [T]; index of the assistant's message; -1: not trained
    spans: tuple[chatml.Span, ...] = ()  # of the turns, if the format is the built-in one


class _Span(NamedTuple):
    """text[start:end] was written by a message."""

    start: int
    end: int
    writer: int


def examples(
    tokenizer: Tokenizer,
    messages: Sequence[Any],
    tools: Messages | None = None,
    *,
    trained: Sequence[bool] | None = None,
    **variables: Any,
) -> list[Written]:
    """Returns a conversation as one example, or as one for each turn of the assistant.

    Args:
      messages, tools, variables: as `tokens.prompt` takes them.
      trained: for each message, whether it is trained if it is the assistant's; None: all are.

    Raises:
      TokenizerError: a message is malformed, the template refuses the conversation, or what the
        assistant wrote is not found in its text.
    """
    messages = as_mappings(messages)
    wanted = [
        index
        for index, message in enumerate(messages)
        if message["role"] == "assistant" and (trained is None or trained[index])
    ]
    source = source_of(tokenizer, tools)
    if source is None:
        check_variables(tokenizer, variables)
        return _builtin_examples(tokenizer, messages, tools or (), wanted)
    rendered = Rendered(tokenizer, messages, tools, variables)
    if jinja.compiled(source).has_generation:
        text, spans = _marked(rendered, trained)
        return [_encode(tokenizer, rendered, text, [s for s in spans if s.writer in wanted])]
    whole = rendered.text()
    found = [_turn(rendered, index) for index in wanted]
    if all(
        whole.startswith(text[: span.start])
        and whole[span.start : span.end] == text[span.start : span.end]
        for text, span in found
    ):
        return [_encode(tokenizer, rendered, whole, [span for _, span in found])]
    return [_encode(tokenizer, rendered, text, [span]) for text, span in found]


def response(
    tokenizer: Tokenizer,
    messages: Sequence[Any],
    num_prompt: int,
    tools: Messages | None = None,
    **variables: Any,
) -> Written:
    """Returns a conversation up to the end token of its last turn, which is the assistant's.

    It is always one example: a call of a tool before the last turn is where the whole text has it.

    Args:
      num_prompt: number of messages before the response; none of them is trained.

    Raises:
      TokenizerError: as in `examples`.
    """
    messages = as_mappings(messages)
    wanted = [i for i, m in enumerate(messages) if i >= num_prompt and m["role"] == "assistant"]
    source = source_of(tokenizer, tools)
    if source is None:
        check_variables(tokenizer, variables)
        found = _builtin(tokenizer, messages, tools or (), wanted)
        return _until(found, found.spans[-1].end)
    rendered = Rendered(tokenizer, messages, tools, variables)
    if jinja.compiled(source).has_generation:
        text, spans = _marked(rendered, None)
        spans = [span for span in spans if span.writer in wanted]
    else:
        text = rendered.text()
        spans = [_within(rendered, text, index) for index in wanted]
    if not spans:
        raise TokenizerError(
            "the chat template marks nothing of the response as generated.",
            "chat_template",
            "put what the assistant writes between {% generation %} and {% endgeneration %}.",
        )
    return _encode(tokenizer, rendered, text[: spans[-1].end], spans)


def _turn(rendered: Rendered, index: int) -> tuple[str, _Span]:
    """Returns the text up to a turn of the assistant, which is the last one, and what it wrote."""
    text = rendered.text(index + 1)
    return text, _within(rendered, text, index)


def _within(rendered: Rendered, text: str, index: int) -> _Span:
    """Returns what a message wrote of a text: from the end of its prompt to its end token."""
    prompt = rendered.text(index, add_generation_prompt=True)
    if not text.startswith(prompt):
        raise TokenizerError(
            "the chat template renders a turn in another way than its prompt begins it.",
            "chat_template",
            "check the variables, such as enable_thinking=false next to thoughts.",
        )
    return _Span(len(prompt), rendered.end_of_turn(text, len(prompt)), index)


def _marked(rendered: Rendered, trained: Sequence[bool] | None) -> tuple[str, list[_Span]]:
    """Returns the text, and the spans that the template marks as generated, with their end tokens.

    Raises:
      TokenizerError: some turns are not trained, and the marks are not one for each turn; or a text
        has the characters that mark what is generated.
    """
    text = rendered.text(mark_generated=True)
    plain, spans = "", []
    for number, part in enumerate(text.split(jinja.GENERATED)):
        inner, end, after = part.partition(jinja.END_GENERATED)
        if bool(end) != (number > 0) or jinja.END_GENERATED in after:
            raise TokenizerError(
                "a message has the characters that mark what is generated.",
                "messages",
                "remove U+10FFFC and U+10FFFD, which are for private use.",
            )
        spans += [(len(plain), len(plain) + len(inner))] if end else []
        plain += inner + after
    writers = [i for i, m in enumerate(rendered.messages) if m["role"] == "assistant"]
    if len(spans) != len(writers):
        if trained is not None and not all(trained[index] for index in writers):
            raise TokenizerError(
                f"some turns are not trained, and the template marks {len(spans)} parts as "
                f"generated for {len(writers)} turns.",
                "chat_template",
                "mark each turn once, or train on all turns.",
            )
        writers = [writers[-1]] * len(spans)
    return plain, [
        _Span(start, rendered.with_end(plain, start, end), writer)
        for (start, end), writer in zip(spans, writers, strict=True)
    ]


def _without_observations(rendered: Rendered, text: str, span: _Span) -> list[_Span]:
    """Returns a span without the results of tools in it, if it answers a ReAct prompt."""
    asked = [each for each in rendered.messages[: span.writer] if each["role"] == "user"]
    if not asked or not react.is_prompt(asked[-1].get("content") or ""):
        return [span]
    found, last = [], span.start
    for start, end in react.observations(text[span.start : span.end]):
        found.append(_Span(last, span.start + start, span.writer))
        last = span.start + end
    return [*found, _Span(last, span.end, span.writer)]


def _encode(tokenizer: Tokenizer, rendered: Rendered, text: str, spans: Iterable[_Span]) -> Written:
    """Returns the tokens of a text. One that is partly in a span was written by its message."""
    tokens = np.array(rendered.encode(text), np.int32)
    edges = [
        (rendered.bytes_of(text[: span.start]), rendered.bytes_of(text[: span.end]), span.writer)
        for whole in spans
        for span in _without_observations(rendered, text, whole)
    ]
    return Written(tokens, _writers(tokenizer, tokens, edges))


def _writers(
    tokenizer: Tokenizer, tokens: np.ndarray, edges: Iterable[tuple[int, int, int]]
) -> np.ndarray:
    """Returns the writer of each token, int32 [T].

    Args:
      edges: (first byte, byte behind the last, writer) of each part of the text.
    """
    ends = np.cumsum(tokenizer.token_sizes[tokens])
    starts = ends - tokenizer.token_sizes[tokens]
    writer = np.full(len(tokens), -1, np.int32)
    for first, last, index in edges:
        writer[(starts < last) & (ends > first)] = index
    return writer


def _builtin_examples(
    tokenizer: Tokenizer, messages: Messages, tools: Messages, wanted: Sequence[int]
) -> list[Written]:
    """Returns one example, or one for each question: tools are described with the last one."""
    asked = [index for index, message in enumerate(messages) if message["role"] == "user"]
    if not tools or not asked:
        return [_builtin(tokenizer, messages, tools, wanted)]
    found = []
    for start, end in zip(asked, [*asked[1:], len(messages)], strict=True):
        if answers := [index for index in wanted if start < index < end]:
            found.append(_builtin(tokenizer, messages[:end], tools, answers))
    return found


def _builtin(
    tokenizer: Tokenizer, messages: Messages, tools: Messages, wanted: Sequence[int]
) -> Written:
    turns = builtin.written_turns(plain_messages(messages), tools)
    rendered = chatml.render([(turn.role, turn.content) for turn in turns], tokenizer)
    writer = np.full(len(rendered.tokens), -1, np.int32)
    for turn, span in zip(turns, rendered.spans[-len(turns) :], strict=True):
        edges, text = [], ""
        for part in turn.parts:
            before, text = len(tokenizer.normalized(text).encode("utf-8")), text + part.text
            if part.writer in wanted:
                last = len(tokenizer.normalized(text).encode("utf-8"))
                edges.append((before, last, part.writer))
        inside = slice(span.start, span.end - 1)
        writer[inside] = _writers(tokenizer, rendered.tokens[inside], edges)
        if turn.parts[-1].writer in wanted:
            writer[span.end - 1] = turn.parts[-1].writer  # <|im_end|>
    return Written(rendered.tokens, writer, rendered.spans)


def _until(written: Written, end: int) -> Written:
    return Written(written.tokens[:end], written.writer[:end], written.spans)
