"""The agent over tools of Hugging Face, in run mode and chat mode. Report: 3.4, Table 9."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from qwen_jax.agent.huggingface.program import Program, ProgramError
from qwen_jax.agent.huggingface.prompts import (
    CHAT_STOPS,
    RUN_STOPS,
    Plan,
    chat_prompt,
    read_plan,
    run_prompt,
    until_stop,
)
from qwen_jax.agent.huggingface.record import Recorder
from qwen_jax.agent.models.protocol import Model
from qwen_jax.agent.tool import Limits, Result, Tool

_MAX_TOKENS = 512


@dataclasses.dataclass(frozen=True)
class HFTool:
    """A tool that programs call. `function` takes and returns values of Python."""

    name: str
    description: str
    function: Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Fields:
      plan: explanation and code.
      value: of the last statement of the code.
      printed: what the code printed.
      used: names of the tools that ran, in order.
      error: why the code did not run to its end; "": it did.
      variables: after the code.
    """

    plan: Plan
    value: Any
    printed: str
    used: tuple[str, ...]
    error: str
    variables: dict[str, Any]


class HFAgent:
    """Plans a program for a task and runs it.

    Args:
      model: any model; it gets the prompt as a user's message, without tools of its own.
      tools: what programs call.
      recorder: writes prompts and replies, for training, if there is one.
    """

    def __init__(self, model: Model, tools: list[HFTool], recorder: Recorder | None = None):
        self._model, self._recorder = model, recorder
        self._described = {tool.name: tool.description for tool in tools}
        self._functions = {tool.name: tool.function for tool in tools}
        self._history: list[tuple[str, str]] = []
        self._variables: dict[str, Any] = {}

    def run(self, task: str, **variables: Any) -> Outcome:
        """Solves one task; nothing is kept."""
        prompt = run_prompt(task, self._described)
        return self._outcome(prompt, self._complete(prompt, RUN_STOPS), dict(variables))

    def chat(self, task: str, **variables: Any) -> Outcome:
        """Solves a step of a conversation; variables and what was said are kept for the next."""
        self._variables |= variables
        prompt = chat_prompt(task, self._described, self._history)
        reply = self._complete(prompt, CHAT_STOPS)
        self._history.append((task, reply.strip()))
        return self._outcome(prompt, reply, self._variables)

    def new_chat(self) -> None:
        """Forgets the conversation and its variables."""
        self._history, self._variables = [], {}

    def _complete(self, prompt: str, stops: tuple[str, ...]) -> str:
        messages = [{"role": "user", "content": prompt}]
        room = self._model.room(messages, ())
        replying = self._model.reply(
            messages, (), max_tokens=max(1, min(room, _MAX_TOKENS)), turn=len(self._history)
        )
        text = ""
        try:
            for new in replying:
                text, stopped = until_stop(text + new, stops)
                if stopped:
                    break
        finally:
            replying.close()
        return text

    def _outcome(self, prompt: str, reply: str, variables: dict[str, Any]) -> Outcome:
        plan = read_plan(reply)
        program, value = Program(self._functions, variables), None
        error = "" if plan.code else "the reply has no code"
        try:
            value = program.run(plan.code)
        except ProgramError as failure:
            error = str(failure)
        if self._recorder is not None:
            self._recorder.write(prompt, reply, error)
        return Outcome(
            plan,
            value,
            "\n".join(program.printed),
            tuple(program.calls),
            error,
            dict(variables),
        )


def from_tool(tool: Tool) -> HFTool:
    """Returns one of our tools as a function: its result's text, or its error raised."""

    def call(*positional: Any, **named: Any) -> str:
        names = list(tool.parameters.get("properties", {}))
        arguments = dict(zip(names, positional, strict=False)) | named
        found = tool.run(arguments, Limits())
        result = found if isinstance(found, Result) else Result(found)
        if result.is_error:
            raise ValueError(result.text)
        return result.text

    return HFTool(tool.name, tool.description, call)


def fakes(recorded: Mapping[str, tuple[str, list[str]]]) -> list[HFTool]:
    """Returns tools that only say what they would do, for tools whose models are not here.

    Args:
      recorded: name -> (a text such as "This is a summary of {text}.", names of its parameters).
    """
    return [
        HFTool(name, text.partition("{")[0].strip() + " ...", _fake(text, parameters))
        for name, (text, parameters) in recorded.items()
    ]


def _fake(text: str, parameters: list[str]) -> Callable[..., str]:
    def function(*positional: Any, **named: Any) -> str:
        values = dict(zip(parameters, positional, strict=False)) | named
        if unknown := values.keys() - set(parameters):
            raise TypeError(f"unknown parameter {', '.join(sorted(unknown))}")
        return text.format(**{name: values.get(name) for name in parameters})

    return function
