"""Namespaces: a process that has no network, no other process and no file but what it is given.

Creating them needs root or a kernel that lets users create user namespaces; many containers and
distributions do not, so they are an extra layer and never the only one.
"""

import os
import stat

from qwen_jax.sandbox.kernel import privileges, system

_NEW = {
    "user": 0x10000000,
    "mount": 0x00020000,
    "net": 0x40000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "pid": 0x20000000,
}
_READ_ONLY, _NO_SUID, _NO_DEVICES, _REMOUNT, _BIND = 1, 2, 4, 32, 4096
_RECURSIVE, _PRIVATE = 16384, 1 << 18
_LOCKABLE = 1 | 2 | 4 | 8 | 1024 | 2048  # flags that a user namespace may not clear on a remount
DEVICES = ("/dev/null", "/dev/random", "/dev/urandom")  # a shared map of /dev/zero escapes limits
BOX = "/box"  # the writable folder of a run, where there is a mount namespace


def enter() -> list[str]:
    """Moves this process into new namespaces, and its next child into a new pid namespace.

    Must be called in a child of a process that then calls `map_users`, before that.

    Returns:
      Their names; none: the kernel does not permit any.
    """
    try:
        system.unshare(sum(_NEW.values()))
    except OSError:
        return []
    return list(_NEW)


def map_users(process: int) -> None:
    """Maps users of the namespace of `process` to those outside: root and nobody, or this user."""
    if os.geteuid() == 0:
        users = groups = f"0 0 1\n{privileges.NOBODY} {privileges.NOBODY} 1\n"
    else:
        users, groups = (f"{each} {each} 1\n" for each in (os.geteuid(), os.getegid()))
        _write(f"/proc/{process}/setgroups", "deny")
    _write(f"/proc/{process}/gid_map", groups)
    _write(f"/proc/{process}/uid_map", users)


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def new_root(root: str, readable: list[str]) -> None:
    """Leaves this process with an own root folder that has only `readable` and three devices.

    Args:
      root: an empty folder, which may be removed afterwards.
      readable: files and folders, which become read-only, at their own paths. A symbolic link is
        copied as one; what it points to must be listed, too.

    Raises:
      OSError: the kernel refused.
    """
    system.mount("none", "/", "", _RECURSIVE | _PRIVATE)
    system.mount("tmpfs", root, "tmpfs", _NO_SUID | _NO_DEVICES, "mode=755,size=1m")
    for path in sorted(set(readable)):
        if os.path.lexists(root + path):  # below a folder that is already there
            continue
        if os.path.islink(path):
            os.makedirs(root + os.path.dirname(path), exist_ok=True)
            os.symlink(os.readlink(path), root + path)
        elif os.path.exists(path):
            _bind(path, root + path, _READ_ONLY | _NO_SUID | _NO_DEVICES)
    for path in DEVICES:
        _bind(path, root + path, _NO_SUID)
    os.mkdir(root + BOX)
    os.mkdir(root + "/old")
    os.chdir(root)
    system.pivot_root(".", "old")
    os.chdir("/")
    system.unmount_lazily("/old")
    os.rmdir("/old")
    system.mount("none", "/", "", _REMOUNT | _BIND | _READ_ONLY | _NO_SUID | _NO_DEVICES)


def _bind(source: str, target: str, flags: int) -> None:
    if stat.S_ISDIR(os.stat(source).st_mode):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    system.mount(source, target, "", _BIND | _RECURSIVE)
    locked = os.statvfs(target).f_flag & _LOCKABLE
    system.mount("none", target, "", _REMOUNT | _BIND | flags | locked)


def mount_box(size: int, files: int, user: int | None, *, execute: bool) -> None:
    """Mounts an empty folder in memory at BOX that only this process and its children see.

    It is gone when the last of them ends.

    Args:
      size, files: its limits, in bytes and in number of files.
      user: its owner.
    """
    owner = os.geteuid() if user is None else user
    group = os.getegid() if user is None else user
    system.unshare(_NEW["mount"])
    flags = _NO_SUID | _NO_DEVICES | (0 if execute else 8)
    options = f"mode=700,size={size},nr_inodes={files},uid={owner},gid={group}"
    system.mount("tmpfs", BOX, "tmpfs", flags, options)


def new_process_tree() -> None:
    """Makes the next child the first process of a tree that ends with it. Raises OSError."""
    system.unshare(_NEW["pid"])
