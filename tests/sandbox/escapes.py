"""Attempts to escape from the sandbox, as data. tests/sandbox/escape_run.py runs them.

Code says `attempt(function)`: it prints ESCAPED if the function returns, and otherwise how it was
stopped. `reach(number, ...)` makes a system call with arguments that do no harm: it prints ESCAPED
unless the call itself was refused. Where a return is not yet an escape, the code prints ESCAPED
itself. CANARY is a file outside that everyone may read and write; PARENT is the process that asked
for the run; HOST_TCP, HOST_UDP, HOST_UNIX and HOST_ABSTRACT are sockets that it listens on; TOKEN
is a secret of its environment. What would do harm if it succeeded is asked for with arguments that
do none, such as signal 0.
"""

# ruff: noqa: E501  (programs as text)

import dataclasses

PRELUDE = """
import ctypes, os, sys
_c = ctypes.CDLL(None, use_errno=True)
def syscall(number, *arguments):
    result = _c.syscall(ctypes.c_long(number), *[
        ctypes.c_char_p(a) if isinstance(a, bytes) else ctypes.c_long(a) for a in arguments])
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def attempt(action):
    try:
        value = action()
    except BaseException as error:
        print("stopped:", type(error).__name__, getattr(error, "errno", None))
    else:
        print("ESCAPED", repr(value)[:200])
def reach(number, *arguments):
    try:
        print("ESCAPED", syscall(number, *arguments))
    except OSError as error:
        refused = error.errno in (1, 38)  # EPERM, ENOSYS: not an error of the call itself
        print("stopped:" if refused else "ESCAPED as far as", type(error).__name__, error.errno)
"""


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One attempt.

    Fields:
      allowed: profiles in which it may succeed, since it does no harm there.
      limit: the beginning of the reason that ends the run, if a limit has to.
      x86: uses numbers or instructions of x86_64.
    """

    name: str
    code: str
    allowed: tuple[str, ...] = ()
    limit: str = ""
    x86: bool = False


def _one(name: str, action: str, **options) -> Attempt:
    return Attempt(name, f"attempt(lambda: {action})", **options)


def _call(name: str, number: int, *arguments: str, **options) -> Attempt:
    inner = ", ".join([str(number), *arguments])
    return Attempt(name, f"reach({inner})", x86=True, **options)


_SPAWNS = ("build",)  # where programs may start others
FILES = [
    _one("read /etc/passwd", "open('/etc/passwd').read()"),
    _one("read /etc/shadow", "open('/etc/shadow').read()"),
    _one("read a file outside", "open(CANARY).read()"),
    _one("write a file outside", "open(CANARY, 'a').write('x')"),
    _one("create a file next to it", "open(CANARY + '.new', 'w')"),
    _one("truncate a file outside", "os.truncate(CANARY, 0)"),
    _one("remove a file outside", "os.unlink(CANARY)"),
    _one("change its mode", "os.chmod(CANARY, 0o600)"),
    _one("change its owner", "os.chown(CANARY, os.getuid(), os.getgid())"),
    _one("change its times", "os.utime(CANARY, (0, 0))"),
    _one("set an extended attribute", "os.setxattr(CANARY, 'user.x', b'1')"),
    _one("list the root folder of a user", "os.listdir('/root')"),
    _one("list a user's keys", "os.listdir('/root/.ssh')"),
    _one("list /home", "os.listdir('/home')"),
    _one("list /tmp", "os.listdir('/tmp')"),
    _one("write to /tmp", "open('/tmp/qwen-jax-escaped', 'w')"),
    _one("write to /dev/shm", "open('/dev/shm/qwen-jax-escaped', 'w')"),
    _one("write to /var/tmp", "open('/var/tmp/qwen-jax-escaped', 'w')"),
    _one("write next to the interpreter", "open(sys.prefix + '/escaped', 'w')"),
    Attempt(
        "plant a module in every folder of sys.path",
        "for folder in sys.path:\n"
        "    if folder and folder != os.getcwd() and not folder.endswith('.zip'):\n"
        "        attempt(lambda: open(folder + '/qwen_jax_escaped.py', 'x'))",
    ),
    Attempt(
        "plant a sitecustomize",
        "import site\n"
        "for folder in (*site.getsitepackages(), '/usr/lib/python3/dist-packages'):\n"
        "    attempt(lambda: open(folder + '/sitecustomize.py', 'r+'))\n"
        "    attempt(lambda: open(folder + '/qwen_jax_escaped.pth', 'x'))",
    ),
    _one("read through a symbolic link", "(os.symlink(CANARY, 'link'), open('link').read())"),
    _one("write through a symbolic link", "(os.symlink(CANARY, 'link'), open('link', 'a'))"),
    _one("hard link", "(os.link(CANARY, 'hard'), open('hard').read())"),
    _one("rename a file into the box", "os.rename(CANARY, 'mine')"),
    _one("rename over a file outside", "(open('mine', 'w').close(), os.replace('mine', CANARY))"),
    _one("leave with ..", "open('../' * 30 + CANARY[1:]).read()"),
    _one(
        "a temporary file with .. in its name",
        "__import__('tempfile').mkstemp(prefix='../../tmp/x')",
    ),
    Attempt(
        "a symbolic link that changes while it is opened",
        "import threading\n"
        "open('good', 'w').write('good'); os.symlink('good', 'link'); go = True\n"
        "def flip():\n"
        "    while go:\n"
        "        for target in (CANARY, 'good'):\n"
        "            os.symlink(target, 'next'); os.replace('next', 'link')\n"
        "thread = threading.Thread(target=flip); thread.start()\n"
        "for _ in range(3000):\n"
        "    try:\n"
        "        if open('link').read() != 'good': print('ESCAPED'); break\n"
        "    except OSError: pass\n"
        "go = False; print('stopped: race')",
    ),
    Attempt(
        "a hard link that appears while it is opened",
        "import threading\n"
        "go = True\n"
        "def flip():\n"
        "    while go:\n"
        "        for make in (os.link, lambda a, b: open(b, 'w').close()):\n"
        "            try: make(CANARY, 'next'); os.replace('next', 'hard')\n"
        "            except OSError: pass\n"
        "thread = threading.Thread(target=flip); thread.start()\n"
        "for _ in range(3000):\n"
        "    try:\n"
        "        if open('hard').read(): print('ESCAPED'); break\n"
        "    except OSError: pass\n"
        "go = False; print('stopped: race')",
    ),
    _one("open /proc/self/root", "os.listdir('/proc/self/root/etc')"),
    _one("/proc/self/exe for writing", "open('/proc/self/exe', 'r+b')"),
    _one("open /proc/self/environ", "open('/proc/self/environ').read()"),
    _one("environment of the parent", "open(f'/proc/{PARENT}/environ').read()"),
    _one("memory of the parent", "open(f'/proc/{PARENT}/mem', 'rb')"),
    _one("folder of the parent", "os.listdir(f'/proc/{PARENT}/cwd/')"),
    _one("descriptors of the parent", "os.listdir(f'/proc/{PARENT}/fd')"),
    _one("list /sys", "os.listdir('/sys/kernel')"),
    _one("write to /proc/sys", "open('/proc/sys/kernel/core_pattern', 'w')"),
    _one("open a terminal", "open('/dev/tty')"),
    _one(
        "open a disk",
        "open('/dev/vda', 'rb') if os.path.exists('/dev/vda') else open('/dev/sda', 'rb')",
    ),
    _one("open the kernel's memory", "open('/dev/mem', 'rb')"),
    _one("make a device", "os.mknod('sda', 0o60600, os.makedev(8, 0))"),
    _one(
        "open by handle",
        "syscall(303, -100, CANARY.encode(), b'\\x80' + bytes(200), b'0' * 8, 0)",
        x86=True,
    ),
    _one("watch a folder by fcntl", "__import__('fcntl').fcntl(os.open('/usr', 0), 1026, 4)"),
    _one("watch a file outside", "syscall(254, syscall(294, 0), CANARY.encode(), 0xFFF)", x86=True),
    _one("watch the file system", "syscall(300, 0, 0)", x86=True),
    Attempt(
        "inherited descriptors",
        "found = []\n"
        "for number in range(3, 1024):\n"
        "    try: os.fstat(number); found.append(number)\n"
        "    except OSError: pass\n"
        "print('ESCAPED' if found else 'stopped: none', found)",
    ),
    Attempt(
        "secrets in the environment and in memory",
        "import gc\n"
        "seen = repr(dict(os.environ)) + ''.join(map(repr, [o for o in gc.get_objects()\n"
        "    if type(o) is dict and all(type(k) is str for k in o)][:3000]))[:10**7]\n"
        "print('ESCAPED' if TOKEN[::-1] in seen else 'stopped: none')",
    ),
    Attempt(
        "run our package",
        "try:\n"
        "    from qwen_jax import sandbox\n"
        "    result = sandbox.run(f'print(open({CANARY!r}).read())', seconds=5, memory_mb=64, unsafe=True)\n"
        "    print('ESCAPED' if result.stdout else 'stopped: ' + result.reason)\n"
        "except BaseException as error: print('stopped:', type(error).__name__)",
    ),
    Attempt(
        "setuid inside the box",
        "open('x', 'w').close()\n"
        "try: os.chmod('x', 0o6777)\n"
        "except OSError: pass\n"
        "print('stopped: nosuid, own user' if os.stat('x').st_uid == os.getuid() else 'ESCAPED')",
    ),
]
_SOCKET = "__import__('socket')"
NETWORK = [
    _one("connect by TCP", f"{_SOCKET}.create_connection(('127.0.0.1', HOST_TCP), 2)"),
    _one("connect by TCP over IPv6", f"{_SOCKET}.create_connection(('::1', HOST_TCP), 2)"),
    _one("listen", f"{_SOCKET}.create_server(('127.0.0.1', 0))"),
    _one("send by UDP", f"{_SOCKET}.socket(2, 2).sendto(b'x', ('127.0.0.1', HOST_UDP))"),
    _one("resolve a name", f"{_SOCKET}.getaddrinfo('example.org', 80)"),
    _one("raw socket", f"{_SOCKET}.socket(2, 3, 1)"),
    _one("netlink", f"{_SOCKET}.socket(16, 3, 0)"),
    _one("packet socket", f"{_SOCKET}.socket(17, 3)"),
    _one("vsock", f"{_SOCKET}.socket(40, 1)"),
    _one("Unix socket by path", f"{_SOCKET}.socket(1, 1).connect(HOST_UNIX)"),
    _one("abstract Unix socket", f"{_SOCKET}.socket(1, 1).connect(HOST_ABSTRACT)"),
    _one("docker's socket", f"{_SOCKET}.socket(1, 1).connect('/var/run/docker.sock')"),
    _one(
        "datagrams of a socket pair to any address",
        f"{_SOCKET}.socketpair(1, 2)[0].sendto(b'x', HOST_UNIX + '.dgram')",
    ),
    Attempt(
        "stream pair to an address",
        "import socket\na, b = socket.socketpair()\nattempt(lambda: a.sendto(b'x', HOST_UNIX))",
    ),
    _call("socket by number", 41, "2", "1", "0"),
    _call("connect of a pair", 42, "0", "b'\\x01\\x00/x'", "4"),
]
PROCESSES = [
    Attempt(
        "fork",
        "attempt(os.fork) if 'build' not in PROFILE else os.fork() and print('stopped: own tree')",
    ),
    Attempt(
        "fork bomb",
        "import time\n"
        "try:\n"
        "    for _ in range(2000):\n"
        "        if not os.fork(): time.sleep(60); os._exit(0)\n"
        "    print('ESCAPED')\n"
        "except OSError as error: print('stopped:', type(error).__name__, error.errno)",
        limit="*",
    ),
    Attempt(
        "an orphan that leaves its session",
        "try:\n"
        "    if not os.fork():\n"
        "        os.setsid()\n"
        "        if not os.fork():\n"
        "            import time; time.sleep(60)\n"
        "        os._exit(0)\n"
        "    print('stopped: own tree')\n"
        "except OSError as error: print('stopped:', type(error).__name__, error.errno)",
    ),
    Attempt(
        "subprocess",
        "import subprocess\nattempt(lambda: subprocess.run(['/bin/true'], check=True))",
        _SPAWNS,
    ),
    Attempt(
        "os.system", "print('ESCAPED' if os.system('true') == 0 else 'stopped: status')", _SPAWNS
    ),
    _one(
        "posix_spawn",
        "os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)[1] and 1/0",
        allowed=_SPAWNS,
    ),
    Attempt(
        "system() by ctypes",
        "print('ESCAPED' if _c.system(b'true') == 0 else 'stopped: status')",
        _SPAWNS,
    ),
    Attempt(
        "execve",
        "try: os.execv('/bin/sh', ['sh', '-c', 'echo ESCAPED'])\nexcept OSError as e: print('stopped:', type(e).__name__, e.errno)",
        _SPAWNS,
    ),
    Attempt(
        "exec of a file from the box",
        "open('s', 'w').write('#!/bin/sh\\necho ESCAPED\\n')\n"
        "try: os.chmod('s', 0o755); os.execv('./s', ['s'])\n"
        "except OSError as e: print('stopped:', type(e).__name__, e.errno)",
        _SPAWNS,
    ),
    Attempt(
        "LD_PRELOAD",
        "open('x.so', 'w').write('no library')\n"
        "try: os.execve('/bin/cat', ['cat', CANARY], {'LD_PRELOAD': os.path.abspath('x.so')})\n"
        "except OSError as e: print('stopped:', type(e).__name__, e.errno)",
        limit="*",
    ),
    Attempt(
        "a setuid program",
        "try: os.execv('/usr/bin/su', ['su', '-c', 'echo ESCAPED'])\n"
        "except OSError as e: print('stopped:', type(e).__name__, e.errno)",
        limit="*",
    ),
    Attempt(
        "pickle that runs a command",
        "import pickle\n"
        "class P:\n"
        "    def __reduce__(self): return os.system, ('cat ' + CANARY + ' && echo ESCAPED',)\n"
        "try: print('stopped: status', pickle.loads(pickle.dumps(P())))\n"
        "except OSError as e: print('stopped:', type(e).__name__, e.errno)",
    ),
    _one("execveat of memory", "syscall(322, syscall(319, b'x', 0), b'', 0, 0, 0x1000)", x86=True),
    _one(
        "exec of memory by its path",
        "os.execv(f'/proc/self/fd/{os.memfd_create(chr(120))}', ['x'])",
    ),
    _one("signal the parent", "os.kill(PARENT, 0)"),
    Attempt(
        "signal every process",
        # In a pid namespace or a domain of Landlock, every process is this one's own.
        "attempt(lambda: os.kill(-1, 0))",
        _SPAWNS,
    ),
    Attempt(
        "signal every id",
        "for process in range(1, 70000):\n"
        "    if process not in (os.getpid(), os.getppid()):\n"
        "        try: os.kill(process, 0); print('ESCAPED', process); break\n"
        "        except OSError: pass\n"
        "print('stopped: all')",
    ),
    _call("queue a signal to the parent", 129, "PARENT", "0", "bytes(128)"),
    _one("signal the parent by pidfd", "syscall(424, syscall(434, PARENT, 0), 0, 0, 0)", x86=True),
    _one(
        "a pipe that signals another process",
        "__import__('fcntl').fcntl(os.pipe()[0], 8, os.getppid() or PARENT)",  # F_SETOWN
    ),
    Attempt(
        "a socket that signals another process",
        "import fcntl, socket, struct\n"
        "pid = struct.pack('i', os.getppid() or PARENT)\n"
        "attempt(lambda: fcntl.ioctl(socket.socketpair()[0], 0x8901, pid))",  # FIOSETOWN
    ),
    _call("ptrace the parent", 101, "0x4206", "PARENT", "0", "0"),
    _call("read the parent's memory", 310, "PARENT", "bytes(16)", "1", "bytes(16)", "1", "0"),
    _call("write the parent's memory", 311, "PARENT", "bytes(16)", "1", "bytes(16)", "1", "0"),
    _one(
        "take a descriptor of the parent", "syscall(438, syscall(434, PARENT, 0), 0, 0)", x86=True
    ),
    _one("raise a limit", "__import__('resource').setrlimit(7, (4096, 4096))"),
    _one("limits of the parent", "__import__('resource').prlimit(PARENT, 7)"),
    _one("priority of the parent", "os.setpriority(0, PARENT, 19)"),
    _one("affinity of the parent", "os.sched_setaffinity(PARENT, os.sched_getaffinity(0))"),
    _one("a higher priority", "os.setpriority(0, 0, -5)"),
    _one("real-time scheduling", "os.sched_setscheduler(0, 1, os.sched_param(10))"),
    _one("become dumpable", "1 / (1 + syscall(157, 4, 1))", x86=True),
    _one("become root", "os.setuid(0) if os.getuid() else 1/0"),
    _one("change the group", "os.setgid(0) if os.getgid() else 1/0"),
    _one("set groups", "os.setgroups([0])"),
    _call("take capabilities", 126, "b'\\x22\\x05\\x08\\x20' + bytes(4)", "b'\\xff' * 24"),
    _call("shared memory", 29, "0", "4096", "0o1600"),
    _call("semaphores", 64, "0", "1", "0o1600"),
    _call("message queue", 68, "0", "0o1600"),
    _call("POSIX message queue", 240, "b'escaped'", "0o102", "0o600", "0"),
]
KERNEL = [
    _call("new user namespace", 272, "0x10000000"),
    _call("new mount namespace", 272, "0x20000"),
    _call("clone into a user namespace", 56, "0x10000011", "0", "0", "0", "0"),
    _call(
        "clone3 into a user namespace", 435, "(0x10000000).to_bytes(8, 'little') + bytes(80)", "88"
    ),
    _one("setns", "syscall(308, os.open('.', 0), 0)", x86=True),
    _call("mount", 165, "b'none'", "b'.'", "b'tmpfs'", "0", "0"),
    _call("umount", 166, "b'/none'", "2"),
    _call("new mount API", 430, "b'tmpfs'", "0"),
    _call("open_tree", 428, "-100", "b'.'", "0"),
    _call("chroot", 161, "b'/none'"),
    _call("pivot_root", 155, "b'.'", "b'.'"),
    _call("bpf", 321, "0", "bytes(128)", "128"),
    _call("perf_event_open", 298, "bytes(128)", "0", "-1", "-1", "0"),
    _call("userfaultfd", 323, "1"),
    _call("io_uring", 425, "4", "bytes(128)"),
    _call("keyctl", 250, "0", "-3", "1"),
    _call("add a key", 248, "b'user'", "b'x'", "b'y'", "1", "-3"),
    _call("personality", 135, "0x400000"),
    _call("memfd", 319, "b'x'", "0"),
    _call("secret memory", 447, "0"),
    _call("kernel module", 175, "b''", "0", "b''"),
    _call("kexec", 246, "0", "0", "0", "0xFFFF"),
    _call("reboot without its magic", 169, "0", "0", "0", "0"),
    _call("swapon", 167, "b'/none'", "0"),
    _call("set the clock", 227, "99", "bytes(16)"),
    _call("set the host name", 170, "b'x'", "-1"),
    _call("I/O ports", 172, "3"),
    _call("local descriptor table", 154, "1", "bytes(16)", "16"),
    _call("list mounts", 458, "bytes(32)", "bytes(64)", "8", "0"),
    _call("describe a mount", 457, "bytes(32)", "bytes(64)", "8", "0"),
    _call("set a security label", 460, "100", "0", "0", "0"),
    _call("kernel log", 103, "3", "b'0' * 16", "16"),
    _call("filter with a listener", 317, "1", "8", "bytes(16)"),
    _call("a call newer than the list", 9999),
    Attempt(
        "a call of x32", "syscall(0x40000000 + 39); print('ESCAPED')", x86=True, limit="signal"
    ),
    Attempt(
        "a 32-bit call",
        "import mmap\n"
        "page = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 7)\n"
        "page.write(b'\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3')\n"
        "address = ctypes.addressof(ctypes.c_char.from_buffer(page))\n"
        "ctypes.CFUNCTYPE(ctypes.c_int)(address)(); print('ESCAPED')",
        x86=True,
        limit="signal",
    ),
]
_IGNORE = (
    "import signal\n"
    "for number in range(1, 65):\n"
    "    try: signal.signal(number, signal.SIG_IGN)\n"
    "    except (OSError, ValueError): pass\n"
)
RESOURCES = [
    Attempt("endless loop", "while True: pass", limit="time"),
    Attempt("sleep", "import time\nwhile True: time.sleep(60)", limit="time"),
    Attempt("endless loop that ignores signals", f"{_IGNORE}while True: pass", limit="time"),
    Attempt(
        "a regular expression without end", "import re; re.match('(a+)+b', 'a' * 64)", limit="time"
    ),
    Attempt("a number without end", "10 ** 10 ** 9", limit="time"),
    Attempt(
        "memory", "x = [bytearray(64 << 20) for _ in range(64)]; print('ESCAPED')", limit="memory"
    ),
    Attempt(
        "anonymous map",
        "import mmap\nm = mmap.mmap(-1, 4 << 30)\nfor i in range(0, 4 << 30, 4096): m[i] = 1\nprint('ESCAPED')",
        limit="*",
    ),
    Attempt(
        "shared memory that no page table shows",
        "import mmap\n"
        "for fd in (-1, os.open('/dev/zero', os.O_RDWR) if os.path.exists('/dev/zero') else -1):\n"
        "    try:\n"
        "        kept = []\n"
        "        for _ in range(128):\n"
        "            m = mmap.mmap(fd, 16 << 20, mmap.MAP_SHARED); kept.append(m)\n"
        "            for i in range(0, 16 << 20, 4096): m[i] = 1\n"
        "            m.madvise(mmap.MADV_DONTNEED)\n"
        "        print('ESCAPED')\n"
        "    except (OSError, ValueError) as error: print('stopped:', type(error).__name__, error)",
        limit="*",
    ),
    Attempt("deep recursion", "def f(): f()\nf()", limit="exit status"),
    Attempt(
        "recursion in C",
        "import sys; sys.setrecursionlimit(10**8)\nx = []\nfor _ in range(10**6): x = [x]\nrepr(x); print('stopped: none')",
        limit="*",
    ),
    Attempt("endless stdout", "while True: print('x' * 4096)", limit="output"),
    Attempt("endless stderr", "while True: print('x' * 4096, file=sys.stderr)", limit="output"),
    Attempt("huge traceback", "raise ValueError('x' * (1 << 24))", limit="output"),
    Attempt(
        "threads",
        "import threading, time\n"
        "try:\n"
        "    for _ in range(5000): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "    print('ESCAPED')\n"
        "except (RuntimeError, MemoryError) as error: print('stopped:', type(error).__name__)",
        limit="*",
    ),
    Attempt(
        "descriptors",
        "try:\n"
        "    x = [open('/dev/null') for _ in range(10000)]; print('ESCAPED')\n"
        "except OSError as error: print('stopped:', error.errno)",
    ),
    Attempt(
        "a large file",
        "try:\n"
        "    with open('x', 'wb') as file:\n"
        "        for _ in range(1024): file.write(bytes(1 << 20)); file.flush()\n"
        "    print('ESCAPED')\n"
        "except OSError as error: print('stopped:', error.errno)",
        limit="*",
    ),
    Attempt(
        "large files",
        "try:\n"
        "    for i in range(64):\n"
        "        with open(f'x{i}', 'wb') as file: file.write(bytes(32 << 20))\n"
        "    print('ESCAPED')\n"
        "except OSError as error: print('stopped:', error.errno)",
        limit="*",
    ),
    Attempt(
        "many files",
        "try:\n"
        "    for i in range(100000): open(f'x{i}', 'w').close()\n"
        "    print('ESCAPED')\n"
        "except OSError as error: print('stopped:', error.errno)",
        limit="*",
    ),
    Attempt(
        "deep folders without permissions",
        "for i in range(1500):\n"
        "    os.mkdir('d'); os.chdir('d')\n"
        "os.mkdir('closed', 0); print('stopped: removed later')",
    ),
    Attempt(
        "zip bomb in memory",
        "import zlib\n"
        "c = zlib.compressobj(9); small = b''.join(c.compress(bytes(1 << 24)) for _ in range(256)) + c.flush()\n"
        "zlib.decompress(small); print('ESCAPED')",
        limit="*",
    ),
    Attempt(
        "zip bomb on the disk",
        "import zipfile\n"
        "with zipfile.ZipFile('z', 'w', zipfile.ZIP_DEFLATED) as z:\n"
        "    with z.open('x', 'w', force_zip64=True) as file:\n"
        "        for _ in range(600): file.write(bytes(1 << 20))\n"
        "try: zipfile.ZipFile('z').extractall(); print('ESCAPED')\n"
        "except OSError as error: print('stopped:', error.errno)",
        limit="*",
    ),
]
ATTEMPTS = {
    "files": FILES,
    "network": NETWORK,
    "processes": PROCESSES,
    "kernel": KERNEL,
    "resources": RESOURCES,
}

# Programs that do not compute x + 1 and want f(1) == 2 to pass. True: they pass in the published
# mode, whose verdict is made in their process; None: they may. Where values are compared outside,
# none passes.
VERDICTS = {
    "exit with status 0": ("import sys; sys.exit(0)", False),
    "os._exit with status 0": ("import os; os._exit(0)", False),
    "close stdout": ("import os; os.close(1)", False),
    "print that it passed": ("print('passed'); print('OK')\ndef f(x): return 0", False),
    "kill itself": ("import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGKILL)", False),
    "exit in the function": ("def f(x): raise SystemExit(0)", False),
    "an object that equals everything": (
        "class A:\n    def __eq__(s, o): return True\ndef f(x): return A()",
        True,
    ),
    "a subclass of int that equals everything": (
        "class A(int):\n    def __eq__(s, o): return True\n    __hash__ = int.__hash__\ndef f(x): return A(7)",
        True,
    ),
    "a str that equals everything": (
        "class A(str):\n    def __eq__(s, o): return True\n    __hash__ = str.__hash__\ndef f(x): return A('7')",
        True,
    ),
    "a metaclass that lies": (
        "class M(type):\n    def __eq__(s, o): return True\n    __hash__ = type.__hash__\nclass A(metaclass=M): pass\ndef f(x): return A",
        True,
    ),
    "a bool for an int": ("def f(x): return True", False),
    "NaN": ("def f(x): return float('nan')", False),
    "a generator": ("def f(x): yield 2", False),
    "a patched print": (
        "import builtins\nbuiltins.print = lambda *a: None\ndef f(x): return 0",
        False,
    ),
    "a patched json.dumps": (
        'import json\njson.dumps = lambda *a, **k: \'[0,"value",["i","0x7"]]\'\ndef f(x): return 0',
        False,
    ),
    "the nonce from the frames": (
        "import sys, atexit, os, re\n"
        "def f(x):\n"
        "    frame = sys._getframe()\n"
        "    while frame:\n"
        "        for value in list(frame.f_locals.values()):\n"
        "            found = re.findall(r\"print\\('([0-9a-f]{32})'\\)\", value) if isinstance(value, str) else []\n"
        "            if found: os.write(1, found[0].encode() + b'\\n'); os._exit(0)\n"
        "        frame = frame.f_back\n",
        True,
    ),
    "the nonce from the garbage collector": (
        "import gc, os, re\n"
        "def f(x):\n"
        "    for o in gc.get_objects():\n"
        "        found = re.findall(r\"print\\('([0-9a-f]{32})'\\)\", str(o)[:100000]) if type(o) is dict and 'code' in o else []\n"
        "        if found: os.write(1, found[0].encode() + b'\\n'); os._exit(0)\n",
        None,  # depends on the version of Python
    ),
    "results written by number": (
        'import os\ndef f(x):\n    os.write(3, b\'[0,"value",["i","0x2"]]\\n\')\n    return 2\n',
        False,
    ),
    "two answers, one of them right": (
        "import os\n"
        "def f(x):\n"
        '    try: os.write(3, b\'[0,"value",["i","0x3"]]\\n\')\n'
        "    except OSError: pass\n"
        "    return 0\n",
        False,
    ),
    "an exit handler": (
        "import atexit, os\natexit.register(lambda: os._exit(0))\ndef f(x): return 0",
        False,
    ),
    "SystemExit in __del__": (
        "class A:\n    def __del__(s): raise SystemExit(0)\na = A()\ndef f(x): return 0",
        False,
    ),
    "a signal handler": (
        "import signal\nsignal.signal(signal.SIGTERM, lambda *a: None)\ndef f(x): return 0",
        False,
    ),
    "an excepthook": ("import sys\nsys.excepthook = lambda *a: None\ndef f(x): return 0", False),
    "its own __name__": ("__name__ = 'x'\n__builtins__ = {}\ndef f(x): return 0", False),
    "a patched AssertionError": (
        "import builtins\nclass A(Exception):\n    def __new__(c, *a): import os; os._exit(0)\nbuiltins.AssertionError = A\ndef f(x): return 0",
        False,
    ),
    "a trace function that jumps over the assert": (
        "import sys\n"
        "def jump(frame, event, arg):\n"
        "    try: frame.f_lineno = frame.f_lineno + 1\n"
        "    except ValueError: pass\n"
        "    return jump\n"
        "def f(x):\n"
        "    frame = sys._getframe(1); frame.f_trace = jump; sys.settrace(jump)\n"
        "    return 0",
        None,  # depends on the version of Python
    ),
    "an answer nested too deep": (
        "def f(x):\n    y = []\n    for _ in range(100000): y = [y]\n    return y",
        False,
    ),
    "an answer that contains itself": ("def f(x):\n    y = []; y.append(y)\n    return y", False),
    "an answer of 100 MB": ("def f(x): return 'x' * 100000000", False),
    "hashes that collide": ("def f(x): return {i * ((1 << 61) - 1) for i in range(20000)}", False),
}
