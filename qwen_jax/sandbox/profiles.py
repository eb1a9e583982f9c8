"""What runs may read: the system's programs and libraries, the interpreter, installed packages.

Never home folders, /etc as a whole, /proc, /sys, /var or /tmp.
"""

import os
import sys
import sysconfig

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC = ("/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives", "/etc/ssl")
_ETC_PREFIXES = ("java-",)  # the configuration of a JDK of Debian is there
# Common imports of short programs, done once.
PRELOAD = tuple(
    """
    abc array ast base64 bisect builtins calendar cmath codecs collections collections.abc
    contextlib copy csv dataclasses datetime decimal enum fractions functools hashlib heapq inspect
    io itertools json math numbers operator pathlib pprint queue random re reprlib secrets
    statistics string struct tempfile textwrap threading time traceback types typing unicodedata
    uuid warnings zlib
    """.split()
)


def packages() -> list[str]:
    """Returns the folders of installed packages that this interpreter has."""
    found = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    return [path for path in dict.fromkeys(found) if os.path.isdir(path)]


def interpreter() -> list[str]:
    """Returns the folders of the standard library and the libraries next to it."""
    found = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    found += [
        os.path.join(sys.base_prefix, "lib"),
        sys.executable,
        os.path.realpath(sys.executable),
    ]
    return [path for path in dict.fromkeys(found) if os.path.exists(path)]


def readable(more: list[str]) -> list[str]:
    """Returns all paths, also those that their symbolic links lead to.

    Args:
      more: folders of toolchains.
    """
    found = [path for path in _SYSTEM if os.path.exists(path)]
    found += [path for path in _ETC if os.path.exists(path)]
    for name in os.listdir("/etc") if os.path.isdir("/etc") else []:
        if name.startswith(_ETC_PREFIXES):
            found.append(f"/etc/{name}")
    found += [*interpreter(), *packages(), *more]
    targets = [os.path.realpath(path) for path in found if os.path.realpath(path) != path]
    return sorted(set(found) | set(targets))
