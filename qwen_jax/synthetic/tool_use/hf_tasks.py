"""Tasks for the agent over tools of Hugging Face, in run mode and chat mode. Report: 3.4, Table 9.

The published set has 27 phrasings and 47 steps; these are hundreds, with phrasings and names of
tools that no training row has. A tool returns a text that says what it would do, so a result
is right if it is equal.
"""

import dataclasses
import random
from collections.abc import Iterator
from typing import Any


@dataclasses.dataclass(frozen=True)
class _Role:
    """What a tool does.

    Fields:
      names: what it is called.
      takes, gives: kinds of values.
      result: what it returns, with its parameters in braces.
      asked: what a person says, {it} is the input; in chat mode {it} is a pronoun.
      settings: more arguments, as the question implies them.
    """

    names: tuple[str, ...]
    takes: str
    gives: str
    result: str
    description: str
    asked: tuple[str, ...]
    settings: tuple[tuple[str, str], ...] = ()


_INPUTS = {"url": "url", "text": "text", "image": "image", "audio": "audio"}
_ROLES = (
    _Role(
        ("page_loader", "web_fetcher"), "url", "text", "The content of {url}.",
        "downloads the text of a web page; takes `url`",
        ("download the page at {it}", "fetch what is written at {it}"),
    ),
    _Role(
        ("abstracter", "shortener"), "text", "text", "A summary of {text}.",
        "summarizes a text; takes `text`",
        ("summarize {it}", "make {it} short"),
    ),
    _Role(
        ("language_converter", "interpreter_of_texts"), "text", "text",
        "A translation of {text} into {language}.",
        "translates a text; takes `text` and `language`, the language of the result",
        ("translate {it} into {language}", "say {it} in {language}"),
        (("language", "French|Spanish|German|Italian|Dutch"),),
    ),
    _Role(
        ("voice", "loud_reader"), "text", "audio", "A sound of {text}.",
        "reads a text out loud; takes `text`, returns audio",
        ("read {it} out loud", "let me hear {it}"),
    ),
    _Role(
        ("listener", "speech_writer"), "audio", "text", "The words in {audio}.",
        "writes down what is said; takes `audio`",
        ("write down {it}", "transcribe {it}"),
    ),
    _Role(
        ("painter", "picture_maker"), "text", "image", "An image of {text}.",
        "makes an image from a description; takes `text`",
        ("make an image of {it}", "paint {it}"),
    ),
    _Role(
        ("describer", "picture_teller"), "image", "text", "A description of {image}.",
        "says what an image shows; takes `image`",
        ("describe {it}", "tell me what {it} shows"),
    ),
    _Role(
        ("retoucher", "picture_changer"), "image", "image", "{image} in the style of {style}.",
        "changes an image; takes `image` and `style`, such as winter",
        ("give {it} the style {style}", "make {it} look like {style}"),
        (("style", "winter|a comic|night|watercolors"),),
    ),
    _Role(
        ("mood_meter", "opinion_finder"), "text", "label", "The mood of {text}.",
        "says whether a text is positive or negative; takes `text`",
        ("say whether {it} is positive or negative", "judge the mood of {it}"),
    ),
    _Role(
        ("animator", "clip_maker"), "text", "video", "A video of {text}.",
        "makes a video from a description; takes `text`",
        ("make a video of {it}", "animate {it}"),
    ),
)  # fmt: skip
_MAX_STEPS = 3
_JOINED = ("{}, then {}.", "Please {}; after that {}.")


def items(*, run: int, chats: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yields rows: of run mode one each, of chat mode one for each step of a conversation.

    Fields: id, mode, tools (name -> result, parameters, description), inputs (name -> value), tasks
    (of a step and those before it), programs (the right ones, each goes on from those before).
    """
    for index in range(run):
        rng = random.Random(f"hf run {seed} {index}")
        roles = _chain(rng, index % _MAX_STEPS + 1)
        tools = _tools(rng, roles)
        source = _INPUTS[roles[0].takes]
        phrases, program, value = [], "", source
        for number, role in enumerate(roles):
            phrase, value = _step(rng, role, tools, f"`{source}`" if not number else "it", value)
            phrases.append(phrase)
        program = f"result = {value}\nprint(result)"
        yield _row(f"run-{index}", "run", tools, source, [_sentence(rng, phrases)], [program])
    for index in range(chats):
        rng = random.Random(f"hf chat {seed} {index}")
        roles = _chain(rng, index % 3 + 2)
        tools = _tools(rng, roles)
        source = _INPUTS[roles[0].takes]
        tasks, programs, name = [], [], source
        for number, role in enumerate(roles):
            phrase, value = _step(rng, role, tools, f"`{source}`" if not number else "it", name)
            name = f"result_{number + 1}"
            tasks.append(f"{phrase[0].upper()}{phrase[1:]}.")
            programs.append(f"{name} = {value}\nprint({name})")
            yield _row(f"chat-{index}-{number}", "chat", tools, source, list(tasks), list(programs))


def _chain(rng: random.Random, length: int) -> list[_Role]:
    """Returns roles of which each takes what the one before gives."""
    while True:
        found = [rng.choice([role for role in _ROLES if role.takes in _INPUTS])]
        while len(found) < length:
            following = [
                role for role in _ROLES if role.takes == found[-1].gives and role not in found
            ]
            if not following:
                break
            found.append(rng.choice(following))
        if len(found) == length:
            return found


def _tools(rng: random.Random, roles: list[_Role]) -> dict[str, _Role]:
    """Returns the tools of the roles and some others, by name, in random order."""
    others = rng.sample([role for role in _ROLES if role not in roles], 4)
    chosen = [*roles, *others]
    rng.shuffle(chosen)
    return {rng.choice(role.names): role for role in chosen}


def _step(
    rng: random.Random, role: _Role, tools: dict[str, _Role], shown: str, value: str
) -> tuple[str, str]:
    """Returns what a person says, and the call as code."""
    settings = {name: rng.choice(options.split("|")) for name, options in role.settings}
    phrase = rng.choice(role.asked).format(it=shown, **settings)
    name = next(name for name, each in tools.items() if each is role)
    written = "".join(f", {key}={text!r}" for key, text in settings.items())
    return phrase, f"{name}({role.takes}={value}{written})"


def _sentence(rng: random.Random, phrases: list[str]) -> str:
    text = phrases[0]
    if len(phrases) > 1:
        text = rng.choice(_JOINED).format(", ".join(phrases[:-1]), phrases[-1])
    text = text.removesuffix(".")
    return f"{text[0].upper()}{text[1:]}."


def _row(
    name: str,
    mode: str,
    tools: dict[str, _Role],
    source: str,
    tasks: list[str],
    programs: list[str],
) -> dict[str, Any]:
    described = {
        each: {
            "result": role.result,
            "parameters": [role.takes, *(key for key, _ in role.settings)],
            "description": role.description,
        }
        for each, role in tools.items()
    }
    return {
        "id": name,
        "mode": mode,
        "tools": described,
        "inputs": {source: f"<<{source}>>"},
        "tasks": tasks,
        "programs": programs,
    }
