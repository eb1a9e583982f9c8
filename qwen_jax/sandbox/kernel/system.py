"""System calls that Python has no function for, by ctypes. Numbers differ between architectures."""

import ctypes
import os
import platform

_ARCHITECTURES = {"x86_64": 0, "aarch64": 1}
# The column of the tables in this folder, or None: an architecture whose numbers are not known.
COLUMN = _ARCHITECTURES.get(platform.machine()) if os.uname().sysname == "Linux" else None

_libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, name: str) -> int:
    """Raises OSError with the C library's errno if `result` is negative."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def syscall(name: str, numbers: tuple[int, int], *arguments: int | bytes | None) -> int:
    """Calls the kernel.

    Args:
      numbers: of the call on x86_64 and aarch64.

    Raises:
      OSError: the call failed, or the architecture is not known.
    """
    if COLUMN is None:
        raise OSError(38, f"{name}: unknown architecture {platform.machine()}")
    passed = [
        ctypes.c_char_p(each) if isinstance(each, bytes | None) else ctypes.c_long(each)
        for each in arguments
    ]
    return check(_libc.syscall(ctypes.c_long(numbers[COLUMN]), *passed), name)


def prctl(option: int, *arguments: int | bytes) -> int:
    """Calls prctl with up to four arguments; bytes are passed as a pointer. Raises OSError."""
    values = [
        ctypes.c_char_p(each) if isinstance(each, bytes) else ctypes.c_ulong(each)
        for each in arguments
    ]
    values += [ctypes.c_ulong(0)] * (4 - len(values))
    return check(_libc.prctl(ctypes.c_int(option), *values), "prctl")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Raises OSError."""
    texts = [os.fsencode(text) for text in (source, target, kind)]
    call = _libc.mount(*texts, ctypes.c_ulong(flags), os.fsencode(data) or None)
    check(call, f"mount {target}")


def unmount_lazily(target: str) -> None:
    """Raises OSError."""
    check(_libc.umount2(os.fsencode(target), 2), f"umount {target}")


def pivot_root(new: str, old: str) -> None:
    """Raises OSError."""
    syscall("pivot_root", (155, 41), os.fsencode(new), os.fsencode(old))


def unshare(flags: int) -> None:
    """Moves this process into new namespaces. Raises OSError."""
    check(_libc.unshare(ctypes.c_int(flags)), "unshare")
