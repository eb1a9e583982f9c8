"""Locks a process that is about to run untrusted code, layer by layer, for good."""

import dataclasses
import os

from qwen_jax.sandbox.kernel import landlock, namespaces, privileges, rlimits, seccomp


@dataclasses.dataclass(frozen=True)
class Setup:
    """What this machine offers, found out once when the zygote starts."""

    landlock: int  # ABI; 0: none
    filters: tuple[bytes, ...]  # of seccomp, for programs without and with processes; or none
    namespaces: tuple[str, ...]
    user: int | None  # that runs get; None: the same as ours
    readable: tuple[int, ...]  # descriptors of files and folders
    devices: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Request:
    """How to lock one run."""

    cpu_seconds: float
    memory: int  # bytes
    disk: int  # bytes
    files: int  # number of files and folders
    box: str  # the writable folder, where there is no mount namespace
    build: bool  # may start processes, of any file that it can read


_PROCESSES = 256


def enter_box(setup: Setup, request: Request) -> str:
    """Enters an empty writable folder.

    Returns:
      The folder.
    """
    box = request.box
    if setup.namespaces:
        box = namespaces.BOX
        namespaces.mount_box(request.disk, request.files, setup.user, execute=request.build)
    os.chdir(box)
    return box


def give_up(setup: Setup) -> None:
    """Gives up this process's user and capabilities."""
    try:
        privileges.drop(setup.user)
    except OSError:  # no capset here; refused below only if a layer depends on it
        if setup.user is not None:
            raise
    privileges.no_core_dumps()


def close_doors(setup: Setup, request: Request, box: str, *, base: int) -> None:
    """Applies resource limits, Landlock and seccomp.

    Args:
      box: from enter_box.
      base: bytes of address space that the interpreter has before the run.
    """
    alone = setup.user is not None or "user" in setup.namespaces  # nobody else's processes count
    rlimits.apply(
        rlimits.Limits(
            request.cpu_seconds,
            file_bytes=request.disk,
            address_bytes=None if request.build else base + request.memory,
            processes=_PROCESSES if alone else None,
        )
    )
    privileges.no_new_privileges()
    if setup.landlock:
        readable = landlock.READ_EXECUTE if request.build else landlock.READ
        rules = [(descriptor, readable) for descriptor in setup.readable]
        rules += [(descriptor, landlock.DEVICE) for descriptor in setup.devices]
        own = landlock.open_path(box)
        rules.append((own, landlock.writable(execute=request.build)))
        landlock.restrict(setup.landlock, rules)
        os.close(own)
    if setup.filters:
        seccomp.install(setup.filters[request.build])


def filters(version: int, namespaces: tuple[str, ...], user: int | None) -> tuple[bytes, bytes]:
    """Returns the seccomp filters of programs without and with processes of their own.

    Args:
      version, namespaces, user: as in Setup.
    """
    hidden = "mount" in namespaces
    made = [
        seccomp.program(
            seccomp.Policy(
                new_processes=build,
                modes=hidden,
                truncate=version >= 3 or hidden,
                signals=version >= 6 or "pid" in namespaces or user is not None,
            )
        )
        for build in (False, True)
    ]
    return made[0], made[1]
