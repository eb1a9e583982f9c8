"""Errors that tell a person three things: what is wrong, where, and how to fix it."""

import difflib
from collections.abc import Iterable


class QwenJaxError(ValueError):
    """Base of every error that a user can cause.

    Args:
      what: one sentence, with the offending value in it.
      where: the flag, file, weight or argument concerned.
      fix: what to do about it.
    """

    exit_code = 1  # of a run that it ends; launchers do not start again after 1

    def __init__(self, what: str, where: str, fix: str):
        super().__init__(f"\n  what:  {what}\n  where: {where}\n  fix:   {fix}")
        self.what, self.where, self.fix = what, where, fix

    def __reduce__(self):
        return type(self), (self.what, self.where, self.fix)


class ConfigError(QwenJaxError):
    """A setting that cannot be right, alone or together with another."""


class DataError(QwenJaxError):
    """Text, shards or batches that are missing, damaged or of the wrong form."""


class TokenizerError(QwenJaxError):
    """A vocabulary file or a text that the tokenizer cannot honor."""


class ShardingError(QwenJaxError):
    """An array that does not fit the device mesh."""


class CheckpointError(QwenJaxError):
    """A checkpoint that is missing, damaged or of another model."""


class KernelError(QwenJaxError):
    """Arguments that an attention back end refuses."""


class TrainingError(QwenJaxError):
    """A run that cannot go on: non-finite loss, exhausted data, no memory."""


def unknown_name(
    kind: str, name: str, known: Iterable[str], where: str, error: type[QwenJaxError] = ConfigError
) -> QwenJaxError:
    """The error for a name that does not exist: the nearest known one first, then all of them.

    Example:
      >>> print(unknown_name("size", "7", ["1.8b", "7b"], "--size").fix)
      did you mean '7b'? Known: 1.8b, 7b.
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return error(f"unknown {kind} {name!r}.", where, f"{hint}Known: {', '.join(known)}.")
