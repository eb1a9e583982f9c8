"""seccomp: system calls that a run may not make, as a classic BPF program.

Everything is allowed but a list: calls by which a process reaches the network, other processes,
the kernel's rarely used parts, or metadata of files (which Landlock does not guard). A refused
call returns EPERM, so Python raises and its traceback says what happened. A call of another
architecture (32-bit, x32) kills the process; one that is newer than this list does not exist.
"""

import ctypes
import dataclasses
import os
import platform
import struct

from qwen_jax.sandbox.kernel import system

_NEWEST = 456  # futex_requeue; later calls list mounts, set labels, or are in no list below
_ABSENT = -1
# Names and numbers on x86_64 and aarch64, from the kernel's tables.
_NETWORK = {
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "socket": (41, 198),
}
_OTHER_PROCESSES = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "mq_timedsend": (242, 182),
    "mq_timedreceive": (243, 183),
    "mq_notify": (244, 184),
}
_KERNEL = {
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "seccomp": (317, 277),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "iopl": (172, _ABSENT),
    "ioperm": (173, _ABSENT),
    "modify_ldt": (154, _ABSENT),
    "uselib": (134, _ABSENT),
    "sysfs": (139, _ABSENT),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
    "personality": (135, 92),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "execveat": (322, 281),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "inotify_init": (253, _ABSENT),
    "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "mknod": (133, _ABSENT),
    "mknodat": (259, 33),
}
_IDENTITY = {
    "setuid": (105, 146),
    "setgid": (106, 144),
    "setreuid": (113, 145),
    "setregid": (114, 143),
    "setresuid": (117, 147),
    "setresgid": (119, 149),
    "setgroups": (116, 159),
    "setfsuid": (122, 151),
    "setfsgid": (123, 152),
    "capset": (126, 91),
}
_OWNERS = {
    "chown": (92, _ABSENT),
    "fchown": (93, 55),
    "lchown": (94, _ABSENT),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
}
# Of files that belong to the user, wherever they are: only where the mount namespace hides them
# can these be allowed.
_MODES = {
    "chmod": (90, _ABSENT),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "utime": (132, _ABSENT),
    "utimes": (235, _ABSENT),
    "futimesat": (261, _ABSENT),
    "utimensat": (280, 88),
}
_TRUNCATE = {"truncate": (76, 45)}  # which Landlock guards from ABI 3 on
_NEW_PROCESSES = {"fork": (57, _ABSENT), "vfork": (58, _ABSENT), "execve": (59, 221)}
_SIGNALS = {
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
}
_KILL, _TGKILL = (62, 129), (234, 131)
_CLONE, _CLONE3, _PRLIMIT = (56, 220), (435, 435), (302, 261)
_SOCKETPAIR, _SENDTO = (53, 199), (44, 206)
_IOCTL, _FCNTL, _PRCTL, _MMAP = (16, 29), (72, 25), (157, 167), (9, 222)
_SHARED_ANONYMOUS = 0x21  # MAP_SHARED and MAP_ANONYMOUS
_SETPRIORITY, _IOPRIO_SET = (141, 140), (251, 30)
# Of any process of the user; with 0 as their first argument, of the caller.
_SCHEDULE = {
    "sched_setaffinity": (203, 122),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
}
_REFUSED_PRCTL = (4, 35, 0x59616D61)  # PR_SET_DUMPABLE, PR_SET_MM, PR_SET_PTRACER
_REFUSED_IOCTL = (0x5412, 0x541C, 0x8901, 0x8902)  # TIOCSTI, TIOCLINUX; FIOSETOWN, SIOCSPGRP
# F_SETOWN, F_SETSIG, F_SETOWN_EX: a pipe that signals another process when it is written to.
# F_SETLEASE, F_NOTIFY: watch what other processes do to a file.
_REFUSED_FCNTL = (8, 10, 15, 1024, 1026)
_CLONE_THREAD = 0x10000
_CLONE_NEW = 0x7E020080  # every namespace
_NOT_SEQUENTIAL = 0xB  # masks a socket's type: 1 is left of SOCK_STREAM and SOCK_SEQPACKET only

_LOAD, _EQUAL, _GREATER, _AND, _RETURN = 0x20, 0x15, 0x25, 0x54, 0x06
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
_AUDIT_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x3FFFFFFF


@dataclasses.dataclass(frozen=True)
class Policy:
    """What a filter refuses beyond what every run is refused.

    A process that may fork cannot be told from its children by their number. Where neither
    Landlock nor a pid namespace nor another user keeps its signals in, `signals` is off.
    """

    new_processes: bool  # fork and exec
    modes: bool  # chmod and utime, on any file of the user
    truncate: bool = True
    signals: bool = True


class _Program:
    """BPF instructions; jumps are relative, so parts are simply appended."""

    def __init__(self):
        self.code: list[tuple[int, int, int, int]] = []

    def add(self, code: int, value: int, if_true: int = 0, if_false: int = 0) -> None:
        self.code.append((code, if_true, if_false, value & 0xFFFFFFFF))

    def refuse(self, number: int, error: int = _EPERM) -> None:
        """Refuses a system call; the number is in the accumulator."""
        if number != _ABSENT:
            self.add(_EQUAL, number, 0, 1)
            self.add(_RETURN, _ERRNO | error)

    def only_if(self, number: int, tests: list[tuple[int, int, int, bool]]) -> None:
        """Refuses a system call unless all tests of its arguments hold.

        Args:
          tests: (word, mask, value, negated): word & mask == value. Words are the halves of the
            arguments, the lower first.
        """
        if number == _ABSENT:
            return
        body = _Program()
        for word, mask, value, negated in tests:
            body.add(_LOAD, 16 + 4 * word)
            body.add(_AND, mask)
            body.add(_EQUAL, value, *((0, 1) if negated else (1, 0)))
            body.add(_RETURN, _ERRNO | _EPERM)
        body.add(_RETURN, _ALLOW)
        self.add(_EQUAL, number, 0, len(body.code))
        self.code += body.code

    def pack(self) -> bytes:
        return b"".join(struct.pack("=HBBI", *each) for each in self.code)


_ALL = 0xFFFFFFFF


_OWN = 0x5E1F5E1F  # stands for the process's id in a filter that is made before it


def program(policy: Policy) -> bytes:
    """Returns a filter for `install`."""
    column = system.COLUMN
    assert column is not None
    made = _Program()
    made.add(_LOAD, _ARCHITECTURE)
    made.add(_EQUAL, _AUDIT_ARCHITECTURE[platform.machine()], 1, 0)
    made.add(_RETURN, _KILL_PROCESS)
    made.add(_LOAD, _NUMBER)
    if platform.machine() == "x86_64":
        made.add(_GREATER, _X32, 0, 1)
        made.add(_RETURN, _KILL_PROCESS)
    made.add(_GREATER, _NEWEST, 0, 1)
    made.add(_RETURN, _ERRNO | _ENOSYS)
    refused = [_NETWORK, _OTHER_PROCESSES, _KERNEL, _IDENTITY, _OWNERS]
    refused += [] if policy.modes else [_MODES]
    refused += [] if policy.truncate else [_TRUNCATE]
    if not policy.new_processes:
        refused.append(_NEW_PROCESSES)
    if not policy.new_processes or not policy.signals:
        refused.append(_SIGNALS)
    for group in refused:
        for numbers in group.values():
            made.refuse(numbers[column])
    made.refuse(_CLONE3[column], _ENOSYS)  # the C library then calls clone, whose flags are visible
    _signals(made, policy, column)
    _arguments(made, policy, column)
    made.add(_RETURN, _ALLOW)
    return made.pack()


def _signals(made: _Program, policy: Policy, column: int) -> None:
    if not policy.signals and policy.new_processes:
        made.refuse(_KILL[column])
        made.refuse(_TGKILL[column])
    elif not policy.new_processes:
        made.only_if(_KILL[column], [(0, _ALL, _OWN, False)])
        made.only_if(_TGKILL[column], [(0, _ALL, _OWN, False)])


def _arguments(made: _Program, policy: Policy, column: int) -> None:
    if policy.new_processes:
        made.only_if(_CLONE[column], [(0, _CLONE_NEW, 0, False)])
        # Whoever polls memory does not see shared pages that no process maps any more.
        made.only_if(_MMAP[column], [(6, _SHARED_ANONYMOUS, _SHARED_ANONYMOUS, True)])
    else:
        made.only_if(_CLONE[column], [(0, _CLONE_THREAD, _CLONE_THREAD, False)])
    # A datagram socket of a pair can send to any address; the others cannot.
    made.only_if(_SOCKETPAIR[column], [(0, _ALL, 1, False), (2, _NOT_SEQUENTIAL, 1, False)])
    made.only_if(_SENDTO[column], [(8, _ALL, 0, False), (9, _ALL, 0, False)])
    for numbers in (_PRLIMIT, *_SCHEDULE.values()):
        made.only_if(numbers[column], [(0, _ALL, 0, False)])
    made.only_if(_SETPRIORITY[column], [(0, _ALL, 0, False), (2, _ALL, 0, False)])
    made.only_if(_IOPRIO_SET[column], [(0, _ALL, 1, False), (2, _ALL, 0, False)])
    made.only_if(_IOCTL[column], [(2, _ALL, value, True) for value in _REFUSED_IOCTL])
    made.only_if(_FCNTL[column], [(2, _ALL, value, True) for value in _REFUSED_FCNTL])
    made.only_if(_PRCTL[column], [(0, _ALL, value, True) for value in _REFUSED_PRCTL])


class _FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def install(filter: bytes) -> None:
    """Installs a filter for this thread and what it creates, for good.

    Where the policy has no new processes, this process can then signal only itself.

    Raises:
      OSError: the kernel refused. no_new_privileges must have been called.
    """
    filter = filter.replace(struct.pack("=I", _OWN), struct.pack("=I", os.getpid()))
    made = _FilterProgram(len(filter) // 8, filter)
    system.prctl(22, 2, ctypes.addressof(made))  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
