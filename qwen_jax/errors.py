"""Errors that state three things: what is wrong, where, and how to fix it."""

import difflib
from collections.abc import Iterable

from qwen_jax import exit_codes


class QwenJaxError(ValueError):
    """Base class of all errors that a user can cause.

    Args:
      what: one sentence about the problem, with the offending value.
      where: the flag, file, weight or argument at fault.
      fix: how to fix the problem.
    """

    exit_code = exit_codes.REFUSED  # of a program that fails with this error

    def __init__(self, what: str, where: str, fix: str):
        super().__init__(f"\n  what:  {what}\n  where: {where}\n  fix:   {fix}")
        self.what, self.where, self.fix = what, where, fix

    def __reduce__(self):
        return type(self), (self.what, self.where, self.fix)


class ConfigError(QwenJaxError):
    """A setting that is invalid, or that is incompatible with another one."""


class DataError(QwenJaxError):
    """Text, shards or batches that are missing, corrupted or malformed."""


class TokenizerError(QwenJaxError):
    """A vocabulary file or text that the tokenizer cannot handle."""


class ShardingError(QwenJaxError):
    """An array that does not fit the device mesh."""


class CheckpointError(QwenJaxError):
    """A checkpoint that is missing, is corrupted or belongs to another model."""


class DiskFullError(CheckpointError):
    """A disk, a quota or a limit on file sizes that is full, for any file that is written."""

    exit_code = exit_codes.DISK_FULL


class UnreadableError(CheckpointError):
    """Files that may be intact, but that storage does not return: not mounted, input/output error.

    Launchers restart the run."""

    exit_code = exit_codes.UNREADABLE


class FolderInUseError(ConfigError):
    """A run folder that another process holds."""

    exit_code = exit_codes.FOLDER_IN_USE


class KernelError(QwenJaxError):
    """Arguments that an attention backend does not support."""


class TrainingError(QwenJaxError):
    """A run that cannot continue: non-finite loss, exhausted data, out of memory."""


def unknown_name(
    kind: str, name: str, known: Iterable[str], where: str, error: type[QwenJaxError] = ConfigError
) -> QwenJaxError:
    """Returns an error for an unknown name, which suggests the closest known name and lists others.

    The flags, which are many, are listed only if none is close.

    Example:
      >>> print(unknown_name("size", "7", ["1.8b", "7b"], "--size").fix)
      did you mean '7b'? Known: 1.8b, 7b.
    """
    known = sorted(known)
    near = difflib.get_close_matches(name[:100], known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    shown = name if len(name) <= 100 else f"{name[:100]}..."
    listed = hint + f"Known: {', '.join(known)}."
    if near and kind == "flag":
        listed = hint + "--help lists all."
    return error(f"unknown {kind} {shown!r}.", where, listed)
