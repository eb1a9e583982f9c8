"""What a process gives up for good: new privileges by exec, capabilities, its user."""

import os
import struct

from qwen_jax.sandbox.kernel import system

NOBODY = 65534
_PR_SET_DUMPABLE, _PR_SET_PDEATHSIG, _PR_CAPBSET_DROP = 4, 1, 24
_PR_SET_NO_NEW_PRIVS, _PR_SET_CHILD_SUBREAPER = 38, 36
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63


def no_new_privileges() -> None:
    """From now on exec of a setuid program gains nothing; Landlock and seccomp require it."""
    system.prctl(_PR_SET_NO_NEW_PRIVS, 1)


def no_core_dumps() -> None:
    """Also where the kernel pipes core dumps to a program, which ignores RLIMIT_CORE."""
    system.prctl(_PR_SET_DUMPABLE, 0)


def die_with_parent() -> None:
    """SIGKILL when the thread that forked this process ends."""
    system.prctl(_PR_SET_PDEATHSIG, 9)


def adopt_orphans() -> None:
    """Descendants whose parent ends become children of this process."""
    system.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def drop_bounding_set() -> None:
    """From now on no exec can bring a capability back; this process keeps those that it has."""
    for capability in range(_LAST_CAPABILITY + 1):
        try:
            system.prctl(_PR_CAPBSET_DROP, capability)
        except OSError:  # not a capability of this kernel, or none to give up
            break


def drop(user: int | None) -> None:
    """Drops all capabilities, for good, and becomes another user.

    Args:
      user: its user and group; None: stays the same user, only without capabilities.
    """
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    system.syscall("capset", (126, 91), header, bytes(24))


def readable_by_all(paths: list[str]) -> bool:
    """Whether another user can reach each path: others may pass every folder above it."""
    for path in paths:
        path = os.path.realpath(path)
        try:
            if not os.stat(path).st_mode & 0o004:
                return False
            while path != "/":
                path = os.path.dirname(path)
                if not os.stat(path).st_mode & 0o001:
                    return False
        except OSError:
            return False
    return True
