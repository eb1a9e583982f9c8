"""A row of a chat file as messages: conversations, prompts and answers, with their context.

This is the one reader of rows. Conversations, preference pairs and prompts all begin with it, so a
system message, tools or earlier turns count in each of them.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from qwen_jax.data.chat.messages import MARKS, Message, read_messages, read_text
from qwen_jax.data.chat.rows import Fields, Skipped, cannot_read, unknown_format
from qwen_jax.tokenizer.template.tokens import reserved

TURN_LISTS = ("messages", "conversations", "conversation")
PROMPTS = ("instruction", "instructions", "question", "query", "problem", "prompt", "input")
ANSWERS = ("completion", "response", "output", "solution", "answer")
_SYSTEMS, _TOOLS, _INPUTS = (
    ("system", "system_prompt", "system_message", "systemPrompt"),
    ("tools", "functions"),
    ("input", "context"),
)
HISTORIES = ("history", "chat_history", "conversation_history", "previous_turns")
_LABELS = ("label", "kto_tag")  # of unpaired preferences: true or false
# What stands for an image in the text of a turn, as in LLaVA or Qwen-VL; not the tag of HTML.
_PLACEHOLDER = re.compile(
    r"(?<!`)<\|?(image)(?:_?\d+|_pad)?\|?>(?!`)|<(img)>[^<]+</img>"
    r"|\A\s*<(video|audio)>|<(video|audio)>\s*\Z"
)
_TRANSCRIPT_TURN = re.compile(r"\n\n(Human|Assistant): ?")
_TRANSCRIPT_ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """Messages and the tools of a row. A system message, if any, is the first."""

    messages: tuple[Message, ...]
    tools: str = ""  # their descriptions, as text or JSON
    # Variables of the chat template, such as enable_thinking; the row's, as in TRL.
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_dialogue(fields: Fields, *, answer: bool) -> Dialogue:
    """Returns the dialogue of a row: earlier turns, the prompt and, if there is one, the answer.

    Args:
      answer: whether to read the answer to a prompt ("output", "completion", ...). The last answer
        in a list of turns is read in any case.

    Raises:
      DataError: the row has an unknown format.
      Skipped: a message is unusable, or the row's parts contradict each other.
    """
    _check_row_mark(fields)
    if answer:
        _check_label(fields)
    turns_key, turns = _read_turns(fields)
    prompt_key, prompt = _read_prompt(fields, ("prompt",) if turns_key else PROMPTS, answer)
    messages = join(prompt, turns)
    finished = bool(messages) and messages[-1].role == "assistant"
    if answer and finished and prompt and not turns:
        messages = _continued(messages, _read_answer(fields))
    elif answer and not finished:
        messages += _read_answer(fields)
    elif answer:
        _check_included(fields, ANSWERS, messages[-1:], turns_key)
    _check_included(fields, (*PROMPTS, *_INPUTS), messages, turns_key or prompt_key)
    return with_context(fields, messages, _read_history(fields))


def check_format(fields: Fields, row: dict[str, Any]) -> None:
    """
    Raises:
      DataError: the row has none of the keys of a conversation or prompt.
    """
    if not any(key in row for key in (*TURN_LISTS, *PROMPTS)):
        raise unknown_format(
            row,
            fields.where,
            "use messages (role, content), conversations (from, value), instruction, input, "
            "output, or prompt and completion; docs/guides/chat_data.md lists all.",
        )


def with_context(
    fields: Fields, messages: Sequence[Message], history: Sequence[Message] = ()
) -> Dialogue:
    """Returns messages with the row's system message and tools, and with the turns before them."""
    system, history = split_system(history)
    inner, messages = split_system(messages)
    context = [
        Message("system", read_text(value, fields, key))
        for key in _SYSTEMS
        if (value := fields.take(key))
    ]
    systems = one_system([*context, *system, *inner])
    tools = {_tools_text(value) for key in _TOOLS if (value := fields.take(key))} - {""}
    if len(tools) > 1:
        raise Skipped("two lists of tools")
    variables = fields.take("chat_template_kwargs") or {}
    if not isinstance(variables, dict):
        raise Skipped("chat_template_kwargs are not an object")
    if names := reserved(variables):
        raise Skipped(f"chat_template_kwargs have {names[0]}, which is no variable")
    found = Dialogue((*systems, *history, *messages), next(iter(tools), ""), variables)
    check_text_only(found.messages)
    return found


def check_text_only(messages: Sequence[Message]) -> None:
    """
    Raises:
      Skipped: a text that the model reads contains the placeholder of an image, a video or audio.
    """
    for message in messages:
        if message.role != "assistant" and (match := _PLACEHOLDER.search(message.text)):
            kind = next(filter(None, match.groups()))
            media = {"video": "videos", "audio": "audio"}.get(kind, "images")
            raise cannot_read(media)


def split_system(messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    """Returns the leading system message, if any, and the other messages."""
    number = 1 if messages and messages[0].role == "system" else 0
    return list(messages[:number]), list(messages[number:])


def one_system(systems: Sequence[Message]) -> list[Message]:
    """Returns the one system message of several equal ones; without any, none.

    Raises:
      Skipped: they differ.
    """
    if len({message.text.strip() for message in systems}) > 1:
        raise Skipped("two system messages that differ")
    return list(systems[:1])


def join(before: Sequence[Message], after: Sequence[Message]) -> list[Message]:
    """Returns two accounts of a dialogue as one. One may be a part of the other, or go on from it.

    Raises:
      Skipped: they contradict each other.
    """
    (first, before), (second, after) = split_system(before), split_system(after)
    systems = one_system([*first, *second])
    if not before or not after:
        return [*systems, *(before or after)]
    seen, following = _seen(before), _seen(after)
    if seen[-len(following) :] == following:
        return [*systems, *before]
    starts = range(len(following) - len(seen) + 1)
    if any(following[start : start + len(seen)] == seen for start in starts):
        return [*systems, *after]
    if after[0].role in ("assistant", "tool") and before[-1].role != after[0].role:
        return [*systems, *before, *after]
    raise Skipped("the prompt and the turns next to it differ")


def _seen(messages: Sequence[Message]) -> list[Message]:
    """Returns messages without the space around their text, for comparison."""
    return [dataclasses.replace(message, text=message.text.strip()) for message in messages]


def read_transcript(text: str) -> list[Message]:
    """Returns the turns of a dialogue in the form of Anthropic's HH: "\\n\\nHuman: ..."."""
    parts = _TRANSCRIPT_TURN.split("\n\n" + text.lstrip())[1:]
    return [
        Message(_TRANSCRIPT_ROLES[role], content.strip())
        for role, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def is_transcript(text: Any) -> bool:
    """Whether a value is a dialogue in the form of Anthropic's HH."""
    return isinstance(text, str) and text.lstrip().startswith("Human:")


def _read_turns(fields: Fields) -> tuple[str | None, list[Message]]:
    """Returns the turns of a row and their key.

    Raises:
      Skipped: another list of turns differs.
    """
    present = fields.untaken(TURN_LISTS) or list(filter(None, [fields.first(TURN_LISTS)]))
    found = [(key, read_messages(fields.take(key), fields, key)) for key in present]
    for key, turns in found[1:]:
        if _seen(turns) != _seen(found[0][1]):
            raise Skipped(f"{found[0][0]} and {key} differ")
    return found[0] if found else (None, [])


def _check_included(
    fields: Fields, keys: Sequence[str], messages: Sequence[Message], source: str | None
) -> None:
    """Checks that keys next to the messages say nothing else than they do.

    A key that the caller has taken, such as a column for a reward function, may say anything.

    Raises:
      Skipped: what a key says is not in the messages. An answer has to be the same, except that
        "answer" may be its result, as in MATH.
    """
    for key in fields.untaken(dict.fromkeys(keys)):
        value, same = fields.take(key), key in ANSWERS and key != "answer"
        items = value if isinstance(value, list) else [value]
        if isinstance(items[0], dict):
            texts = [m.text for m in read_messages(items, fields, key, role="assistant")]
        else:
            texts = list(map(str, items))
        for text in map(str.strip, texts):
            if not any(text == m.text.strip() if same else text in m.text for m in messages):
                raise Skipped(f"{source or 'the turns'} and {key} differ")


def _read_prompt(
    fields: Fields, keys: Sequence[str], answer: bool
) -> tuple[str | None, list[Message]]:
    # Next to an answer, "prompt" often is the instruction with a template around it.
    key = fields.first(keys if answer else ("prompt", *keys))
    if key is None:
        return None, []
    prompt = fields.take(key)
    if isinstance(prompt, list):
        return key, read_messages(prompt, fields, key)
    if not isinstance(prompt, str):
        raise Skipped("a field is not text")
    if is_transcript(prompt) and prompt.rstrip().endswith("\n\nAssistant:"):
        return key, read_transcript(prompt)[:-1]
    texts = [prompt, *(fields.take(name) for name in _INPUTS if name != key)]
    texts = [text for text in texts if text]
    if not all(isinstance(text, str) for text in texts):
        raise Skipped("a field is not text")
    return key, [Message("user", "\n".join(texts))]


def _read_answer(fields: Fields) -> list[Message]:
    present = [key for key in ANSWERS if key in fields]
    if len(present) > 1 and present != ["solution", "answer"]:  # as in MATH: the result, once more
        raise Skipped(f"several answers: {', '.join(present)}")
    if not present:
        return []
    answer = fields.take(present[0])
    if isinstance(answer, str):
        return [Message("assistant", answer)]
    if not isinstance(answer, (list, dict)):
        raise Skipped("a field is not text")
    items = answer if isinstance(answer, list) else [answer]
    return read_messages(items, fields, present[0], role="assistant")


def _continued(messages: list[Message], answer: list[Message]) -> list[Message]:
    """Returns messages whose last one is the beginning of the answer, as in TRL, with its rest."""
    if not answer:
        return messages
    begun, rest = messages[-1], answer[0]
    if rest.role != "assistant" or begun.calls:
        raise Skipped("the prompt ends with a message of the assistant, and the answer is another")
    joined = dataclasses.replace(rest, text=begun.text + rest.text)
    return [*messages[:-1], joined, *answer[1:]]


def _read_history(fields: Fields) -> list[Message]:
    key, *others = fields.untaken(HISTORIES) or ["history"]
    if others:
        raise Skipped(f"two histories: {key} and {others[0]}")
    history = fields.take(key) or []
    if isinstance(history, list) and all(isinstance(item, dict) for item in history):
        return read_messages(history, fields, key)
    messages = []
    for pair in history if isinstance(history, list) else [history]:
        if not (
            isinstance(pair, list)
            and len(pair) == 2
            and all(isinstance(text, str) for text in pair)
        ):
            raise Skipped("a history is not a list of text pairs")
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    return messages


def _tools_text(tools: Any) -> str:
    text = tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False)
    return "" if text.strip() in ("", "[]", "{}", "null") else text


def _check_label(fields: Fields) -> None:
    """Raises Skipped for an answer that is labeled as bad.

    Parquet and CSV files may have 0 for false. Next to turns a 0 is likely another label.
    """
    number = (bool, int, float) if "completion" in fields else bool
    for key in _LABELS:
        if (label := fields.take_if(key, number)) is not None and not label:
            raise Skipped("an answer labeled as bad")


def _check_row_mark(fields: Fields) -> None:
    for key in MARKS:
        mark = fields.take(key)
        if mark is not None and (not isinstance(mark, (bool, int, float)) or mark not in (0, 1)):
            raise Skipped(f"the row's {key} is neither 0 nor 1")
        if mark is not None and not mark:
            raise Skipped(f"the row is marked not to be trained on ({key})")
