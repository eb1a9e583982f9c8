"""Landlock: what a process may open, whoever it is; also TCP, signals and abstract sockets.

Each ABI of the kernel handles more: 1 files (Linux 5.13), 2 moves between folders, 3 truncation,
4 TCP, 5 ioctl of devices, 6 signals and abstract sockets. What no ABI handles (metadata, UDP) is
left to seccomp and namespaces.
"""

import os
import stat
import struct

from qwen_jax.sandbox.kernel import system

_CREATE, _ADD, _RESTRICT = (444, 444), (445, 445), (446, 446)
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_MAKE_CHAR, _MAKE_SOCK, _MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 11
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_OF_A_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_FILE_RIGHTS_OF_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # number of rights
_BIND_AND_CONNECT_TCP = 3
_SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS = 3

READ = _READ_FILE | _READ_DIR
READ_EXECUTE = READ | _EXECUTE
DEVICE = _READ_FILE | _WRITE_FILE


def abi() -> int:
    """Returns the kernel's version of Landlock; 0: there is none."""
    try:
        return system.syscall("landlock_create_ruleset", _CREATE, None, 0, 1)
    except OSError:
        return 0


def _rights(version: int) -> int:
    return (1 << _FILE_RIGHTS_OF_ABI[min(version, 5)]) - 1


def open_path(path: str) -> int:
    """Returns a descriptor of a file or folder for `restrict`. Raises OSError."""
    return os.open(path, os.O_PATH | os.O_CLOEXEC)


def writable(*, execute: bool) -> int:
    """Returns the rights of the one folder that a run may change: no devices, no sockets."""
    every = _rights(abi()) & ~(_MAKE_CHAR | _MAKE_SOCK | _MAKE_BLOCK | _IOCTL_DEV)
    return every if execute else every & ~_EXECUTE


def restrict(version: int, rules: list[tuple[int, int]]) -> None:
    """Denies this process everything on files but `rules`, and TCP and signals to outsiders.

    Args:
      version: abi().
      rules: (descriptor of a file or folder, rights below it).

    Raises:
      OSError: the kernel refused. no_new_privileges must have been called.
    """
    handled = _rights(version)
    attributes = [handled]
    if version >= 4:
        attributes.append(_BIND_AND_CONNECT_TCP)
    if version >= 6:
        attributes.append(_SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS)
    packed = struct.pack(f"={len(attributes)}Q", *attributes)
    ruleset = system.syscall("landlock_create_ruleset", _CREATE, packed, len(packed), 0)
    try:
        for descriptor, rights in rules:
            if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                rights &= _OF_A_FILE  # the kernel refuses others
            rule = struct.pack("=Qi", rights & handled, descriptor)
            system.syscall("landlock_add_rule", _ADD, ruleset, 1, rule, 0)
        system.syscall("landlock_restrict_self", _RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)
